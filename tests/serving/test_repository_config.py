"""What stands in config.pbtxt, by Triton's own protobuf, for every kind of encoder; and what is refused."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from mvfoul.artifact import FEATURES, VIEWS, load_artifact
from mvfoul.errors import ArtifactError, ConfigError
from serving.repository.config import RepositoryConfig
from serving.repository.model_config import artifact_version
from tests.serving.altered_artifact import with_plan

PROTO = model_config_pb2
MODELS = ("mvfoul_encoder", "mvfoul_head", "mvfoul")


@pytest.fixture(scope="module")
def planned_artifact(tiny_artifact, tmp_path_factory):
    """`planned_artifact(max_views=16)`: the tiny artifact with bytes that stand for a plan; fields of `PlanSpec`."""

    return lambda **fields: with_plan(tiny_artifact, tmp_path_factory.mktemp("planned") / "artifact", **fields)


@pytest.fixture
def written(write_repository, tmp_path):
    """`written(encoder="onnxruntime", ...)`: write a repository and return its configurations, by model."""

    def write(**fields):
        write_repository(tmp_path / "models", **{"max_batch": 0, "threads": 0, "no_self_test": True, **fields})
        return {name: read_config(tmp_path / "models" / name) for name in MODELS}

    return write


def read_config(folder):
    return text_format.Parse((folder / "config.pbtxt").read_text(), PROTO.ModelConfig())


def tensors(fields):
    return [(tensor.name, PROTO.DataType.Name(tensor.data_type), tuple(tensor.dims)) for tensor in fields]


def files(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("encoder", "head_backend", "encoder_files", "head_files"),
    [
        ("tensorrt", "onnxruntime", {"model.plan"}, {"model.onnx"}),
        ("onnxruntime", "onnxruntime", {"model.onnx"}, {"model.onnx"}),
        (
            "python",
            "python",
            {"model.py", "engines.py", "encoder.onnx", "__pycache__"},
            {"model.py", "engines.py", "head.onnx", "__pycache__"},
        ),
    ],
)
def test_each_kind_of_encoder_has_its_backend_files_and_the_tensors_of_the_manifest(
    written, planned_artifact, tmp_path, encoder, head_backend, encoder_files, head_files
):
    artifact = load_artifact(planned_artifact())
    configs = written(encoder=encoder, artifact=artifact.directory)
    version, view = str(artifact.model_version), artifact.manifest.clip.view_shape
    model, head, ensemble = (configs[name] for name in MODELS)
    assert [config.name for config in (model, head, ensemble)] == list(MODELS)
    assert (model.backend, head.backend, ensemble.platform) == (encoder, head_backend, "ensemble")
    assert model.default_model_filename in encoder_files
    assert head.default_model_filename in head_files
    assert (model.max_batch_size, head.max_batch_size, ensemble.max_batch_size) == (16, 0, 0)
    assert tensors(model.input) == [(VIEWS, "TYPE_UINT8", view)]
    assert tensors(model.output) == [(FEATURES, "TYPE_FP32", (512,))]
    assert tensors(head.input) == [(FEATURES, "TYPE_FP32", (-1, 512))]
    answers = [
        ("ACTION_PROBABILITIES", "TYPE_FP32", (8,)),
        ("OFFENCE_SEVERITY_PROBABILITIES", "TYPE_FP32", (4,)),
        ("VIEW_WEIGHTS", "TYPE_FP32", (-1,)),
    ]
    assert tensors(head.output) == tensors(ensemble.output) == answers
    assert tensors(ensemble.input) == [(VIEWS, "TYPE_UINT8", (-1, *view))]
    root = tmp_path / "models"
    assert files(root / "mvfoul_encoder" / version) == {*encoder_files, "artifact.json"}
    assert files(root / "mvfoul_head" / version) == {*head_files, "artifact.json"}


def test_the_ensemble_is_pinned_to_the_version_that_is_the_artifact(written, artifact):
    ensemble = written()["mvfoul"]
    version = int(artifact.version, 16)
    assert list(ensemble.version_policy.specific.versions) == [version]
    assert ensemble.parameters["artifact_version"].string_value == artifact.version == artifact_version(version)
    steps = ensemble.ensemble_scheduling.step
    assert [(step.model_name, step.model_version) for step in steps] == [
        ("mvfoul_encoder", version),
        ("mvfoul_head", version),
    ]
    assert (dict(steps[0].output_map), dict(steps[1].input_map)) == ({FEATURES: FEATURES}, {FEATURES: FEATURES})


def test_encoder_and_head_serve_all_their_versions_and_say_nothing_of_one_artifact(written, artifact):
    configs = written()
    for name in ("mvfoul_encoder", "mvfoul_head"):
        assert configs[name].version_policy.WhichOneof("policy_choice") == "all"
        assert artifact.version not in text_format.MessageToString(configs[name])


def test_batching_queues_and_priorities_are_those_of_the_flags(written):
    batching = written(
        max_batch=12, preferred=(8, 4), queue_delay_us=300, max_queue=7, queue_timeout_ms=20, bulk_max_queue=9,
        bulk_queue_timeout_ms=90,
    )["mvfoul_encoder"].dynamic_batching  # fmt: skip
    assert list(batching.preferred_batch_size) == [4, 8]
    assert batching.max_queue_delay_microseconds == 300
    assert (batching.priority_levels, batching.default_priority_level) == (2, 1)
    policies = [batching.default_queue_policy, *(batching.priority_queue_policy[level] for level in (1, 2))]
    assert [policy.max_queue_size for policy in policies] == [7, 7, 9]
    assert [policy.default_timeout_microseconds for policy in policies] == [20_000, 20_000, 90_000]
    assert all(policy.allow_timeout_override for policy in policies)
    assert {policy.timeout_action for policy in policies} == {PROTO.ModelQueuePolicy.REJECT}


def test_warm_up_is_a_batch_of_one_and_one_of_the_largest_size(written, artifact):
    warm_up = written(max_batch=6)["mvfoul_encoder"].model_warmup
    assert [sample.batch_size for sample in warm_up] == [1, 6]
    for sample in warm_up:
        assert tuple(sample.inputs[VIEWS].dims) == artifact.manifest.clip.view_shape
        assert sample.inputs[VIEWS].random_data


@pytest.mark.parametrize(
    ("fields", "kind", "gpus", "count"),
    [
        ({"encoder": "python"}, "KIND_CPU", [], 1),
        ({"encoder": "onnxruntime"}, "KIND_GPU", [], 1),
        ({"encoder": "onnxruntime", "gpus": "none", "instances": 2}, "KIND_CPU", [], 2),
        ({"encoder": "onnxruntime", "gpus": "0,3", "instances": 2}, "KIND_GPU", [0, 3], 2),
        ({"encoder": "onnxruntime", "gpus": "all"}, "KIND_GPU", [], 1),
    ],
)
def test_instances_are_where_the_flags_say(written, fields, kind, gpus, count):
    configs = written(**fields)
    (group,) = configs["mvfoul_encoder"].instance_group
    assert (PROTO.ModelInstanceGroup.Kind.Name(group.kind), list(group.gpus), group.count) == (kind, gpus, count)
    (head,) = configs["mvfoul_head"].instance_group
    assert head.kind == PROTO.ModelInstanceGroup.KIND_CPU


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({"encoder": "python", "threads": 3}, {"graph": "encoder.onnx", "threads": "3"}),
        ({"encoder": "python"}, {"graph": "encoder.onnx", "threads": "0"}),
        (
            {"encoder": "onnxruntime", "gpus": "none", "threads": 3},
            {"intra_op_thread_count": "3", "inter_op_thread_count": "1"},
        ),
        ({"encoder": "onnxruntime"}, {}),
    ],
)
def test_threads_reach_the_backend_in_its_own_words(written, fields, parameters):
    found = written(**fields)["mvfoul_encoder"].parameters
    assert {name: value.string_value for name, value in found.items()} == parameters


def test_cache_warm_up_and_buckets_are_options(written):
    plain = written()["mvfoul_encoder"]
    assert not plain.response_cache.enable
    # Triton 2.51 refuses a configuration that has this field.
    assert not plain.HasField("model_metrics")
    chosen = written(response_cache=True, no_warm_up=True, latency_buckets_ms=(1.0, 5.0))
    assert chosen["mvfoul_encoder"].response_cache.enable
    assert not chosen["mvfoul_encoder"].model_warmup
    for config in chosen.values():
        (control,) = config.model_metrics.metric_control
        assert list(control.histogram_options.buckets) == [1.0, 5.0]


def test_a_plan_decides_the_batch_sizes(written, planned_artifact):
    encoder = written(encoder="tensorrt", artifact=planned_artifact(opt_views=6, max_views=20))["mvfoul_encoder"]
    assert encoder.max_batch_size == 20
    assert list(encoder.dynamic_batching.preferred_batch_size) == [6, 20]
    assert [sample.batch_size for sample in encoder.model_warmup] == [1, 20]


def test_a_missing_plan_is_refused_with_its_cure(written):
    with pytest.raises(ArtifactError, match=r"no TensorRT plan.*python -m export\.plan.*--encoder onnxruntime"):
        written(encoder="tensorrt")


@pytest.mark.parametrize(
    ("plan", "fields", "message"),
    [
        ({}, {"target_gpu": "sm_80"}, "built for sm_90 and this GPU is sm_80"),
        ({}, {"target_tensorrt": "10.16.0.1"}, r"built with TensorRT 11\.1\.0\.106 and here is 10\.16\.0\.1"),
        ({"min_views": 2}, {}, "at least 2 views in one call"),
    ],
)
def test_a_plan_for_something_else_is_refused(written, planned_artifact, plan, fields, message):
    with pytest.raises(ArtifactError, match=f"{message}.*python -m export"):
        written(encoder="tensorrt", artifact=planned_artifact(**plan), **fields)


@pytest.mark.parametrize(
    ("plan", "max_batch", "message"),
    [
        ({"max_views": 8}, 9, "built for at most 8 views"),
        ({"opt_views": 2, "max_views": 4}, 0, "one action of this artifact has up to 5"),
    ],
)
def test_a_batch_that_a_plan_or_an_action_does_not_allow_is_refused(
    written, planned_artifact, plan, max_batch, message
):
    with pytest.raises(ConfigError, match=message):
        written(encoder="tensorrt", artifact=planned_artifact(**plan), max_batch=max_batch)


def test_preferred_sizes_above_the_largest_batch_are_refused(written):
    with pytest.raises(ConfigError, match=r"--preferred has \[9\]; the largest batch is 8"):
        written(max_batch=8, preferred=(4, 9))


def test_plans_of_two_versions_share_the_smaller_batch(written, planned_artifact):
    written(encoder="tensorrt", artifact=planned_artifact(max_views=8))
    with pytest.raises(ConfigError, match=r"plan for at most 8 views\. Use --max-batch 8"):
        written(encoder="tensorrt", artifact=planned_artifact(max_views=16))
    configs = written(encoder="tensorrt", artifact=planned_artifact(max_views=16), max_batch=8)
    assert configs["mvfoul_encoder"].max_batch_size == 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"artifact": None}, "--artifact is None"),
        ({"name": "a/b"}, "--name is 'a/b'"),
        ({"gpus": "first"}, "--gpus is 'first'"),
        ({"encoder": "python", "gpus": "0"}, "--encoder python computes on the CPU"),
        ({"encoder": "tensorrt", "gpus": "none"}, "TensorRT needs one"),
        ({"instances": 0}, "--instances is 0"),
        ({"threads": -1}, "--threads is -1"),
        ({"encoder": "onnxruntime", "threads": 2}, "--threads is 2"),
        ({"max_batch": -1}, "--max-batch is -1"),
        ({"preferred": (0,)}, r"--preferred is \(0,\)"),
        ({"queue_delay_us": -1}, "--queue-delay-us is -1"),
        ({"max_queue": 0}, "--max-queue is 0"),
        ({"bulk_max_queue": 0}, "--bulk-max-queue is 0"),
        ({"queue_timeout_ms": 0}, "--queue-timeout-ms is 0"),
        ({"bulk_queue_timeout_ms": 0}, "--bulk-queue-timeout-ms is 0"),
        ({"latency_buckets_ms": (5.0, 1.0)}, "--latency-buckets-ms is"),
        ({"prune": ("12",)}, "--prune is '12'"),
        ({"keep": -1}, "--keep is -1"),
    ],
)
def test_a_senseless_flag_is_refused_by_name_and_value(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        RepositoryConfig(**{"artifact": tmp_path, "output": tmp_path, "encoder": "python", **fields})
