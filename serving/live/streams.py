"""`python -m serving.live.streams`: play clips as live cameras on loopback, for demos and tests.

Prints JSON lines on stdout: `{"event": "stream", "camera", "url"}` for each camera, `{"event": "ready", ...}`, and
`{"event": "action", "action", "starts_s", "contact_s", "ends_s", "clips"}` when an action begins: `contact_s` is the
UNIX second of its contact, 3 s ahead, so that a program can trigger exactly. Ends with SIGTERM or Ctrl-C.

Lines on stdin make a camera fail: `main black 3`, `left restart 2` (see `serving.live.streaming.channel.Fault`).
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast, get_args

import tyro

from mvfoul.command import check_flag, exit_code_of

if TYPE_CHECKING:
    from serving.live.streaming.channel import Fault, Started
    from serving.live.streaming.programme import Repeated
    from serving.live.streaming.server import StreamServer

_SPLITS: Final = ("test", "valid", "train")
_PATTERN_S: Final = 10


@dataclass(frozen=True, kw_only=True)
class StreamsConfig:
    """Play clips, or a test pattern, as live cameras in real time, over and over."""

    data: Path | None = None
    """A data set in the official layout, or the folder of one split. Without it: a moving test pattern."""
    cameras: tuple[str, ...] = ("main", "left", "right")
    """Their names. Camera k plays the k-th clip of each action, and is black where there is none."""
    actions: int = 0
    """How many actions to play before starting again, those with the most views first. 0: all."""
    protocol: Literal["http", "rtsp", "udp"] = "http"
    """http and udp: MPEG transport stream. rtsp: RTP with the sender's clock, as IP cameras send it."""
    host: str = "127.0.0.1"
    """Address to listen on, or to send to (udp)."""
    port: int = 0
    """One port for all cameras; udp: the first of as many as there are cameras. 0 takes a free one."""
    starts_in_s: float = 2.0
    """The first picture is sent so many seconds after the cameras' addresses are printed: time to connect."""
    size: tuple[int, int] = field(default=(1280, 720))
    """Of the test pattern: width and height in pixels."""

    def __post_init__(self) -> None:
        check_flag(bool(self.cameras), "--cameras", self.cameras, "Name at least one.")
        check_flag(len(set(self.cameras)) == len(self.cameras), "--cameras", self.cameras, "Give each its own name.")
        check_flag(self.actions >= 0, "--actions", self.actions, "Use 1 or more, or 0 for all.")
        check_flag(0 <= self.port <= 65535, "--port", self.port, "Use 1 to 65535, or 0 for a free port.")
        check_flag(self.starts_in_s >= 0, "--starts-in-s", self.starts_in_s, "Use 0 or more.")
        check_flag(
            min(self.size) >= 32 and not any(s % 2 for s in self.size), "--size", self.size, "Use even numbers from 32."
        )


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_stream)


def _stream() -> int:
    config = tyro.cli(StreamsConfig, prog="python -m serving.live.streams")
    from serving.live.streaming.server import Address, StreamServer

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    address = Address(protocol=config.protocol, host=config.host, port=config.port)
    with (
        _programme(config) as programme,
        StreamServer(
            config.cameras,
            programme,
            address=address,
            told=lambda s: _tell_action(s, config),
            delay_s=config.starts_in_s,
        ) as server,
    ):
        for camera, url in server.urls.items():
            _tell({"event": "stream", "camera": camera, "url": url})
        _tell({"event": "ready", "starts_s": server.starts_s})
        threading.Thread(target=_obey, args=(server,), daemon=True).start()
        while not stopping.wait(0.5):
            if failure := server.failure():
                sys.stderr.write(f"error: {failure}\n")
                return 1
    return 0


@contextmanager
def _programme(config: StreamsConfig) -> Iterator[Repeated]:
    from serving.live.streaming.programme import CONTACT_TICKS, Repeated, Take, actions_of, write_pattern

    if config.data is not None:
        yield actions_of(_split_folder(config.data), len(config.cameras), limit=config.actions)
        return
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "pattern.mp4"
        write_pattern(clip, width_px=config.size[0], height_px=config.size[1], seconds=_PATTERN_S)
        yield Repeated([Take(name="pattern", clips=[clip] * len(config.cameras), contact_ticks=CONTACT_TICKS)])


def _split_folder(data: Path) -> Path:
    """Return the folder of the first split that is there, or `data` if it is one itself."""
    return next((data / split for split in _SPLITS if (data / split).is_dir()), data)


def _tell_action(started: Started, config: StreamsConfig) -> None:
    clips = dict(zip(config.cameras, started.take.clips, strict=True))
    _tell(
        {
            "event": "action",
            "action": started.take.name,
            "starts_s": started.starts_s,
            "contact_s": started.contact_s,
            "ends_s": started.ends_s,
            "clips": {camera: str(clip) for camera, clip in clips.items() if clip},
        }
    )


def _tell(event: dict[str, object]) -> None:
    with suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


def _obey(server: StreamServer) -> None:
    """Make cameras fail as the lines on stdin say."""
    from serving.live.streaming.channel import Fault

    for line in sys.stdin or ():  # none, in some services
        camera, fault, seconds = [*line.split(), "", "", ""][:3]
        if camera in server.channels and fault in get_args(Fault) and seconds.replace(".", "", 1).isdigit():
            server.fail(camera, cast("Fault", fault), float(seconds))
        else:
            sys.stderr.write(f"{line.strip()!r} is no fault; say: <camera> {'|'.join(get_args(Fault))} <seconds>\n")


if __name__ == "__main__":
    sys.exit(main())
