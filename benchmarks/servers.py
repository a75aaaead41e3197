"""Starts what the serving benchmarks measure: the embedded server, and the transformer in front of the genuine Triton.

Everything listens on free ports of 127.0.0.1 and is stopped by the process that was started: at its end, by Ctrl-C, and
by SIGTERM (`timeout` sends that one).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mvfoul.command import exit_on_sigterm
from serving.local_triton import LocalTriton, TritonConfig
from serving.repository.config import RepositoryConfig
from serving.repository.publish import publish

MAX_REQUEST_BYTES = 256 << 20


@dataclass(frozen=True)
class Running:
    """A server that has said READY."""

    name: str
    grpc: str
    http: str
    pids: tuple[int, ...]
    """All processes that do its work."""
    triton: LocalTriton | None = None


@contextmanager
def embedded(artifact: Path, threads: int, *flags: str) -> Iterator[Running]:
    """Start the embedded server with this many threads for the graphs."""
    exit_on_sigterm()
    with _serving(artifact, "--threads", str(threads), *flags) as (process, ready):
        yield Running("embedded", ready["grpc"], ready["http"], (process.pid,))


@contextmanager
def triton(artifact: Path, threads: int, *flags: str, max_batch: int = 16) -> Iterator[Running]:
    """Start Triton with the artifact on this many threads, and a transformer in front of it."""
    exit_on_sigterm()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        publish(
            RepositoryConfig(
                artifact=artifact,
                output=repository,
                encoder="python",
                threads=threads,
                max_batch=max_batch,
                queue_timeout_ms=120_000,  # at saturation requests wait: refusing them is not what is measured
            )
        )
        config = TritonConfig(repository=repository, log=Path(folder) / "log")
        with LocalTriton(config) as server, _serving(artifact, "--triton", server.grpc, *flags) as (process, ready):
            yield Running("triton", ready["grpc"], ready["http"], (process.pid, server.pid), server)


@contextmanager
def _serving(artifact: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    ports = ("--http-port", "0", "--grpc-port", "0", "--log-level", "warning")
    limits = ("--max-request-bytes", str(MAX_REQUEST_BYTES))
    command: Sequence[str] = (
        sys.executable, "-m", "serving", "--artifact", str(artifact), *ports, *limits, *flags
    )  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        ready = dict(word.split("=", 1) for word in process.stdout.readline().split()[1:])
        if "grpc" not in ready:
            raise SystemExit("the server did not start; its message stands above.")
        yield process, ready
    finally:
        process.terminate()
        process.wait(60)
