"""The plan's place in the artifact: built by a stand-in for TensorRT that computes the graph in ONNX Runtime."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export import exit_codes
from export.__main__ import main
from export.add_plan import add_plan_to_artifact
from export.config import ExportConfig
from export.pipeline import export_checkpoint
from export.plan import AddPlanConfig
from export.plan import main as plan_main
from export.runners import OnnxRunner
from export.tensorrt_config import TensorRTConfig
from export.tensorrt_host import BuildHost
from export.tensorrt_plan import PARITY_PLAN
from export.tensorrt_runner import TensorRTRunner, split
from mvfoul.artifact import FEATURES, MANIFEST, MODEL_CARD, VIEWS, load_artifact, sha256_of
from mvfoul.errors import ArtifactError, ConfigError, PlanError
from mvfoul.plan import PLAN, PlanSpec, check_plan
from tests.export import fake_tensorrt

VERSION = "11.1.0.106"
HOST = BuildHost("Fake GPU", "sm_90", VERSION, device="cpu")


@pytest.fixture
def trt(monkeypatch):
    module = fake_tensorrt.make_tensorrt(VERSION)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture(scope="session")
def without_plan(tiny_checkpoint, tmp_path_factory, run_export):
    """`--fp16` where there is no TensorRT: what the command said, and the artifact."""
    folder = tmp_path_factory.mktemp("half")
    done = run_export("--ckpt", tiny_checkpoint, "--output", "artifact", "--fp16", cwd=folder)
    return done, folder / "artifact"


@pytest.fixture
def artifact(without_plan, tmp_path) -> Path:
    return shutil.copytree(without_plan[1], tmp_path / "artifact")


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.iterdir()}


# Where no plan can be built


def test_fp16_without_tensorrt_publishes_the_graph_and_exits_with_a_code_of_its_own(without_plan):
    done, artifact = without_plan
    assert done.returncode == exit_codes.NO_PLAN == 4
    assert done.stderr == ""
    manifest = load_artifact(artifact).manifest
    assert manifest.precision == "fp16"
    assert manifest.plan is None


def test_it_says_why_and_which_commands_build_the_plan(without_plan):
    done, artifact = without_plan
    assert re.search(r"\nNo TensorRT plan was built: (TensorRT cannot be imported|there is no CUDA GPU)", done.stdout)
    assert f"\n  python -m export.plan --artifact {artifact}\n" in done.stdout
    assert "\n  docker build --target export --tag vars-export .\n" in done.stdout
    assert f"--volume {artifact.parent}:/artifacts" in done.stdout
    assert "-m export.plan --artifact /artifacts/artifact\n" in done.stdout
    assert "k8s/export-job.yaml" in done.stdout


def test_where_tensorrt_fails_the_graph_is_published_and_allow_no_plan_makes_it_a_success(
    trt, tiny_checkpoint, tmp_path, monkeypatch, capsys
):
    trt.behaviour.build_errors = ["Error Code 9: out of tactics"]
    monkeypatch.setattr("export.pipeline.find_host", lambda: HOST)  # the machine has no GPU to be found
    flags = ["--ckpt", str(tiny_checkpoint), "--output", str(tmp_path / "a"), "--fp16", "--allow-no-plan"]
    monkeypatch.setattr("sys.argv", ["export", *flags])
    assert main() == 0
    said = capsys.readouterr().out
    assert f"No TensorRT plan was built: TensorRT {VERSION} could not build encoder.onnx" in said
    assert "Error Code 9: out of tactics" in said
    manifest = load_artifact(tmp_path / "a").manifest
    assert manifest.plan is None
    assert not {PLAN, PARITY_PLAN} & set(manifest.files)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["allow_no_plan"] is True


@pytest.mark.parametrize("flags", [{"allow_no_plan": True}, {"tensorrt": TensorRTConfig(max_views=8)}])
def test_flags_of_the_plan_are_refused_without_fp16(flags):
    with pytest.raises(ConfigError, match=r"add --fp16"):
        ExportConfig(ckpt=Path("best.pth.tar"), **flags)


# --fp16 with TensorRT at hand


def test_an_export_with_tensorrt_publishes_a_plan_that_was_compared_with_pytorch(
    trt, tiny_checkpoint, tmp_path, capsys
):
    config = ExportConfig(
        ckpt=tiny_checkpoint,
        output=tmp_path / "artifact",
        fp16=True,
        tensorrt=TensorRTConfig(opt_views=2, max_views=5, timing_cache=tmp_path / "x.timing"),
    )
    outcome = export_checkpoint(config, host=HOST)
    manifest = load_artifact(tmp_path / "artifact").manifest
    assert replace(manifest.plan, parity={}) == PlanSpec(
        PLAN, "sm_90", VERSION, gpu="Fake GPU", min_views=1, opt_views=2, max_views=5
    )
    assert manifest.plan.parity["passed"] is True
    assert manifest.plan.parity["candidate"] == f"TensorRT {VERSION}"
    assert {PLAN, PARITY_PLAN} <= set(manifest.files)
    report = json.loads((tmp_path / "artifact" / PARITY_PLAN).read_text())
    assert report["reference"].startswith("PyTorch")
    assert "golden.npz" in {check["name"] for check in report["checks"]}
    assert max(trt.behaviour.calls) == 5, "8 views went in two calls"
    assert outcome.plan.missing == ""
    assert (tmp_path / "x.timing").exists()
    said = capsys.readouterr().out
    assert f"TensorRT {VERSION}, Fake GPU, new timing cache" in said


def test_a_plan_that_answers_wrongly_publishes_nothing(trt, tiny_checkpoint, tmp_path, capsys):
    trt.behaviour.noise = 0.5
    cache = tmp_path / "x.timing"
    config = ExportConfig(
        ckpt=tiny_checkpoint, output=tmp_path / "artifact", fp16=True, tensorrt=TensorRTConfig(timing_cache=cache)
    )
    outcome = export_checkpoint(config, host=HOST)
    assert outcome.artifact is None
    assert not (tmp_path / "artifact").exists()
    evidence = {path.name for path in outcome.directory.iterdir()}
    assert {PLAN, PARITY_PLAN, "encoder.onnx"} <= evidence
    assert MANIFEST not in evidence
    said = capsys.readouterr().out
    assert "nothing is published" in said
    assert "FAILED FEATURES: min_cosine is" in said


# python -m export.plan


def test_a_plan_is_added_as_a_new_version_and_nothing_else_changes(trt, artifact, capsys):
    before, old = _hashes(artifact), load_artifact(artifact)
    trt.behaviour.build_warnings = [f"warning {number}" for number in range(5)]
    new = add_plan_to_artifact(AddPlanConfig(artifact=artifact), host=HOST)
    assert new is not None
    assert new.version != old.version
    after = _hashes(artifact)
    assert {name for name in after if after[name] != before.get(name)} == {MANIFEST, MODEL_CARD, PLAN, PARITY_PLAN}
    assert _hashes(artifact.with_name("artifact.previous")) == before
    manifest = load_artifact(artifact).manifest
    assert manifest.plan.tensorrt_version == VERSION
    assert manifest.versions["tensorrt"] == VERSION
    assert manifest.origin == old.manifest.origin
    assert check_plan(manifest.plan, HOST) == ()
    said = capsys.readouterr().out
    assert "TensorRT warns: warning 2\n    and 2 more warnings" in said
    assert f"Published {artifact}" in said
    names = {path.name for path in artifact.parent.iterdir()}
    assert names == {"artifact", "artifact.previous", f"tensorrt-{VERSION}-sm_90-fake-gpu.timing"}


def test_a_plan_replaces_an_older_one(trt, artifact):
    add_plan_to_artifact(AddPlanConfig(artifact=artifact), host=HOST)
    first = load_artifact(artifact)
    add_plan_to_artifact(AddPlanConfig(artifact=artifact, tensorrt=TensorRTConfig(max_views=32)), host=HOST)
    second = load_artifact(artifact).manifest
    assert (first.manifest.plan.max_views, second.plan.max_views) == (16, 32)
    assert set(second.files) == set(first.manifest.files)
    assert len(trt.behaviour.settings) == 2


def test_a_wrong_plan_leaves_the_artifact_as_it_was_and_exits_with_3(trt, artifact, monkeypatch, capsys):
    before = _hashes(artifact)
    trt.behaviour.noise = 0.5
    monkeypatch.setattr("export.add_plan.find_host", lambda: HOST)  # the machine has no GPU to be found
    monkeypatch.setattr("sys.argv", ["export.plan", "--artifact", str(artifact)])
    assert plan_main() == exit_codes.PARITY_FAILED == 3
    assert _hashes(artifact) == before
    said = capsys.readouterr().out
    assert f"The same again: python -m export.plan --artifact {artifact}" in said


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ({"build_errors": ["Error Code 9: out of tactics"]}, "out of tactics"),
        ({"unsupported_operators": {"Conv"}}, r"Conv \S+/Conv_\d+: operator is not supported"),
        ({"no_memory": True}, r"no GPU memory to run encoder.plan .*\(out of memory\)"),
    ],
)
def test_when_tensorrt_fails_the_artifact_stays_and_its_reasons_are_said(trt, artifact, trouble, said):
    before = _hashes(artifact)
    trt.behaviour.__dict__.update(trouble)
    with pytest.raises(PlanError, match=rf"(?s)no plan was built, and the artifact is as it was: .*{said}") as caught:
        add_plan_to_artifact(AddPlanConfig(artifact=artifact), host=HOST)
    assert caught.value.exit_code == exit_codes.NO_PLAN
    assert _hashes(artifact) == before
    assert not list(artifact.parent.glob("*.work-*"))


def test_only_an_encoder_in_float16_gets_a_plan(tiny_artifact):
    with pytest.raises(ConfigError, match=r"encoder in fp32; .*python -m export --ckpt best.pth.tar --fp16"):
        add_plan_to_artifact(AddPlanConfig(artifact=tiny_artifact), host=HOST)


def test_a_damaged_artifact_gets_no_plan(artifact):
    with (artifact / "encoder.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ArtifactError, match=r"encoder\.onnx has SHA-256"):
        add_plan_to_artifact(AddPlanConfig(artifact=artifact), host=HOST)


def test_the_command_without_a_gpu_says_why_and_where_to_build_instead(artifact, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr("sys.argv", ["export.plan", "--artifact", str(artifact)])
    assert plan_main() == exit_codes.NO_PLAN
    said = capsys.readouterr().err
    assert said.startswith("error: no plan can be built here: TensorRT cannot be imported")
    assert "docker build --target export" in said


def test_help_is_the_golden_text(run_export, tmp_path, repo_root):
    """Changed on purpose? `COLUMNS=100 NO_COLOR=1 python -m export.plan --help > tests/export/golden/plan_help.txt`."""
    shown = run_export("--help", cwd=tmp_path, module="export.plan")
    assert shown.returncode == 0
    assert shown.stdout == (repo_root / "tests" / "export" / "golden" / "plan_help.txt").read_text()


# The plan as an engine


def test_a_plan_that_another_version_built_is_refused_by_name(trt, artifact, monkeypatch):
    add_plan_to_artifact(AddPlanConfig(artifact=artifact), host=HOST)
    plan = load_artifact(artifact).manifest.plan
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.make_tensorrt("10.16.1.11"))
    with pytest.raises(PlanError, match=r"TensorRT cannot load \S+encoder.plan: Version tag does not match"):
        TensorRTRunner(artifact, plan, OnnxRunner(artifact), device="cpu")
    assert trt.behaviour.calls


def test_a_version_compatible_plan_is_loaded_with_its_own_code_allowed(trt, artifact):
    config = AddPlanConfig(artifact=artifact, tensorrt=TensorRTConfig(version_compatible=True))
    assert add_plan_to_artifact(config, host=HOST) is not None
    assert load_artifact(artifact).manifest.plan.version_compatible
    assert trt.behaviour.calls


@pytest.mark.usefixtures("trt")
def test_more_views_than_the_profile_takes_give_the_same_features(artifact):
    add_plan_to_artifact(AddPlanConfig(artifact=artifact, tensorrt=TensorRTConfig(opt_views=1, max_views=2)), host=HOST)
    manifest, graphs = load_artifact(artifact).manifest, OnnxRunner(artifact)
    runner = TensorRTRunner(artifact, manifest.plan, graphs, device="cpu")
    views = np.random.default_rng(0).integers(0, 256, (5, *manifest.clip.view_shape), np.uint8)
    np.testing.assert_allclose(runner.encode(views)[FEATURES], graphs.encode(views)[FEATURES], rtol=1e-3, atol=1e-3)
    encoder, head = runner.graphs
    assert encoder.inputs == manifest.encoder.inputs
    assert encoder.outputs == manifest.encoder.outputs
    assert head == graphs.graphs[1]
    with pytest.raises(PlanError, match=r"TensorRT refuses 9 views: VIEWS: 9 is not in the profile's \[1, 2\]"):
        runner._encode(np.concatenate([views, views[:4]]))


@pytest.mark.parametrize(("views", "sizes"), [(0, [0]), (1, [1]), (4, [4]), (9, [4, 4, 1])])
def test_views_are_cut_into_parts_that_the_profile_takes(views, sizes):
    assert [len(part) for part in split(np.zeros((views, 1), np.uint8), 4)] == sizes


def test_the_graph_casts_its_pixels_first_as_tensorrt_demands(without_plan):
    import onnx

    graph = onnx.load(without_plan[1] / "encoder.onnx").graph
    assert {node.op_type for node in graph.node if VIEWS in node.input} == {"Cast"}
