"""The race: workers take turns, one run each, until there are enough rounds or the time is over."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from export.benchmark.available import choose_engines
from export.benchmark.config import BenchmarkConfig, EngineName
from export.benchmark.results import EngineResult, Results, write_results
from export.benchmark.worker import Failed, Job, Ready, work
from export.report import Progress
from mvfoul.artifact import Artifact, load_artifact, sha256_of
from mvfoul.command import available_cpus
from mvfoul.errors import ConfigError

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_LEAST_ROUNDS = 3
_PAUSE_S = 0.02
"""Between two runs. Threads of the engine before spin for some milliseconds after their work."""
_STOP_S = 10.0


@dataclass
class _Worker:
    """A running engine, seen from the parent."""

    engine: EngineName
    process: SpawnProcess
    connection: Connection
    result: EngineResult
    alive: bool = True

    def ask(self, question: int | None) -> Any:
        """Send a question and return the answer; None, and `alive` False, where the worker failed."""
        try:
            self.connection.send(question)
        except OSError:
            return self._lost()
        return self.receive()

    def receive(self) -> Any:
        """Return the next answer; None, and `alive` False, where the worker failed."""
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            return self._lost()
        if isinstance(answer, Failed):
            self.alive, self.result.failure = False, answer.reason
            return None
        return answer

    def _lost(self) -> None:
        self.process.join(_STOP_S)
        self.alive = False
        self.result.failure = f"its process ended with exit code {self.process.exitcode}; is there enough memory?"


def run_benchmark(config: BenchmarkConfig, progress: Progress | None = None) -> Results:
    """Race the engines, print the table and write it.

    Raises:
        ArtifactError: The artifact is damaged.
        ConfigError: An engine asked for cannot run here, or the checkpoint is not the artifact's.
    """
    progress = progress or Progress()
    artifact = load_artifact(config.artifact)
    _check_checkpoint(config, artifact)
    engines, left_out = choose_engines(config, artifact)
    for name, reason in left_out.items():
        progress.say(f"  left out: {name}: {reason}")
    threads = config.threads or available_cpus()
    results = _race(config, engines, threads, progress)
    done = Results.of(artifact, results, left_out, threads=threads)
    write_results(config.folder, done)
    progress.say()
    progress.say(done.to_markdown())
    progress.say(f"Written: benchmark.json, benchmark.md and benchmark.png in {config.folder}")
    return done


def _race(
    config: BenchmarkConfig, engines: Sequence[EngineName], threads: int, progress: Progress
) -> list[EngineResult]:
    with _workers(config, engines, threads, progress) as workers:
        for views in config.views if any(worker.alive for worker in workers) else ():
            with progress.step(f"{views} views") as facts:
                rounds = _run_rounds([w for w in workers if w.alive], views, config)
                facts.append(f"{rounds} rounds")
        for worker in workers:
            if worker.alive:
                worker.result.peak_memory_bytes = worker.ask(None)
    return [worker.result for worker in workers]


def _run_rounds(workers: Sequence[_Worker], views: int, config: BenchmarkConfig) -> int:
    """Run the workers in turns and return the number of rounds; a worker that fails drops out with its runs."""
    for worker in workers:
        worker.result.first_run_s[views] = worker.ask(views)  # allocates, compiles
    start = time.monotonic()
    for turn in range(config.rounds):
        if turn >= _LEAST_ROUNDS and time.monotonic() - start > config.seconds:
            return turn
        # Another one begins in each round, so that none always runs after the same neighbour.
        shift = turn % max(len(workers), 1)
        for worker in (*workers[shift:], *workers[:shift]):
            if worker.alive and (seconds := worker.ask(views)) is not None:
                worker.result.seconds.setdefault(views, []).append(seconds)
            time.sleep(_PAUSE_S)
    return config.rounds


@contextmanager
def _workers(
    config: BenchmarkConfig, engines: Sequence[EngineName], threads: int, progress: Progress
) -> Iterator[list[_Worker]]:
    """Start a process for each engine, one after the other, and end them all."""
    workers: list[_Worker] = []
    try:
        for engine in engines:
            with progress.step(engine) as facts:
                workers.append(_start(Job(engine, config.artifact, config.ckpt, threads)))
                facts.append(workers[-1].result.failure or workers[-1].result.name)
        yield workers
    finally:
        for worker in workers:
            worker.connection.close()  # a worker that waits ends at this
        for worker in workers:
            worker.process.join(_STOP_S)
            worker.process.kill()


def _start(job: Job) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, job), daemon=True)
    process.start()
    theirs.close()
    worker = _Worker(job.engine, process, ours, EngineResult(job.engine))
    if isinstance(ready := worker.receive(), Ready):
        worker.result.loaded(ready)
    return worker


def _check_checkpoint(config: BenchmarkConfig, artifact: Artifact) -> None:
    expected = artifact.manifest.origin.checkpoint_sha256
    if config.ckpt is None or not config.ckpt.is_file():
        if config.ckpt is not None:
            raise ConfigError(f"--ckpt: there is no {config.ckpt}.")
        return
    if (found := sha256_of(config.ckpt)) != expected:
        raise ConfigError(
            f"--ckpt {config.ckpt} has SHA-256 {found[:12]}..., but {config.artifact} was made from {expected[:12]}...."
            " Give the checkpoint that it was made from."
        )
