"""encoder.onnx as a TensorRT plan, for the GPU of this machine.

    encoder.onnx --parse--> strongly typed network --profile over N, limits--> builder --> encoder.plan

One code path for TensorRT 10.12 and later and for 11. What it relies on, checked against the bindings of 10.12.0.36,
10.16.1.11, 11.1.0.106 and 11.4.0.106 (their signatures are in tests/export/tensorrt_api.json) and against
https://docs.nvidia.com/deeplearning/tensorrt/11.0.0/api/migration/tensorrt-10x-to-11x.html:

- `NetworkDefinitionCreationFlag.STRONGLY_TYPED` is needed on 10, and accepted without effect on 11. It is bit 1 on 10
  and bit 0 on 11: always ask the module. `EXPLICIT_BATCH` is the only way since 10, and its name is gone in 11.
- `BuilderFlag.FP16` and all that goes with it are gone in 11: types are the graph's.
- `config.max_workspace_size` and `builder.build_engine` are gone since 10: `set_memory_pool_limit` and
  `build_serialized_network`, which returns None on failure, with the reasons in the log.
- uint8 is a type of inputs only, to be cast to float before anything else (DataType's documentation): the encoder's
  first node is that cast, which a test demands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from export.tensorrt_callbacks import BuildLog, BuildProgress, Show, make_logger, make_monitor
from export.tensorrt_config import MIN_VIEWS, TensorRTConfig
from export.tensorrt_host import import_tensorrt
from export.tensorrt_timing import attach_timing_cache, save_timing_cache
from mvfoul.artifact import GraphSpec
from mvfoul.errors import PlanError
from mvfoul.plan import HardwareCompatibility

Shape = tuple[int, ...]

_SHOWN: Final = 8
_LEVELS: Final[dict[HardwareCompatibility, str]] = {
    "none": "NONE",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
    "ampere-plus": "AMPERE_PLUS",
}


@dataclass(frozen=True)
class Build:
    """What a build had to say."""

    facts: tuple[str, ...]
    """For the line of the step."""
    warnings: tuple[str, ...]
    """TensorRT's own."""


def build_plan(
    encoder: Path, plan: Path, graph: GraphSpec, config: TensorRTConfig, *, timing_cache: Path, show: Show
) -> Build:
    """Build `plan` from `encoder`.

    Args:
        encoder: An ONNX file with the inputs and outputs of `graph`.
        plan: Written when all else is done.
        graph: Says the shape of a view.
        config: Profile and limits.
        timing_cache: Read if it is there, written after the build.
        show: Told how far the build is.

    Raises:
        PlanError: TensorRT cannot be imported, cannot parse the graph, or fails; with all its reasons.
        KeyboardInterrupt: Ctrl-C during the build.
        OSError: The plan cannot be written.
    """
    trt = import_tensorrt()
    log = BuildLog()
    logger = make_logger(trt, log)
    builder = _create(lambda: trt.Builder(logger), "a builder", log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, logger, encoder, log)
    options = builder.create_builder_config()
    _configure(trt, options, config)
    _add_profile(builder, options, graph, config)
    if log.errors:
        raise PlanError(_failure("TensorRT refuses a setting", log.errors))
    facts = [attach_timing_cache(options, timing_cache, log)]
    progress = BuildProgress(show)
    monitor = make_monitor(trt, progress)
    options.progress_monitor = monitor
    serialized = builder.build_serialized_network(network, options)
    if progress.cancelled:
        raise KeyboardInterrupt
    if serialized is None:
        raise PlanError(_failure(f"TensorRT {trt.__version__} could not build {encoder.name}", log.errors))
    facts.append(save_timing_cache(options, timing_cache))
    with plan.open("wb") as stream:
        stream.write(serialized)  # as it is: a memoryview of IHostMemory calls its bytes floats
    return Build(tuple(facts), tuple(log.warnings))


def profile_shapes(graph: GraphSpec, config: TensorRTConfig) -> tuple[str, Shape, Shape, Shape]:
    """Return the encoder's input and its smallest, tuned and largest shape: views are the only dynamic axis."""
    (views,) = graph.inputs
    view = tuple(int(length) for length in views.shape[1:])
    return views.name, (MIN_VIEWS, *view), (config.opt_views, *view), (config.max_views, *view)


def parser_errors(parser: Any) -> list[str]:
    """Return one sentence per error of a `tensorrt.OnnxParser`, with the node that it is about."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return [_located(error.desc(), error.node_operator(), error.node_name()) for error in errors]


def _located(description: str, operator: str, node: str) -> str:
    where = " ".join(part for part in (operator, node) if part)
    return f"{where}: {description}" if where else description


def _parse(trt: Any, network: Any, logger: Any, encoder: Path, log: BuildLog) -> None:
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(encoder)):
        reasons = parser_errors(parser) or log.errors
        raise PlanError(_failure(f"TensorRT {trt.__version__} cannot parse {encoder.name}", reasons))


def _configure(trt: Any, options: Any, config: TensorRTConfig) -> None:
    options.builder_optimization_level = config.optimization_level
    options.hardware_compatibility_level = getattr(
        trt.HardwareCompatibilityLevel, _LEVELS[config.hardware_compatibility]
    )
    if config.workspace_mib is not None:
        options.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace_mib << 20)
    if config.version_compatible:
        options.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)


def _add_profile(builder: Any, options: Any, graph: GraphSpec, config: TensorRTConfig) -> None:
    profile = builder.create_optimization_profile()
    name, smallest, tuned, largest = profile_shapes(graph, config)
    profile.set_shape(name, smallest, tuned, largest)
    if options.add_optimization_profile(profile) < 0:
        raise PlanError(f"TensorRT refuses the profile {smallest}, {tuned}, {largest} of {name}")


def _create(make: Callable[[], Any], what: str, log: BuildLog) -> Any:
    """Call a constructor of the bindings: without a usable driver it raises TypeError ("factory returned nullptr")."""
    try:
        return make()
    except TypeError as error:
        raise PlanError(_failure(f"TensorRT gives no {what.removeprefix('a ')}", log.errors or [str(error)])) from error


def _failure(what: str, reasons: list[str]) -> str:
    shown = reasons[:_SHOWN] + ([f"and {len(reasons) - _SHOWN} more"] if len(reasons) > _SHOWN else [])
    return f"{what}:" + ("\n  ".join(["", *shown]) if shown else " it gives no reason")
