"""A real console in a process of its own, real cameras (files played in real time), and a real browser."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

START_S = 30


@dataclass
class Console:
    """A console that has said READY."""

    process: subprocess.Popen[str]
    address: str
    audit: Path
    grpc: str = ""
    scheme: str = "http"
    log: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"

    def state(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/api/state", timeout=20).json()

    def post(self, path: str, body: Any = None, **how: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=20, **how)

    def trigger(self, seconds_ago: float = 1.5, **more: Any) -> str:
        response = self.post("/api/trigger", {"seconds_ago": seconds_ago, **more})
        assert response.status_code == 202, response.text
        return response.json()["id"]

    def incident(self, name: str) -> dict[str, Any]:
        return next(item for item in self.state()["incidents"] if item["id"] == name)

    def until(self, condition: Callable[[dict[str, Any]], Any], what: str, *, seconds: float = 30) -> dict[str, Any]:
        """Poll the state until `condition(state)` holds."""
        deadline = time.monotonic() + seconds
        while not condition(state := self.state()):
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}\n{state}\n{self.text()}"
            time.sleep(0.05)
        return state

    def decided(self, name: str, *, views: int, revision: int = 1) -> dict[str, Any]:
        """Wait for a decision on so many views."""

        def is_there(state: dict[str, Any]) -> bool:
            rulings = next(item for item in state["incidents"] if item["id"] == name)["rulings"]
            return len(rulings) >= revision and len(rulings[-1]["views"]) == views

        self.until(is_there, f"a decision on {views} views")
        return self.incident(name)

    def text(self) -> str:
        return "".join(self.log)


StartConsole = Callable[..., AbstractContextManager[Console]]


@contextmanager
def _started(audit: Path, flags: tuple[str, ...], port: int) -> Iterator[Console]:
    command = [sys.executable, "-m", "serving.live", "--http-port", str(port), "--audit-dir", str(audit), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    console = Console(process, "", audit)
    # Read by a thread, not written to a file: tests limit the size of files.
    reader = threading.Thread(target=lambda: console.log.extend(process.stderr), daemon=True)
    reader.start()
    try:
        watchdog = threading.Timer(START_S, process.kill)
        watchdog.start()
        line = process.stdout.readline()
        watchdog.cancel()
        assert line.startswith(("READY http=", "READY https=")), console.text()
        ready = dict(word.split("=", 1) for word in line.split()[1:])
        console.scheme = "https" if "https" in ready else "http"
        console.address, console.grpc = ready[console.scheme], ready.get("grpc", "")
        yield console
    finally:
        process.terminate()
        try:
            process.wait(15)
        finally:
            process.kill()
            process.wait()
            reader.join(5)
            process.stdout.close()
            process.stderr.close()


@pytest.fixture(scope="session")
def start_console(tmp_path_factory: pytest.TempPathFactory) -> StartConsole:
    """`with start_console("--camera", ..., "--server", ...) as console`; `audit=` and `port=` to start it again."""

    def start(*flags: str, audit: Path | None = None, port: int = 0) -> AbstractContextManager[Console]:
        return _started(audit or tmp_path_factory.mktemp("audit") / "audit", flags, port)

    return start


@pytest.fixture(scope="session")
def scenes(numbered_clip: Callable[..., Path]) -> dict[str, str]:
    """Three files whose pictures carry their number, as cameras by name; 10 s each, played in a loop."""
    sizes = {"main": (128, 96), "left": (160, 96), "right": (128, 64)}
    return {name: str(numbered_clip(frames=250, gop=10, size=size)) for name, size in sizes.items()}


@pytest.fixture(scope="session")
def camera_flags(scenes: dict[str, str]) -> list[str]:
    return [word for name, path in scenes.items() for word in ("--camera", f"{name}={path}")]


class Restartable:
    """A server that can be stopped and started again at the same address."""

    def __init__(self, start_server: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self.grpc = f"127.0.0.1:{self._port}"
        self._start_server, self._stack = start_server, ExitStack()

    def start(self) -> None:
        self._stack.enter_context(self._start_server("--abstain-below", "0.25", "--grpc-port", str(self._port)))

    def stop(self) -> None:
        self._stack.close()


@pytest.fixture(scope="session")
def unsure_server(start_server: Any) -> Iterator[Restartable]:
    """A server whose tiny model abstains on the action class and decides on the severity."""
    server = Restartable(start_server)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def console(start_console: StartConsole, camera_flags: list[str], unsure_server: Any) -> Iterator[Console]:
    """The console that most tests share, its cameras ready for a trigger."""
    flags = ("--server", unsure_server.grpc, "--grpc-port", "0", "--allowed-host", "console.stadium")
    with start_console(*camera_flags, *flags) as running:
        ready_for_trigger(running)
        yield running


def ready_for_trigger(console: Console, *, cameras: int = 3, buffer_s: float = 5.5) -> None:
    def is_full(state: dict[str, Any]) -> bool:
        return sum(c["buffer_s"] >= buffer_s and c["state"] == "ok" for c in state["cameras"]) >= cameras

    console.until(is_full, "cameras with full buffers")


@pytest.fixture(scope="session")
def until_ready() -> Callable[..., None]:
    """`until_ready(console, cameras=3)`: wait for full buffers."""
    return ready_for_trigger


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Debian's Chromium, without a window, 1440x900."""
    programme, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (programme and driver):
        pytest.skip("no chromium and chromedriver; scripts/debian-packages.sh installs them")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = programme
    flags = (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "mute-audio"),
        *("disable-background-networking", "disable-component-update", "disable-sync", "window-size=1440,900"),
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    )
    for flag in flags:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    size = {"width": 1440, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    yield opened
    opened.quit()
