"""One engine in a process of its own: loads, then runs when it is told to, and counts its memory.

    parent                worker
    ------                ------
             <- Ready     the engine is loaded and has answered golden.npz
    N        ->
             <- seconds   of one run at N views
    None     ->
             <- bytes     the most memory that the process has held
             <- Failed    instead of any answer

The parent never imports torch or an engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.benchmark.config import CUDA_ENGINES, EngineName
from export.difference import Difference
from mvfoul.artifact import FEATURES, VIEWS, Artifact, read_manifest
from mvfoul.command import peak_memory_bytes
from mvfoul.engines import ONNXRUNTIME_PROVIDERS
from mvfoul.errors import MVFoulError

if TYPE_CHECKING:
    from export.runners import Runner


@dataclass(frozen=True)
class Job:
    """What a worker is to load."""

    engine: EngineName
    artifact: Path
    ckpt: Path | None
    threads: int


@dataclass(frozen=True)
class Ready:
    """An engine that has loaded."""

    name: str
    """With its version."""
    load_s: float
    features_cosine: float
    """Smallest, with PyTorch's answers in golden.npz."""
    features_max_relative_error: float


@dataclass(frozen=True)
class Failed:
    """Why an engine gives no more answers."""

    reason: str


def work(connection: Connection, job: Job) -> None:
    """Be the worker."""
    try:
        _answer(connection, job)
    except (EOFError, BrokenPipeError):
        return  # the parent is gone
    except MVFoulError as error:
        connection.send(Failed(_in_one_line(error)))
    except Exception as error:  # noqa: BLE001  # an engine may raise anything; the table says what
        connection.send(Failed(f"{type(error).__name__}: {_in_one_line(error)}"))


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _answer(connection: Connection, job: Job) -> None:
    # The parent has compared every hash.
    artifact = Artifact(job.artifact, read_manifest(job.artifact))
    golden = artifact.golden()
    start = time.perf_counter()
    runner = load_runner(job)
    load_s = time.perf_counter() - start
    difference = Difference()
    # View by view: torch.compile compiles for every N anew, which takes minutes.
    features = np.concatenate([runner.encode(view[None])[FEATURES] for view in golden[VIEWS]])
    difference.add(features, golden[FEATURES], job.engine)
    if difference.problems:
        connection.send(Failed(difference.problems[0]))
        return
    connection.send(Ready(runner.name, load_s, difference.min_cosine, difference.max_relative))
    while (count := connection.recv()) is not None:
        connection.send(_timed_run(runner, (count, *artifact.manifest.clip.view_shape)))
    connection.send(peak_memory_bytes())


def _timed_run(runner: Runner, shape: tuple[int, ...]) -> float:
    """Return the seconds from views, uint8 `[N, 3, T, H, W]`, to the probabilities of the action that they show."""
    views = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    start = time.perf_counter()
    runner.classify(runner.encode(views)[FEATURES])
    return time.perf_counter() - start


def load_runner(job: Job) -> Runner:
    """Load the engine.

    Raises:
        MVFoulError: A file that cannot be used.
    """
    loaders: dict[str, Callable[[Job], Any]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
    loaders |= {"onnxruntime-cuda": _onnxruntime, "tensorrt": _tensorrt}
    runner: Runner = loaders.get(job.engine, _torch)(job)
    return runner


def _torch(job: Job) -> Runner:
    import torch

    from export.torch_runner import TorchRunner
    from training.checkpoint import load_network

    assert job.ckpt is not None  # noqa: S101  # BenchmarkConfig lets no such engine pass without a checkpoint
    torch.set_num_threads(job.threads)
    network, checkpoint = load_network(job.ckpt, "cuda" if job.engine in CUDA_ENGINES else "cpu")
    return TorchRunner(
        network, checkpoint.temperatures, compiled=job.engine.startswith("compile"), half="fp16" in job.engine
    )


def _onnxruntime(job: Job) -> Runner:
    from export.runners import CUDA_PROVIDER, OnnxRunner

    provider = CUDA_PROVIDER if job.engine in CUDA_ENGINES else ONNXRUNTIME_PROVIDERS[0]
    return OnnxRunner(job.artifact, threads=job.threads, provider=provider)


def _openvino(job: Job) -> Runner:
    from export.openvino_runner import OpenVinoRunner

    return OpenVinoRunner(job.artifact, threads=job.threads)


def _tensorrt(job: Job) -> Runner:
    from export.runners import OnnxRunner
    from export.tensorrt_runner import TensorRTRunner

    plan = read_manifest(job.artifact).plan
    assert plan is not None  # noqa: S101  # `choose_engines` leaves TensorRT out without one
    return TensorRTRunner(job.artifact, plan, OnnxRunner(job.artifact, threads=job.threads))
