"""How the engines of an artifact are set up, so that export compares and serving runs the same thing.

Only settings: this package imports no engine.
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

EngineName = Literal["onnxruntime", "openvino"]
ENGINE_NAMES: Final[tuple[EngineName, ...]] = get_args(EngineName)

ONNXRUNTIME_PROVIDERS: Final = ("CPUExecutionProvider",)


def configure_onnxruntime(options: Any, *, threads: int) -> Any:
    """Set the `onnxruntime.SessionOptions` that all our sessions have, and return them.

    The same input gives the same bits every time: one operator after the other, kernels that sum in one order.
    measured (benchmarks/session_options.py): no other option makes an encoder faster by more than the noise; without
    the memory arena it takes 1.1 to 1.2 times as long.

    Args:
        options: Changed in place.
        threads: Per operator; 0 for one per core.
    """
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    # Idle threads that spin take the CPU from the decoders, and from an engine that runs in turns with this one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Errors only. A warning per node that no CPU kernel folds (float16) would bury what matters; it changes no answer.
    options.log_severity_level = 3
    return options


def openvino_properties(*, threads: int) -> dict[str, Any]:
    """Return the properties with which OpenVINO compiles a graph for the CPU.

    Args:
        threads: 0 for one per core.
    """
    properties: dict[str, Any] = {
        # Left to itself OpenVINO computes float32 graphs in bfloat16 where the CPU can: features off by 1e-2.
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    return {**properties, "INFERENCE_NUM_THREADS": threads} if threads else properties
