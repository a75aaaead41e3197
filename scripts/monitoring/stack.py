"""The whole platform on this machine, small: everything that has metrics, as it would stand in a cluster.

A server with the networks in its process; Triton and a transformer, where Triton is installed (scripts/triton.sh); a
training run; the live console with two cameras; and, played back, the metrics that need a GPU (gpu_replay.py) or a
cluster (cluster_replay.py).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scripts.monitoring.cluster_replay import replayed_cluster
from scripts.monitoring.gpu_replay import replayed_gpu
from scripts.monitoring.processes import Command
from scripts.monitoring.prometheus import Target

SERVER, TRITON, TRAINING, LIVE = "mvfoul-server", "mvfoul-triton", "mvfoul-training", "mvfoul-live"
CLUSTER = "kube-state-metrics"
_CAMERAS = ("main", "left")
_SERVER_FLAGS = (
    *("--http-port", "0", "--grpc-port", "0", "--threads", "1", "--max-in-flight", "8"),
    # Minutes must show what takes hours otherwise.
    *("--session-ttl-s", "3", "--self-test-interval-s", "2", "--drift-min-answers", "5", "--drift-window", "200"),
)


@dataclass
class Stack:
    """What runs: where to scrape, where to send requests."""

    targets: list[Target] = field(default_factory=list)
    grpc: list[str] = field(default_factory=list)
    """host:port of each server."""
    http: list[str] = field(default_factory=list)
    """http://host:port of each server."""
    live: str = ""
    """http://host:port of the console."""
    has_triton: bool = False
    """Whether Triton is installed here; if so, a transformer stands before it."""


@contextmanager
def run_stack(artifact: Path, data: Path, folder: Path, *, epochs: int = 200) -> Iterator[Stack]:
    """Run everything until the context ends. Logs and what the commands write lie in `folder`.

    Args:
        artifact: What `python -m export` wrote.
        data: A data set in the official layout, small: it is trained on, and its clips are the cameras' pictures.
        folder: Made if missing.
        epochs: Of the training run. It should outlive the observation: metrics of a process end with it.

    Raises:
        ProcessError: Something did not get ready.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stack = Stack()
    with ExitStack() as running:
        start = _Starter(folder)
        running.callback(start.stop)
        # All start at once, and are waited for afterwards: most of a start is importing.
        server = start("server", "serving", "--artifact", str(artifact), "--shadow", str(artifact), *_SERVER_FLAGS)
        cameras = start("cameras", "serving.live.streams", "--data", str(data), "--cameras", *_CAMERAS)
        training = _start_training(start, data, folder / "run", epochs)
        triton = _start_triton(start, artifact, folder / "repository")
        _add_server(stack, server, "mvfoul-server-0")
        stack.has_triton = triton is not None
        if triton:
            where = triton.ready()
            stack.targets.append(Target(TRITON, where["metrics"], "mvfoul-triton-0"))
            flags = ("--artifact", str(artifact), "--triton", where["grpc"], *_SERVER_FLAGS)
            _add_server(stack, start("transformer", "serving", *flags), "mvfoul-transformer-0")
        stack.targets.append(Target(TRAINING, training, "mvfoul-training-0"))
        stack.live = _start_live(start, cameras, stack.grpc[0], folder / "audit")
        stack.targets.append(Target(LIVE, stack.live.removeprefix("http://"), "mvfoul-live-0"))
        replay = running.enter_context(replayed_gpu())
        stack.targets.append(Target(TRITON, replay, "gpu-replayed"))
        replay = running.enter_context(replayed_cluster())
        stack.targets.append(Target(CLUSTER, replay, "cluster-replayed"))
        yield stack


class _Starter:
    """Starts commands, and ends them all at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._commands: list[Command] = []

    def __call__(self, name: str, *arguments: str, gentle: bool = False) -> Command:
        command = Command(self._folder, name, arguments, gentle=gentle)
        self._commands.append(command)
        return command

    def stop(self) -> None:
        for command in reversed(self._commands):
            command.process.terminate()
        for command in self._commands:
            command.stop()


def _add_server(stack: Stack, server: Command, pod: str) -> None:
    where = server.ready()
    stack.targets.append(Target(SERVER, where["http"], pod))
    stack.grpc.append(where["grpc"])
    stack.http.append(f"http://{where['http']}")


def _start_training(start: _Starter, data: Path, output: Path, epochs: int) -> str:
    port = _free_port()
    flags = (
        "--data.root",
        str(data),
        "--metrics.port",
        str(port),
        "--loop.epochs",
        str(epochs),
        "--loop.batch-size",
        "4",
    )
    start("training", "training", "--recipe", "cpu-demo", *flags, "--output", str(output), "--overwrite", gentle=True)
    return f"127.0.0.1:{port}"


def _start_triton(start: _Starter, artifact: Path, repository: Path) -> Command | None:
    from mvfoul.errors import ConfigError
    from serving.local_triton import find_installation

    try:
        find_installation()
    except ConfigError:
        return None
    flags = ("--artifact", str(artifact), "--output", str(repository), "--encoder", "python", "--threads", "1")
    start("repository", "serving.repository", *flags).wait()
    return start("triton", "serving.local_triton", "--repository", str(repository))


def _start_live(start: _Starter, cameras: Command, server: str, audit: Path) -> str:
    urls = [json.loads(cameras.line(lambda text: '"stream"' in text)) for _ in _CAMERAS]
    flags = [flag for found in urls for flag in ("--camera", f"{found['camera']}={found['url']}")]
    flags += ["--server", server, "--http-port", "0", "--audit-dir", str(audit), "--continuous.every-s", "5"]
    return f"http://{start('live', 'serving.live', *flags).ready()['http'].removeprefix('http://')}"


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
