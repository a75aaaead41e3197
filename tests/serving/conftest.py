"""A real server in a process of its own, on free ports, and small clips to send to it.

`kserve` and `tritonclient` cannot be imported in one process, so nothing here imports the server's modules.
"""

from __future__ import annotations

import io
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from mvfoul.artifact import Artifact, load_artifact
from mvfoul.errors import ConfigError
from mvfoul.video import decode_clip
from serving.client import FoulClient
from serving.local_triton import LocalTriton, TritonConfig, find_installation
from serving.repository.config import RepositoryConfig
from serving.repository.publish import publish
from tests.serving.altered_artifact import alter

START_S = 120
STOP_S = 30


@dataclass(frozen=True)
class RunningServer:
    """A server that has said READY."""

    process: subprocess.Popen[str]
    http: str
    grpc: str
    artifact: str
    log: Path


StartServer = Callable[..., AbstractContextManager[RunningServer]]


@contextmanager
def _start(artifact: Path, log: Path, *flags: str) -> Iterator[RunningServer]:
    ports = ("--http-port", "0", "--grpc-port", "0")
    command = [sys.executable, "-m", "serving", "--artifact", str(artifact), *ports, "--threads", "1", *flags]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        ready = _ready_line(process, log)
        yield RunningServer(process, f"http://{ready['http']}", ready["grpc"], ready["artifact"], log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        finally:
            process.kill()
            process.stdout.close()


def _ready_line(process: subprocess.Popen[str], log: Path) -> dict[str, str]:
    readable, _, _ = select.select([process.stdout], [], [], START_S)
    line = process.stdout.readline() if readable else ""
    assert line.startswith("READY "), f"no READY within {START_S} s; the log says: {log.read_text()}"
    return dict(pair.split("=", 1) for pair in line.split()[1:])


@pytest.fixture(scope="session")
def start_server(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> StartServer:
    """`with start_server("--max-in-flight", "1") as server`: a server with other flags."""

    def start(*flags: str, artifact: Path = tiny_artifact) -> AbstractContextManager[RunningServer]:
        return _start(artifact, tmp_path_factory.mktemp("server") / "log", *flags)

    return start


@pytest.fixture(scope="session")
def server(start_server: StartServer) -> Iterator[RunningServer]:
    """The server that most tests share."""
    with start_server("--max-request-bytes", str(16 << 20), "--log-level", "debug") as running:
        yield running


@pytest.fixture(scope="session")
def second_artifact(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with the tensors of the tiny one and other answers. Do not change it."""
    return alter(tiny_artifact, tmp_path_factory.mktemp("second_artifact") / "artifact")


StartTriton = Callable[..., LocalTriton]


@pytest.fixture(scope="session")
def start_triton(tmp_path_factory: pytest.TempPathFactory) -> StartTriton:
    """`with start_triton(repository, control="poll") as triton`: the genuine one, ready; fields of `TritonConfig`."""
    try:
        find_installation()
    except ConfigError as error:
        pytest.skip(str(error))

    def start(repository: Path, **settings: object) -> LocalTriton:
        log = tmp_path_factory.mktemp("triton") / "log"
        return LocalTriton(TritonConfig(repository=repository, log=log, ready_s=START_S, **settings))

    return start


@pytest.fixture(scope="session")
def write_repository(tiny_artifact: Path) -> Callable[..., list[str]]:
    """`write_repository(output, max_batch=8)`: for Triton on the CPU; fields of `RepositoryConfig`."""

    def write(output: Path, **fields: object) -> list[str]:
        defaults = {"artifact": tiny_artifact, "encoder": "python", "threads": 1, "max_batch": 8}
        return publish(RepositoryConfig(**{"output": output, **defaults, **fields}))

    return write


@pytest.fixture(scope="session")
def triton_repository(write_repository: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the tiny artifact. Do not change it."""
    output = tmp_path_factory.mktemp("triton_repository") / "models"
    write_repository(output)
    return output


@pytest.fixture(scope="session")
def triton(start_triton: StartTriton, triton_repository: Path) -> Iterator[LocalTriton]:
    """The Triton that most tests share. Do not stop it."""
    with start_triton(triton_repository) as running:
        yield running


@pytest.fixture(scope="session")
def artifact(tiny_artifact: Path) -> Artifact:
    return load_artifact(tiny_artifact)


@pytest.fixture(scope="session")
def clips() -> tuple[bytes, ...]:
    """Five clips as five cameras of one action would send: 126 frames, 25 fps, h264 in mp4."""
    return tuple(_clip(seed) for seed in range(5))


@pytest.fixture(scope="session")
def views(artifact: Artifact, clips: tuple[bytes, ...]) -> NDArray[np.uint8]:
    """The clips decoded, `[5, 3, T, H, W]`."""
    return np.stack([decode_clip(clip, artifact.manifest.clip) for clip in clips])


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[FoulClient]:
    with FoulClient(server.grpc) as opened:
        yield opened


@pytest.fixture(scope="session")
def rest(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.http, timeout=30) as opened:
        yield opened


@pytest.fixture
def still_answers(server: RunningServer, client: FoulClient, clips: tuple[bytes, ...]) -> Iterator[None]:
    """Whatever the test did, the server answers afterwards, and its log shows no traceback of it."""
    before = server.log.stat().st_size
    yield
    assert client.classify(clips[:1]).view_weights == (1.0,)
    assert "Traceback" not in server.log.read_text()[before:]


def _clip(seed: int) -> bytes:
    """A bright square on a coloured ground, moving in another direction for each seed."""
    rng = np.random.default_rng(seed)
    ground, step = rng.integers(0, 120, 3), rng.integers(1, 4, 2)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(126):
            picture = np.broadcast_to(ground, (64, 96, 3)).astype(np.uint8)
            y, x = (step * i) % (48, 80)
            picture[y : y + 16, x : x + 16] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], bool], str], None]:
    """`wait_until(condition, "what")`: poll for at most 20 s."""

    def wait(condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, f"not within 20 s: {what}"
            time.sleep(0.005)

    return wait


@pytest.fixture(scope="session")
def run_module() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_module("serving.client", "--json", ...)`: run to the end, with a terminal of fixed width."""

    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *arguments]
        environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)

    return run
