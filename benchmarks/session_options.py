"""What each option of an ONNX Runtime session gives: paired, alternating runs of one encoder.

python benchmarks/session_options.py ENCODER.onnx [--rounds 7] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

Change = Callable[[Any], object]


def entry(key: str, value: str) -> Change:
    return lambda options: options.add_session_config_entry(key, value)


def attribute(name: str, value: object) -> Change:
    return lambda options: setattr(options, name, value)


LEVELS = onnxruntime.GraphOptimizationLevel
CHANGES: dict[str, Change] = {
    "as served": lambda _: None,
    "threads spin": entry("session.intra_op.allow_spinning", "1"),
    "kernels need not be deterministic": attribute("use_deterministic_compute", False),
    "denormals are zero": entry("session.set_denormal_as_zero", "1"),
    "no memory arena": attribute("enable_cpu_mem_arena", False),
    "no memory pattern": attribute("enable_mem_pattern", False),
    "no prepacked weights": entry("session.disable_prepacking", "1"),
    "basic graph optimisation": attribute("graph_optimization_level", LEVELS.ORT_ENABLE_BASIC),
    "extended graph optimisation": attribute("graph_optimization_level", LEVELS.ORT_ENABLE_EXTENDED),
    "no graph optimisation": attribute("graph_optimization_level", LEVELS.ORT_DISABLE_ALL),
    "one thread": attribute("intra_op_num_threads", 1),
}


def session(path: Path, threads: int, change: Change) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    change(options)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    flags = parser.parse_args()
    sessions = {name: session(flags.encoder, flags.threads, change) for name, change in CHANGES.items()}
    views = sessions["as served"].get_inputs()[0]
    feed = {views.name: np.random.default_rng(0).integers(0, 256, (1, *views.shape[1:]), dtype=np.uint8)}
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(flags.rounds + 1):
        for name, runner in sessions.items():
            start = time.perf_counter()
            runner.run(None, feed)
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    usual = seconds["as served"]
    for name, spent in seconds.items():
        ratios = [a / b for a, b in zip(usual, spent, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name:36s}{statistics.median(spent) * 1000:8.1f} ms   {middle:5.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
