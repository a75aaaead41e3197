"""All channels and their servers, started and stopped together."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from serving.live.clock import now_s
from serving.live.streaming.channel import Channel, Fault, Schedule, Started
from serving.live.streaming.programme import Programme, check_takes
from serving.live.streaming.rtsp import RtspStreams
from serving.live.streaming.transport import HttpStreams, udp_sink

StreamProtocol = Literal["http", "rtsp", "udp"]


@dataclass(frozen=True)
class Address:
    """Where the cameras are: HTTP and RTSP take one port for all, UDP one for each from this one on."""

    protocol: StreamProtocol = "http"
    host: str = "127.0.0.1"
    port: int = 0


class StreamServer:
    """Plays a programme; a context manager."""

    def __init__(
        self,
        cameras: Sequence[str],
        programme: Programme,
        *,
        address: Address = Address(),
        told: Callable[[Started], None] = lambda _: None,
        delay_s: float = 0.2,
    ) -> None:
        check_takes(programme.takes)
        self._schedule = Schedule(programme, now_s() + delay_s, told)
        self.channels = {name: Channel(name, index, self._schedule) for index, name in enumerate(cameras)}
        self._address = address
        self._server: HttpStreams | RtspStreams | None = None
        self.urls: dict[str, str] = {}

    @property
    def starts_s(self) -> float:
        """Return the UNIX second of the programme's first picture."""
        return self._schedule.starts_s

    def __enter__(self) -> StreamServer:
        """Go on the air."""
        address = self._address
        if address.protocol != "udp":
            kind, end = (HttpStreams, ".ts") if address.protocol == "http" else (RtspStreams, "")
            self._server = kind(self.channels, address.host, address.port)
            self._thread = threading.Thread(target=self._server.serve, name="streams", daemon=True)
            self._thread.start()
            base = f"{address.protocol}://{address.host}:{self._server.port}"
            self.urls = {name: f"{base}/{name}{end}" for name in self.channels}
        else:
            for number, (name, channel) in enumerate(self.channels.items()):
                port = address.port + number if address.port else free_udp_port(address.host)
                channel.add(udp_sink(channel, (address.host, port)))
                self.urls[name] = f"udp://{address.host}:{port}"
        for channel in self.channels.values():
            channel.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Go off the air."""
        for channel in self.channels.values():
            channel.stop()
        if self._server:
            self._server.close()
            self._thread.join()

    def failure(self) -> str:
        """Return which camera went off the air for good and why; an empty string while all are well."""
        failed = [f"camera {name}: {channel.failure}" for name, channel in self.channels.items() if channel.failure]
        return "; ".join(failed)

    def fail(self, camera: str, fault: Fault, seconds: float) -> None:
        """Make a camera fail from now on."""
        self.channels[camera].fail(fault, seconds)


def free_udp_port(host: str) -> int:
    """Return a port on which nobody listens now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port
