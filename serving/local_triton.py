"""The genuine Triton server without a container, on this machine only: for tests, benchmarks and trying a repository.

    python -m serving.local_triton --repository runs/demo/repository
    READY http=127.0.0.1:41001 grpc=127.0.0.1:41002 metrics=127.0.0.1:41003 pid=4711

`scripts/triton.sh` installs it (Triton 2.51 with the python backend; no GPU backends). Production runs Triton's image.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from mvfoul.command import check_flag
from mvfoul.errors import ConfigError, UnavailableError

LOOPBACK: Final = "127.0.0.1"
_ATTEMPTS: Final = 3
"""A free port can be taken by another process before Triton binds it."""
_POLL_S: Final = 0.05
_ORPHANS_S: Final = 3.0

ControlMode = Literal["none", "poll", "explicit"]


@dataclass(frozen=True)
class TritonPorts:
    """Where a Triton listens on loopback; 0 stands for a free port."""

    http: int = 0
    """REST and health."""
    grpc: int = 0
    """gRPC."""
    metrics: int = 0
    """Prometheus' /metrics."""


@dataclass(frozen=True, kw_only=True)
class TritonConfig:
    """Run the genuine Triton server on loopback, without a container, until SIGTERM or Ctrl-C."""

    repository: Path
    """What `python -m serving.repository` wrote."""
    ports: TritonPorts = TritonPorts()
    """0 takes a free port; the line READY on stdout says which."""
    control: ControlMode = "none"
    """none: all models, as they are now. poll: follows the repository. explicit: by request, see --load."""
    poll_s: int = 1
    """With --control poll: seconds between two looks."""
    load: tuple[str, ...] = ()
    """With --control explicit: models to load at the start."""
    response_cache_mib: int = 0
    """Memory for answers of models whose configuration enables the response cache; 0: no cache."""
    flags: tuple[str, ...] = ()
    """More flags of tritonserver, without their dashes, such as log-verbose=1."""
    ready_s: float = 120.0
    """The models are ready within this time, or the start has failed."""
    stop_s: float = 30.0
    """After SIGTERM, requests in flight get this long to finish."""
    log: Path | None = None
    """Where Triton's log goes. None: to stderr."""

    def __post_init__(self) -> None:
        check_flag(self.poll_s >= 1, "--poll-s", self.poll_s, "Triton counts whole seconds; use 1 or more.")
        check_flag(self.response_cache_mib >= 0, "--response-cache-mib", self.response_cache_mib, "Use 0 or more.")
        check_flag(not self.load or self.control == "explicit", "--load", self.load, "It needs --control explicit.")


@dataclass(frozen=True)
class TritonInstallation:
    """The folder that `scripts/triton.sh` made."""

    root: Path

    @property
    def _server(self) -> Path:
        return self.root / "server" / "pytriton" / "tritonserver"

    def command(self) -> list[str]:
        """Return the program with the flags that depend on where it lies."""
        return [
            str(self._server / "bin" / "tritonserver"),
            f"--backend-directory={self._server / 'backends'}",
            f"--cache-directory={self._server / 'caches'}",
        ]

    def environment(self) -> dict[str, str]:
        """Return the environment in which its models find their interpreter."""
        library = (self.root / "libpython").read_text().strip()
        path = [str(self.root / "env" / "bin"), os.environ.get("PATH", "")]
        libraries = [library, os.environ.get("LD_LIBRARY_PATH", "")]
        # The environment of our own interpreter would hide that of the models.
        ours = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
        return {name: value for name, value in os.environ.items() if name not in ours} | {
            "PATH": os.pathsep.join(filter(None, path)),
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        }


def find_installation() -> TritonInstallation:
    """Return the installation in this interpreter's environment, or in the folder MVFOUL_TRITON.

    Raises:
        ConfigError: There is none; says how to get it.
    """
    root = Path(os.environ.get("MVFOUL_TRITON", Path(sys.prefix) / "triton"))
    if not (root / "installed").is_file():
        raise ConfigError(f"no Triton in {root}. Install it: scripts/triton.sh; it says where it cannot run.")
    return TritonInstallation(root)


class LocalTriton:
    """A Triton server in a process of its own; ready when the constructor or `with` returns.

    with LocalTriton(TritonConfig(repository=folder, control="poll")) as triton:
        client = tritonclient.grpc.InferenceServerClient(triton.grpc)
    """

    def __init__(self, config: TritonConfig) -> None:
        """Start it and wait until every model is ready.

        Raises:
            ConfigError: Triton is not installed here.
            UnavailableError: It ended or was not ready in time; the message has the end of its log.
        """
        self.config = config
        self._installation = find_installation()
        self._stream: Any = None
        for attempt in range(_ATTEMPTS):
            self.ports = _free_ports(config.ports)
            with ExitStack() as held:
                held.enter_context(_signals_held())
                self.process = self._start()
                try:
                    held.close()
                    self._wait_until_ready()
                except UnavailableError as error:
                    self.kill()
                    if self.ports == config.ports or not _taken(error) or attempt == _ATTEMPTS - 1:
                        raise
                except BaseException:
                    # Ctrl-C or SIGTERM while the models load: nobody has this object yet to stop it.
                    self.kill()
                    raise
                else:
                    return

    @property
    def http(self) -> str:
        """`host:port` of REST and health."""
        return f"{LOOPBACK}:{self.ports.http}"

    @property
    def grpc(self) -> str:
        """`host:port` of gRPC."""
        return f"{LOOPBACK}:{self.ports.grpc}"

    @property
    def metrics(self) -> str:
        """`host:port` of Prometheus' /metrics."""
        return f"{LOOPBACK}:{self.ports.metrics}"

    @property
    def pid(self) -> int:
        """Of tritonserver; its python models are children of it."""
        return self.process.pid

    def log_text(self) -> str:
        """Return the log so far; empty where it goes to stderr."""
        return self.config.log.read_text(errors="replace") if self.config.log else ""

    def is_ready(self) -> bool:
        """Say whether Triton calls itself ready; a killed python model does not change that."""
        try:
            with urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit code; kills it where it does not end."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(self.config.stop_s + 10)
        except subprocess.TimeoutExpired:
            return self.kill()
        finally:
            self._close_log()

    def kill(self) -> int:
        """End it at once, as a crash would; its python models notice and end by themselves, or are ended."""
        with _following(self.process.pid):
            self.process.kill()
            code = self.process.wait()
        self._close_log()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def _start(self) -> subprocess.Popen[bytes]:
        self._id = f"triton-{uuid.uuid4()}"
        command = [*self._installation.command(), f"--id={self._id}", *_flags(self.config, self.ports)]
        self._stream = self.config.log.open("ab") if self.config.log else None
        return subprocess.Popen(
            command, env=self._installation.environment(), stdout=self._stream or sys.stderr, stderr=subprocess.STDOUT
        )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.config.ready_s
        while not (self._is_ours() and self.is_ready()):
            if (code := self.process.poll()) is not None:
                raise UnavailableError(f"tritonserver ended with {code}. {self._end_of_log()}")
            if time.monotonic() > deadline:
                raise UnavailableError(f"Triton is not ready after {self.config.ready_s:g} s. {self._end_of_log()}")
            time.sleep(_POLL_S)

    def _is_ours(self) -> bool:
        """Say whether who answers is the process started here, and not another that had the port before it."""
        try:
            with urllib.request.urlopen(f"http://{self.http}/v2", timeout=5) as answer:
                return bool(json.load(answer).get("name") == self._id)
        except (OSError, ValueError):
            return False

    def _end_of_log(self) -> str:
        return f"Its log ends:\n{self.log_text()[-4000:]}" if self.config.log else "Its log is above."

    def _close_log(self) -> None:
        if self._stream:
            self._stream.close()


def _taken(error: UnavailableError) -> bool:
    return "already in use" in str(error)


def _flags(config: TritonConfig, ports: TritonPorts) -> Sequence[str]:
    poll = [f"--repository-poll-secs={config.poll_s}"] if config.control == "poll" else []
    cache = [f"--cache-config=local,size={config.response_cache_mib << 20}"] if config.response_cache_mib else []
    return [
        f"--model-repository={config.repository}",
        f"--model-control-mode={config.control}",
        *poll,
        *(f"--load-model={name}" for name in config.load),
        f"--http-address={LOOPBACK}",
        f"--grpc-address={LOOPBACK}",
        f"--metrics-address={LOOPBACK}",
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
        "--metrics-config=summary_latencies=true",
        f"--exit-timeout-secs={round(config.stop_s)}",
        *cache,
        *(f"--{flag.removeprefix('--')}" for flag in config.flags),
    ]


def _free_ports(wanted: TritonPorts) -> TritonPorts:
    """Replace each 0 by a port that is free now."""
    sockets = [socket.socket() for _ in range(3)]
    try:
        for opened in sockets:
            opened.bind((LOOPBACK, 0))
        free = [int(opened.getsockname()[1]) for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()
    return TritonPorts(wanted.http or free[0], wanted.grpc or free[1], wanted.metrics or free[2])


def main() -> int:
    """Return the exit code."""
    import tyro

    from mvfoul.command import exit_code_of

    return exit_code_of(lambda: _serve(tyro.cli(TritonConfig, prog="python -m serving.local_triton")))


def _serve(config: TritonConfig) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with LocalTriton(config) as triton:
        try:
            sys.stdout.write(f"READY http={triton.http} grpc={triton.grpc} metrics={triton.metrics} pid={triton.pid}\n")
            sys.stdout.flush()  # who reads it may send SIGTERM before this has returned
            return triton.process.wait()
        except KeyboardInterrupt:
            return 0


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let SIGINT and SIGTERM do at the end what they would have done meanwhile.

    One that raises in the middle of `Popen` leaves a process that nobody knows. A blocked signal would not do: the
    process inherits that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python's handlers run in the main thread only
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # What has no handler of Python's ends this process at once, and is left so.
    mine = [number for number, handler in before.items() if callable(handler)]
    for number in mine:
        signal.signal(number, lambda sent, _frame: came.append(sent))
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])
        for sent in came:
            signal.raise_signal(sent)


@contextmanager
def _following(pid: int) -> Iterator[None]:
    """See to it that the children of a process end soon after it.

    measured: now and then a python model outlives a Triton that was killed, for ever, and SIGTERM means nothing to it.
    """
    with ExitStack() as stack:
        children = [_held(child, stack) for child in _children(pid)]
        yield
        for child in filter(None, children):
            if not select.select([child], [], [], _ORPHANS_S)[0]:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(child, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # a thread that has just ended
            found += map(int, listed.read_text().split())
    return found


def _held(pid: int, stack: ExitStack) -> int | None:
    """Return a descriptor that means this process for good, also when its number is another's."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    stack.callback(os.close, descriptor)
    return descriptor


if __name__ == "__main__":
    sys.exit(main())
