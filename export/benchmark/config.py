"""The flags of `python -m export.benchmark`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from mvfoul.command import check_flag

EngineName = Literal[
    "eager",
    "compile",
    "onnxruntime",
    "openvino",
    "eager-cuda",
    "eager-fp16-cuda",
    "compile-cuda",
    "compile-fp16-cuda",
    "onnxruntime-cuda",
    "tensorrt",
]
ENGINES: Final[tuple[EngineName, ...]] = get_args(EngineName)
CUDA_ENGINES: Final = frozenset(name for name in ENGINES if name.endswith("-cuda") or name == "tensorrt")
OF_CHECKPOINT: Final = frozenset(name for name in ENGINES if name.startswith(("eager", "compile")))
"""PyTorch's: an artifact does not hold what they need. fp16: the encoder under autocast, as TensorRT's plan is."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Compare the engines that can run an artifact: latency, throughput, memory, and the ratio to PyTorch.

    Every engine runs in a process of its own; they take turns, one run each, so that what else the machine does falls
    on all of them. A run goes from the views of one action, uint8, to its probabilities.
    """

    artifact: Path
    """The directory that `python -m export` wrote."""
    ckpt: Path | None = None
    """The checkpoint that it was made from; PyTorch takes part only with it."""
    engines: tuple[EngineName, ...] = ()
    """Those to compare; one that cannot run is an error then. None: all that can."""
    views: tuple[int, ...] = (1, 2, 4)
    """Numbers of views N to run, one after the other."""
    rounds: int = 30
    """Runs of each engine at each N, at most."""
    seconds: float = 60.0
    """At each N, no round begins later than this, but three rounds are always run."""
    threads: int = 0
    """Of each engine. 0: one per CPU that this process may use."""
    output: Path | None = None
    """Folder for benchmark.json, benchmark.md and benchmark.png. None: "benchmark" beside the artifact."""

    def __post_init__(self) -> None:
        check_flag(
            bool(self.views) and all(n >= 1 for n in self.views), "--views", self.views, "Use numbers from 1, as 1 2 4."
        )
        check_flag(self.rounds >= 3, "--rounds", self.rounds, "Use 3 or more.")
        check_flag(self.seconds > 0, "--seconds", self.seconds, "Use more than 0.")
        check_flag(self.threads >= 0, "--threads", self.threads, "Use 1 or more, or 0 for one per CPU.")
        without = sorted(OF_CHECKPOINT & set(self.engines))
        check_flag(not without or self.ckpt is not None, "--engines", " ".join(without), "They need --ckpt.")

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.output or self.artifact.resolve().parent / "benchmark"
