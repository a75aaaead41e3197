"""A stream server, a decision server and a console on this machine, for the demo and the benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvfoul.command import exit_on_sigterm

START_S = 120
STOP_S = 15


class RigError(Exception):
    """A part did not start; its own message stands above."""


@dataclass
class Rig:
    """Everything runs."""

    url: str
    """Of the console's page."""
    grpc: str
    """Of the decision server."""
    urls: dict[str, str]
    """Of the cameras."""

    def get(self, path: str) -> Any:
        """Return JSON that the console serves."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:  # noqa: S310  # our own address
            return json.load(answer)

    def post(self, path: str, body: Any) -> Any:
        """Send a command to the console."""
        request = urllib.request.Request(  # noqa: S310
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)

    def incident(self, name: str) -> dict[str, Any]:
        """Return one incident as the page gets it."""
        found: dict[str, Any] = next(i for i in self.get("/api/state")["incidents"] if i["id"] == name)
        return found

    def decided(self, name: str, *, seconds: float = 60) -> dict[str, Any]:
        """Wait until no camera is waited for any more, and return the incident."""
        deadline = time.monotonic() + seconds
        while True:
            incident = self.incident(name)
            is_settled = all(view["state"] in ("used", "masked", "refused") for view in incident["views"])
            if (is_settled and incident["state"] in ("decided", "failed")) or time.monotonic() > deadline:
                return incident
            time.sleep(0.05)


@contextmanager
def running_rig(
    artifact: Path,
    streams: Sequence[str],
    console: Sequence[str],
    *,
    server: Sequence[str] = (),
    on_action: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Iterator[Rig]:
    """Start the three, yield when the console answers, stop them whatever happens.

    Args:
        artifact: What the decision server serves.
        streams: Flags of `serving.live.streams`.
        console: Flags of `serving.live`; cameras and server are added.
        server: More flags of `serving`.
        on_action: Told when the streams begin an action.

    Raises:
        RigError: One of them did not start.
    """
    exit_on_sigterm()
    with ExitStack() as stack:
        ports = ("--http-port", "0", "--grpc-port", "0", "--log-level", "warning")
        serving = stack.enter_context(_running("serving", "--artifact", str(artifact), *ports, *server))
        playing = stack.enter_context(_running("serving.live.streams", *streams))
        urls = _urls(playing)
        threading.Thread(target=_follow, args=(playing, on_action), daemon=True).start()
        grpc = _ready(serving, "the server")["grpc"]
        cameras = [word for name, url in urls.items() for word in ("--camera", f"{name}={url}")]
        watching = stack.enter_context(_running("serving.live", *cameras, "--server", grpc, *console))
        yield Rig(f"http://{_ready(watching, 'the console')['http']}", grpc, urls)


@contextmanager
def _running(module: str, *flags: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-m", module, *flags], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[str], name: str) -> dict[str, str]:
    line = _line(process)
    if not line.startswith("READY "):
        raise RigError(f"{name} did not start; its message stands above")
    return dict(word.split("=", 1) for word in line.split()[1:])


def _urls(process: subprocess.Popen[str]) -> dict[str, str]:
    urls = {}
    while line := _line(process):
        event = json.loads(line)
        if event["event"] == "stream":
            urls[event["camera"]] = event["url"]
        if event["event"] == "ready":
            return urls
    raise RigError("the stream server did not start; its message stands above")


def _line(process: subprocess.Popen[str]) -> str:
    watchdog = threading.Timer(START_S, process.kill)
    watchdog.start()
    try:
        return process.stdout.readline() if process.stdout else ""
    finally:
        watchdog.cancel()


def _follow(process: subprocess.Popen[str], on_action: Callable[[dict[str, Any]], None]) -> None:
    for line in process.stdout or ():
        event = json.loads(line)
        if event["event"] == "action":
            on_action(event)
