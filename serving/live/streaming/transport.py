"""A channel as an MPEG transport stream, over HTTP to any number of listeners or over UDP to one port."""

from __future__ import annotations

import queue
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import av

from serving.live.clock import TICKS_PER_S
from serving.live.streaming.channel import Channel, OnAir
from serving.live.streaming.door import Door

_UNIT_BYTES: Final = 7 * 188
"""What fits a packet of 1500 bytes."""
_BACKLOG: Final = 500
_OPTIONS: Final = {
    "flush_packets": "1",
    "mpegts_flags": "resend_headers+pat_pmt_at_frames+initial_discontinuity",
}


class _Writer:
    """What FFmpeg writes to."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def write(self, data: bytes) -> int:
        """Pass a piece on."""
        self._write(bytes(data))
        return len(data)


class TransportStream:
    """A sink that turns pictures into pieces of a transport stream."""

    def __init__(self, channel: Channel, write: Callable[[bytes], None], hang_up: Callable[[], None]) -> None:
        self._channel, self._write, self._hang_up = channel, write, hang_up
        self._output: Any = None
        self._last_dts = 0

    def send(self, picture: OnAir) -> None:
        """Multiplex a picture and pass on what comes of it."""
        if self._output is None or picture.dts_ticks <= self._last_dts:
            self._output = av.open(_Writer(self._write), "w", format="mpegts", options=dict(_OPTIONS))
            self._stream = self._output.add_mux_stream(
                self._channel.codec, width=self._channel.width_px, height=self._channel.height_px
            )
        packet = av.Packet(picture.data)
        packet.pts, packet.dts, packet.time_base = picture.ticks, picture.dts_ticks, Fraction(1, TICKS_PER_S)
        packet.is_keyframe, packet.stream = picture.is_keyframe, self._stream
        self._last_dts = picture.dts_ticks
        self._output.mux(packet)

    def close(self) -> None:
        """Hang up."""
        self._hang_up()


def udp_sink(channel: Channel, address: tuple[str, int]) -> TransportStream:
    """Send a channel to a UDP port, whoever listens."""
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def write(data: bytes) -> None:
        for start in range(0, len(data), _UNIT_BYTES):
            with suppress(OSError):  # nobody listens
                sender.sendto(data[start : start + _UNIT_BYTES], address)

    return TransportStream(channel, write, sender.close)


class _Handler(BaseHTTPRequestHandler):
    channels: dict[str, Channel]

    def do_GET(self) -> None:
        """Send a camera's stream until either side hangs up."""
        channel = self.channels.get(self.path.strip("/").removesuffix(".ts"))
        if channel is None:
            self.send_error(404, "no such camera")
            return
        pieces: queue.Queue[bytes | None] = queue.Queue(maxsize=_BACKLOG)
        sink = TransportStream(channel, lambda data: _offer(pieces, data), lambda: _offer(pieces, None))
        if not channel.add(sink):
            self.send_error(503, "the camera is off")
            return
        try:
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            for piece in _taken(pieces):
                self.wfile.write(piece)
        except OSError:
            pass  # The listener went away.
        finally:
            channel.remove(sink)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: stdout is for programs."""


def _offer(pieces: queue.Queue[bytes | None], data: bytes | None) -> None:
    try:
        pieces.put_nowait(data)
    except queue.Full:  # A listener that does not listen.
        pieces.get_nowait()
        with suppress(queue.Full):
            pieces.put_nowait(None)


def _taken(pieces: queue.Queue[bytes | None]) -> Iterator[bytes]:
    while (piece := pieces.get()) is not None:
        yield piece


class HttpStreams(Door):
    """Serves `/<camera>.ts`."""

    server_class = ThreadingHTTPServer
    handler_class = _Handler
