"""The three `config.pbtxt`, built as messages of Triton's own protobuf, from the manifest and the flags.

Names, shapes and datatypes come from the manifest only. The encoder and the head have one configuration for all their
versions, so nothing of a single artifact stands in it; the ensemble has one version, and names the artifact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mvfoul.artifact import (
    ACTION_PROBABILITIES,
    FEATURES,
    OFFENCE_SEVERITY_PROBABILITIES,
    VIEW_WEIGHTS,
    VIEWS,
    Artifact,
    GraphSpec,
    TensorSpec,
)
from mvfoul.errors import ArtifactError, ConfigError
from mvfoul.plan import TensorRTHost, check_plan
from serving.repository.config import BULK, LIVE, RepositoryConfig

CONFIG: Final = "config.pbtxt"
ANSWERS: Final = (ACTION_PROBABILITIES, OFFENCE_SEVERITY_PROBABILITIES, VIEW_WEIGHTS)
DEFAULT_MAX_BATCH: Final = 16
"""assumption: three actions of five views; measure with your traffic and GPU."""

_DATATYPES: Final[Mapping[str, str]] = {
    "uint8": "TYPE_UINT8",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
}
_MODEL_FILES: Final = {"tensorrt": "model.plan", "onnxruntime": "model.onnx", "python": "model.py"}


@dataclass(frozen=True)
class ModelNames:
    """The names of the three models."""

    ensemble: str

    @property
    def encoder(self) -> str:
        """Views to features, batched."""
        return f"{self.ensemble}_encoder"

    @property
    def head(self) -> str:
        """Features of one action to probabilities."""
        return f"{self.ensemble}_head"


def artifact_version(version: int) -> str:
    """Return the artifact's version of a version folder."""
    return f"{version:012x}"


def largest_batch(artifact: Artifact, config: RepositoryConfig) -> int:
    """Return the most views in one call of the encoder.

    Raises:
        ArtifactError: There is no plan, or none that runs on the target; says the cure.
        ConfigError: The size asked for is too large for the plan or too small for an action.
    """
    views = artifact.manifest.clip.max_views
    limit = _plan_limit(artifact, config) if config.encoder == "tensorrt" else None
    size = config.max_batch or limit or max(DEFAULT_MAX_BATCH, views)
    if limit and size > limit:
        raise ConfigError(
            f"--max-batch is {size}; {artifact.directory / 'encoder.plan'} was built for at most {limit} views. "
            "Use less, or build it again: python -m export.plan --artifact DIR"
        )
    if size < views:
        raise ConfigError(
            f"the largest batch is {size} views, and one action of this artifact has up to {views}: its request would "
            "be refused. Use a larger --max-batch, or a plan for more views."
        )
    if too_large := [wanted for wanted in config.preferred if wanted > size]:
        raise ConfigError(f"--preferred has {too_large}; the largest batch is {size}.")
    return size


def _plan_limit(artifact: Artifact, config: RepositoryConfig) -> int:
    plan = artifact.manifest.plan
    if plan is None:
        raise ArtifactError(
            f"{artifact.directory} has no TensorRT plan. Build one on the GPU that will serve it: python -m export.plan"
            f" --artifact {artifact.directory}; or choose --encoder onnxruntime or --encoder python."
        )
    if config.target_gpu or config.target_tensorrt:
        host = TensorRTHost(
            plan.gpu, config.target_gpu or plan.gpu_architecture, config.target_tensorrt or plan.tensorrt_version
        )
        check_plan(plan, host)
    if plan.min_views > 1:
        raise ArtifactError(
            f"{artifact.directory / plan.file} takes at least {plan.min_views} views in one call, and an action can"
            " have one. Build it again: python -m export.plan --artifact DIR"
        )
    return plan.max_views


def build_configs(artifact: Artifact, config: RepositoryConfig) -> dict[str, Any]:
    """Return the `ModelConfig` of each of the three models, by name; raises as `largest_batch` does."""
    names = ModelNames(config.name)
    return {
        names.encoder: _encoder(artifact, config, names),
        names.head: _head(artifact, config, names),
        names.ensemble: _ensemble(artifact, config, names),
    }


def messages() -> Any:
    """Return Triton's own protobuf messages.

    Imported late: they share names with KServe's, and one process cannot have both.
    """
    from tritonclient.grpc import model_config_pb2

    return model_config_pb2


def _encoder(artifact: Artifact, config: RepositoryConfig, names: ModelNames) -> Any:
    graph, size = artifact.manifest.encoder, largest_batch(artifact, config)
    message = messages().ModelConfig(name=names.encoder, max_batch_size=size)
    _set_backend(message, config.encoder)
    _add_tensors(message, graph, outputs=(FEATURES,), batched=True)
    message.version_policy.all.SetInParent()
    message.instance_group.append(_encoder_instances(config))
    _set_batching(message.dynamic_batching, artifact, config, size)
    if not config.no_warm_up:
        message.model_warmup.extend(_warm_up(graph.inputs[0], batch) for batch in sorted({1, size}))
    if config.on_cpu:
        _set_threads(message, graph.file, threads=config.threads)
    if config.response_cache:
        message.response_cache.enable = True
    _set_histogram(message, config)
    return message


def _head(artifact: Artifact, config: RepositoryConfig, names: ModelNames) -> Any:
    """The head answers actions one by one: its rows are the views of one action, not a batch."""
    kind = "python" if config.encoder == "python" else "onnxruntime"
    message = messages().ModelConfig(name=names.head, max_batch_size=0)
    _set_backend(message, kind)
    _add_tensors(message, artifact.manifest.head, outputs=ANSWERS, batched=False)
    message.version_policy.all.SetInParent()
    message.instance_group.add(kind=messages().ModelInstanceGroup.KIND_CPU, count=1)
    # A tiny graph: more threads would only wait for each other.
    _set_threads(message, artifact.manifest.head.file, threads=1)
    if kind == "python":
        message.parameters["max_rows"].string_value = str(artifact.manifest.clip.max_views)
    _set_histogram(message, config)
    return message


def _ensemble(artifact: Artifact, config: RepositoryConfig, names: ModelNames) -> Any:
    """VIEWS of one action are one request to the encoder, as its batch; so nothing is batched here."""
    version = artifact.model_version
    message = messages().ModelConfig(name=names.ensemble, platform="ensemble", max_batch_size=0)
    _add_tensors(message, artifact.manifest.encoder, outputs=(), batched=False)
    _add_tensors(message, artifact.manifest.head, inputs=(), outputs=ANSWERS, batched=False)
    # One version: the steps below belong to it. Naming it makes replacing this file the moment of the change.
    message.version_policy.specific.versions.append(version)
    message.parameters["artifact_version"].string_value = artifact.version
    encoder = message.ensemble_scheduling.step.add(model_name=names.encoder, model_version=version)
    encoder.input_map[VIEWS] = VIEWS
    encoder.output_map[FEATURES] = FEATURES
    head = message.ensemble_scheduling.step.add(model_name=names.head, model_version=version)
    head.input_map[FEATURES] = FEATURES
    for name in ANSWERS:
        head.output_map[name] = name
    _set_histogram(message, config)
    return message


def _set_backend(message: Any, kind: str) -> None:
    message.default_model_filename = _MODEL_FILES[kind]
    if kind == "tensorrt":
        message.platform = "tensorrt_plan"
    message.backend = kind


def _add_tensors(
    message: Any,
    graph: GraphSpec,
    *,
    outputs: tuple[str, ...],
    inputs: tuple[str, ...] = (VIEWS, FEATURES),
    batched: bool,
) -> None:
    """Add those of the graph's tensors that are named; a batched model leaves the first axis to Triton."""
    for fields, tensors, wanted in ((message.input, graph.inputs, inputs), (message.output, graph.outputs, outputs)):
        for tensor in tensors:
            if tensor.name in wanted:
                fields.add(name=tensor.name, data_type=datatype(tensor), dims=_dims(tensor)[int(batched) :])


def datatype(tensor: TensorSpec) -> int:
    """Return Triton's number for a tensor's numpy dtype.

    Raises:
        ArtifactError: Triton's configuration has no name for it here.
    """
    if tensor.dtype not in _DATATYPES:
        raise ArtifactError(f"{tensor.name} is {tensor.dtype}; known: {', '.join(_DATATYPES)}. Export again.")
    return int(messages().DataType.Value(_DATATYPES[tensor.dtype]))


def _dims(tensor: TensorSpec) -> list[int]:
    return [axis if isinstance(axis, int) else -1 for axis in tensor.shape]


def _encoder_instances(config: RepositoryConfig) -> Any:
    group = messages().ModelInstanceGroup
    kind = group.KIND_CPU if config.on_cpu else group.KIND_GPU
    return group(kind=kind, count=config.instances, gpus=config.gpu_numbers)


def _set_batching(batching: Any, artifact: Artifact, config: RepositoryConfig, size: int) -> None:
    plan = artifact.manifest.plan
    fastest = plan.opt_views if plan and config.encoder == "tensorrt" else size
    batching.preferred_batch_size.extend(sorted(config.preferred or {min(fastest, size), size}))
    batching.max_queue_delay_microseconds = config.queue_delay_us
    batching.priority_levels, batching.default_priority_level = BULK, LIVE
    live = (config.max_queue, config.queue_timeout_ms)
    bulk = (config.bulk_max_queue, config.bulk_queue_timeout_ms)
    _set_queue(batching.default_queue_policy, *live)
    _set_queue(batching.priority_queue_policy[LIVE], *live)
    _set_queue(batching.priority_queue_policy[BULK], *bulk)


def _set_queue(policy: Any, size: int, timeout_ms: int) -> None:
    policy.timeout_action = messages().ModelQueuePolicy.REJECT
    policy.default_timeout_microseconds = timeout_ms * 1000
    policy.allow_timeout_override = True
    policy.max_queue_size = size


def _warm_up(tensor: TensorSpec, batch: int) -> Any:
    """Noise rather than zeros: a graph of zeros can take short cuts."""
    message = messages().ModelWarmup(name=f"batch of {batch}", batch_size=batch, count=1)
    values = message.inputs[tensor.name]
    values.data_type = datatype(tensor)
    values.dims.extend(_dims(tensor)[1:])
    values.random_data = True
    return message


def _set_threads(message: Any, graph: str, *, threads: int) -> None:
    """Triton's own ONNX Runtime backend and our python model have different names for the same settings."""
    if message.backend == "python":
        message.parameters["graph"].string_value = graph
        message.parameters["threads"].string_value = str(threads)
    elif threads:
        message.parameters["intra_op_thread_count"].string_value = str(threads)
        message.parameters["inter_op_thread_count"].string_value = "1"


def _set_histogram(message: Any, config: RepositoryConfig) -> None:
    """Only where asked for: an older Triton (2.51 is one) refuses a configuration with this field."""
    if config.latency_buckets_ms:
        control = message.model_metrics.metric_control.add()
        control.metric_identifier.family = "nv_inference_first_response_histogram_ms"
        control.histogram_options.buckets.extend(config.latency_buckets_ms)
