"""The TensorRT build on a machine without a GPU: against a stand-in whose API is checked against the real bindings."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.tensorrt_callbacks import BuildLog, BuildProgress, make_monitor
from export.tensorrt_config import TensorRTConfig
from export.tensorrt_host import find_host, import_tensorrt
from export.tensorrt_timing import timing_cache_file
from export.to_tensorrt import build_plan, profile_shapes
from mvfoul.artifact import FEATURES, VIEWS, GraphSpec, TensorSpec
from mvfoul.errors import ConfigError, PlanError
from mvfoul.plan import TensorRTHost
from tests.export import fake_tensorrt

API = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())
VERSIONS = [version for version in API if version != "about"]
VIEW = (3, 2, 4, 4)
GRAPH = GraphSpec(
    "encoder.onnx", (TensorSpec(VIEWS, "uint8", ("N", *VIEW)),), (TensorSpec(FEATURES, "float32", ("N", 3)),)
)


@pytest.fixture(params=VERSIONS)
def trt(request, monkeypatch):
    module = fake_tensorrt.make_tensorrt(request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture
def encoder(tmp_path):
    path = tmp_path / "encoder.onnx"
    onnx.save(_encoder(), path)
    return path


def _encoder(*, cast=True) -> onnx.ModelProto:
    nodes = [helper.make_node("Cast", [VIEWS], ["pixels"], to=TensorProto.FLOAT, name="normalise/Cast_0")]
    mean = helper.make_node(
        "ReduceMean", ["pixels" if cast else VIEWS], ["means"], name="pool/ReduceMean_1", keepdims=0
    )
    mean.attribute.append(helper.make_attribute("axes", [2, 3, 4]))
    nodes.append(mean)
    nodes.append(helper.make_node("Identity", ["means"], [FEATURES], name="Identity_2"))
    graph = helper.make_graph(
        nodes if cast else nodes[1:],
        "encoder",
        [helper.make_tensor_value_info(VIEWS, TensorProto.UINT8, ["N", *VIEW])],
        [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["N", 3])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def _build(encoder, *, show=lambda _: None, cache=None, **settings):
    plan, cache = encoder.with_name("encoder.plan"), cache or encoder.with_name("x.timing")
    return build_plan(encoder, plan, GRAPH, TensorRTConfig(**settings), timing_cache=cache, show=show)


# The stand-in is what the real bindings are


def _stand_in_calls():
    for name, kind in vars(fake_tensorrt.make_tensorrt(VERSIONS[0])).items():
        if inspect.isclass(kind) and not issubclass(kind, int):
            own = {key for base in kind.__mro__[:-1] for key in vars(base)}
            yield from (f"{name}.{key}" for key in own if not key.startswith("_") and key not in {"trt", "Severity"})


@pytest.mark.parametrize("version", VERSIONS)
def test_the_stand_in_has_the_parameters_of_the_real_bindings(version):
    calls, wrong = API[version]["calls"], []
    module = fake_tensorrt.make_tensorrt(version)
    for name in _stand_in_calls():
        if (known := calls.get(name, "unknown")) == "unknown":
            wrong.append(f"{name} is not in tensorrt_api.json")
            continue
        function = inspect.getattr_static(getattr(module, name.split(".")[0]), name.split(".")[1], None)
        ours = (
            [p for p in inspect.signature(function).parameters if p != "self"] if inspect.isfunction(function) else None
        )
        # a property, or the first parameters of one overload
        if not (known is None if ours is None else any(overload[: len(ours)] == ours for overload in known or [])):
            wrong.append(f"{name}{ours} is not one of {known}")
    assert not wrong
    assert len(list(_stand_in_calls())) > 30, "the properties are slots"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_stand_ins_enumerations_are_those_of_the_version(version):
    module = fake_tensorrt.make_tensorrt(version)
    for name in ("NetworkDefinitionCreationFlag", "BuilderFlag", "MemoryPoolType", "HardwareCompatibilityLevel"):
        assert {member.name for member in getattr(module, name)} <= set(API[version]["enums"][name])
    flags = {member.name: int(member) for member in module.NetworkDefinitionCreationFlag}
    assert flags.items() <= API[version]["enums"]["NetworkDefinitionCreationFlag"].items()


def test_what_tensorrt_11_removed_is_not_used_anywhere(repo_root):
    gone = {
        name: set(API["10.12.0.36"]["enums"][name]) - set(API["11.1.0.106"]["enums"][name])
        for name in ("BuilderFlag", "NetworkDefinitionCreationFlag")
    }
    assert {"FP16", "INT8"} <= gone["BuilderFlag"]
    assert gone["NetworkDefinitionCreationFlag"] == {"EXPLICIT_BATCH"}
    code = "\n".join(path.read_text() for path in (repo_root / "export").glob("t*_*.py"))
    for name, members in gone.items():
        assert not re.search(rf"(?:trt|self\._trt|tensorrt)\.{name}\.(?:{'|'.join(members)})\b", code)


# Building


def test_one_path_builds_a_strongly_typed_network_in_every_version(trt, encoder):
    build = _build(encoder, opt_views=2, max_views=6)
    (settings,) = trt.behaviour.settings
    assert settings["strongly_typed"]
    assert settings["profiles"] == [{VIEWS: ((1, *VIEW), (2, *VIEW), (6, *VIEW))}]
    assert settings["flags"] == set()
    assert settings["pools"] == {}, "no limit was asked for"
    assert (settings["level"], settings["hardware"]) == (3, "NONE")
    assert encoder.with_name("encoder.plan").read_bytes().startswith(fake_tensorrt.MAGIC)
    assert build.warnings == ()


def test_every_flag_reaches_the_builder(trt, encoder):
    _build(
        encoder,
        workspace_mib=512,
        optimization_level=5,
        version_compatible=True,
        hardware_compatibility="same-compute-capability",
    )
    (settings,) = trt.behaviour.settings
    assert settings["pools"] == {"WORKSPACE": 512 * 1024 * 1024}
    assert settings["flags"] == {"VERSION_COMPATIBLE"}
    assert (settings["level"], settings["hardware"]) == (5, "SAME_COMPUTE_CAPABILITY")
    _build(encoder, hardware_compatibility="ampere-plus")
    assert trt.behaviour.settings[1]["hardware"] == "AMPERE_PLUS"


def test_all_parser_errors_are_reported_with_their_nodes(trt, encoder):
    trt.behaviour.unsupported_operators = {"ReduceMean", "Identity"}
    with pytest.raises(PlanError) as caught:
        _build(encoder)
    assert str(caught.value).splitlines() == [
        f"TensorRT {trt.__version__} cannot parse encoder.onnx:",
        "  ReduceMean pool/ReduceMean_1: operator is not supported",
        "  Identity Identity_2: operator is not supported",
    ]
    assert not encoder.with_name("encoder.plan").exists()


@pytest.mark.usefixtures("trt")
def test_a_file_that_is_no_graph_is_refused(encoder):
    encoder.write_bytes(b"\xff" * 100)
    with pytest.raises(PlanError, match=r"cannot parse encoder\.onnx:\n  Failed to parse ONNX model"):
        _build(encoder)


@pytest.mark.usefixtures("trt")
def test_pixels_that_are_not_cast_first_are_refused(encoder):
    onnx.save(_encoder(cast=False), encoder)
    with pytest.raises(PlanError, match=r"ReduceMean pool/ReduceMean_1: uint8 must be cast first"):
        _build(encoder)


def test_a_failed_build_says_everything_that_tensorrt_said(trt, encoder):
    trt.behaviour.build_errors = [f"Error Code 10: no implementation for node {number}" for number in range(10)]
    with pytest.raises(PlanError, match=rf"TensorRT {trt.__version__} could not build encoder.onnx") as caught:
        _build(encoder)
    assert str(caught.value).count("no implementation for node") == 8
    assert str(caught.value).endswith("\n  and 2 more")
    assert not encoder.with_name("encoder.plan").exists()


def test_without_a_driver_the_reason_is_tensorrts_own(trt, encoder):
    trt.behaviour.no_driver = True
    with pytest.raises(PlanError, match="CUDA initialization failure with error: 35"):
        _build(encoder)


def test_warnings_are_kept_once_each(trt, encoder):
    trt.behaviour.build_warnings = ["weights affected by FP16 subnormals", "weights affected by FP16 subnormals", "b"]
    assert _build(encoder).warnings == ("weights affected by FP16 subnormals", "b")


@pytest.mark.usefixtures("trt")
def test_the_builders_progress_is_shown_from_the_outer_phase_to_the_inner_one(encoder):
    lines = []
    _build(encoder, show=lines.append)
    assert "Building engine 0/2 > Timing 2/3" in lines
    assert lines[-1] == "Building engine 1/2"


@pytest.mark.usefixtures("trt")
def test_ctrl_c_while_tensorrt_calls_us_stops_the_build_and_leaves_nothing(encoder):
    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _build(encoder, show=interrupted)
    assert not encoder.with_name("encoder.plan").exists()


def test_a_monitor_never_raises_into_tensorrt(trt):
    def interrupted(_):
        raise KeyboardInterrupt

    monitor = make_monitor(trt, progress := BuildProgress(interrupted))
    monitor.phase_start("a", None, 2)
    assert progress.cancelled
    assert monitor.step_complete("a", 0) is False
    monitor.phase_finish("a")
    monitor.phase_finish("never started")


# The timing cache


def test_the_next_build_gets_the_times_of_the_last_one(trt, encoder):
    assert "new timing cache" in _build(encoder).facts
    _build(encoder)
    first, second = (settings["timing_cache"] for settings in trt.behaviour.settings)
    assert b"conv" not in first
    assert first + b"conv 0.1 ms\n" == second
    assert [path.name for path in encoder.parent.iterdir() if "timing" in path.name] == ["x.timing"], (
        "no temporary file"
    )


@pytest.mark.parametrize("stored", [b"TIMING 9.9 Another GPU\n", b"\x00damaged"])
def test_a_timing_cache_that_does_not_fit_is_replaced_and_said(trt, encoder, stored):
    cache = encoder.with_name("x.timing")
    cache.write_bytes(stored)
    build = _build(encoder)
    assert "of another GPU or version, or damaged" in build.facts[0]
    assert cache.read_bytes().startswith(f"TIMING {trt.__version__} Fake GPU".encode())


@pytest.mark.usefixtures("trt")
def test_a_timing_cache_that_cannot_be_written_costs_time_and_not_the_plan(encoder):
    build = _build(encoder, cache=encoder.parent / "not there" / "x.timing")
    assert "timing cache not kept" in build.facts[1]
    assert encoder.with_name("encoder.plan").exists()


def test_machines_that_share_a_folder_keep_a_timing_cache_each(tmp_path):
    h100, h200 = (TensorRTHost(name, "sm_90", "11.1.0.106") for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H200"))
    assert timing_cache_file(tmp_path, h100).name == "tensorrt-11.1.0.106-sm_90-nvidia-h100-80gb-hbm3.timing"
    assert timing_cache_file(tmp_path, h100) != timing_cache_file(tmp_path, h200)
    assert timing_cache_file(tmp_path / "mine", h100) == tmp_path / "mine"


# Settings and the machine


def test_views_are_the_only_axis_of_the_profile():
    name, smallest, tuned, largest = profile_shapes(GRAPH, TensorRTConfig(opt_views=3, max_views=5))
    assert (name, smallest, tuned, largest) == (VIEWS, (1, *VIEW), (3, *VIEW), (5, *VIEW))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"opt_views": 0}, r"--tensorrt.opt-views is 0\. Use 1 or more"),
        ({"opt_views": 8, "max_views": 4}, r"--tensorrt.max-views is 4\. Use 8 \(--tensorrt.opt-views\) or more"),
        ({"workspace_mib": 0}, r"--tensorrt.workspace-mib is 0"),
        ({"optimization_level": 6}, r"--tensorrt.optimization-level is 6\. Use 0 to 5"),
    ],
)
def test_nonsense_is_refused_with_flag_value_and_cure(settings, said):
    with pytest.raises(ConfigError, match=said):
        TensorRTConfig(**settings)


def test_an_old_tensorrt_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.make_tensorrt("10.9.0.34"))
    with pytest.raises(PlanError, match=r"TensorRT 10\.9\.0\.34 is too old; 10.12 or later"):
        import_tensorrt()


def test_a_machine_without_tensorrt_is_told_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(PlanError, match="TensorRT cannot be imported"):
        find_host()


def test_a_log_keeps_errors_and_warnings_and_drops_the_rest():
    log = BuildLog()
    for severity in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
        log.add(severity, severity.lower())
    assert (log.errors, log.warnings) == (["internal_error", "error"], ["warning"])
    assert log.take_errors() == ["internal_error", "error"]
    assert log.errors == []


@pytest.mark.gpu
def test_the_real_tensorrt_builds_a_plan_that_answers_as_the_graph_does(tmp_path):
    pytest.importorskip("tensorrt")
    import onnxruntime

    from export.tensorrt_runner import TensorRTRunner
    from mvfoul.plan import PLAN, PlanSpec

    host = find_host()
    onnx.save(_encoder(), tmp_path / "encoder.onnx")
    _build(tmp_path / "encoder.onnx", opt_views=2, max_views=3)
    _build(tmp_path / "encoder.onnx", opt_views=2, max_views=3, version_compatible=True)
    spec = PlanSpec(
        PLAN, host.gpu_architecture, host.tensorrt_version, opt_views=2, max_views=3, version_compatible=True
    )
    runner = TensorRTRunner(tmp_path, spec, head=_NoHead())
    views = np.random.default_rng(0).integers(0, 256, (5, *VIEW), np.uint8)
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(runner.encode(views)[FEATURES], session.run(None, {VIEWS: views})[0], rtol=1e-3)
    assert runner.graphs[0].inputs == GRAPH.inputs


class _NoHead:
    graphs = (GRAPH, GRAPH)
