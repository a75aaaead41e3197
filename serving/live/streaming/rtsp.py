"""A channel as RTSP: what IP cameras speak. RTP inside the RTSP connection (RFC 2326, 10.12), with RTCP sender reports.

FFmpeg packs the pictures into RTP; the sender reports are written here, so that they tell exactly when a picture was
taken (RFC 3550, 6.4.1).
"""

from __future__ import annotations

import queue
import socket
import socketserver
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from typing import Any, Final

import av

from serving.live.clock import TICKS_PER_S
from serving.live.streaming.channel import Channel, OnAir
from serving.live.streaming.door import Door

_NTP_EPOCH_S: Final = 2_208_988_800
"""From 1900 to 1970."""
_REPORT_EVERY_S: Final = 1.0
_BACKLOG: Final = 2000
_ENCODINGS: Final = {"h264": "H264", "hevc": "H265"}


class RtpSink:
    """Turns pictures into the interleaved packets of one listener."""

    def __init__(self, channel: Channel) -> None:
        self._output: Any = av.open(
            self, "w", format="rtp", options={"rtpflags": "skip_rtcp", "packetsize": "1400", "payload_type": "96"}
        )
        self._stream = self._output.add_mux_stream(channel.codec, width=channel.width_px, height=channel.height_px)
        self.pieces: queue.Queue[bytes | None] = queue.Queue(maxsize=_BACKLOG)
        self._picture: OnAir | None = None
        self._reported_s = 0.0
        self._packets = self._bytes = self._count = 0

    def send(self, picture: OnAir) -> None:
        """Pack a picture."""
        packet = av.Packet(picture.data)
        # FFmpeg takes no timestamps that go back: it gets a count, and the true one is written into its packets.
        self._count += 1
        packet.pts, packet.dts, packet.time_base = self._count, self._count, Fraction(1, TICKS_PER_S)
        packet.is_keyframe, packet.stream = picture.is_keyframe, self._stream
        self._picture = picture
        self._output.mux(packet)

    def write(self, data: bytes) -> int:
        """Take an RTP packet from FFmpeg, and report when its picture was taken, now and then."""
        picture = self._picture
        if picture is None:
            return len(data)
        data = data[:4] + struct.pack(">I", picture.ticks & 0xFFFFFFFF) + data[8:]
        if abs(picture.unix_s - self._reported_s) >= _REPORT_EVERY_S:
            self._reported_s = picture.unix_s
            self._offer(1, self._report(picture.unix_s, data))
        self._packets, self._bytes = self._packets + 1, self._bytes + len(data) - 12
        self._offer(0, data)
        return len(data)

    def _report(self, unix_s: float, rtp: bytes) -> bytes:
        seconds = int(unix_s)
        ntp = (seconds + _NTP_EPOCH_S, int((unix_s - seconds) * 2**32))
        timestamp, source = struct.unpack(">II", rtp[4:12])
        return struct.pack(">BBHIIIIII", 0x80, 200, 6, source, *ntp, timestamp, self._packets, self._bytes)

    def _offer(self, channel: int, data: bytes) -> None:
        with suppress(queue.Full):  # A listener that does not listen.
            self.pieces.put_nowait(struct.pack(">cBH", b"$", channel, len(data)) + data)

    def close(self) -> None:
        """Hang up."""
        with suppress(queue.Full):
            self.pieces.put_nowait(None)


class _Handler(socketserver.StreamRequestHandler):
    channels: Mapping[str, Channel]

    def setup(self) -> None:
        """Begin to listen to one client."""
        super().setup()
        self._sink: RtpSink | None = None
        self._channel: Channel | None = None
        self._writing = threading.Lock()

    def handle(self) -> None:
        """Answer requests until either side hangs up."""
        with suppress(OSError, ValueError):
            while request := self._request():
                method, url, headers = request
                if not self._answer(method, url, headers):
                    return

    def finish(self) -> None:
        """Forget the client."""
        if self._channel and self._sink:
            self._channel.remove(self._sink)
            self._sink.close()
        with suppress(OSError):
            super().finish()

    def _request(self) -> tuple[str, str, dict[str, str]] | None:
        line = self.rfile.readline(4096)
        while line[:1] == b"$":  # A receiver report; its length is in it.
            line += self.rfile.read(max(0, 4 - len(line)))
            length = int.from_bytes(line[2:4], "big")
            self.rfile.read(max(0, 4 + length - len(line)))
            line = line[4 + length :] or self.rfile.readline(4096)
        if not line.strip():
            return None
        method, url, _ = line.decode().split(" ", 2)
        headers = {}
        while (header := self.rfile.readline(4096).decode().strip()) != "":
            key, _, value = header.partition(":")
            headers[key.strip().lower()] = value.strip()
        return method, url, headers

    def _answer(self, method: str, url: str, headers: Mapping[str, str]) -> bool:
        """Answer one request; False ends the session."""
        sequence = headers.get("cseq", "0")
        channel = self.channels.get(url.split("://", 1)[-1].partition("/")[2].split("/")[0])
        if method == "OPTIONS":
            self._reply(sequence, {"Public": "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"})
        elif channel is None or channel.is_off:
            self._reply(sequence, {}, status="404 Not Found")
            return False
        elif method == "DESCRIBE":
            base = url.rstrip("/") + "/"
            self._reply(sequence, {"Content-Type": "application/sdp", "Content-Base": base}, body=_sdp(channel))
        elif method == "SETUP":
            if "RTP/AVP/TCP" not in headers.get("transport", ""):
                self._reply(sequence, {}, status="461 Unsupported Transport")
            else:
                self._reply(sequence, {"Transport": "RTP/AVP/TCP;unicast;interleaved=0-1", "Session": "1"})
        elif method == "PLAY":
            self._reply(sequence, {"Session": "1"})
            self._play(channel)
        else:
            self._reply(sequence, {"Session": "1"})
        return method != "TEARDOWN"

    def _reply(self, sequence: str, headers: Mapping[str, str], *, status: str = "200 OK", body: str = "") -> None:
        lines = [f"RTSP/1.0 {status}", f"CSeq: {sequence}", *(f"{k}: {v}" for k, v in headers.items())]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        with self._writing:
            self.wfile.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())

    def _play(self, channel: Channel) -> None:
        self._channel, self._sink = channel, RtpSink(channel)
        channel.add(self._sink)
        threading.Thread(target=self._send, args=(self._sink.pieces,), name="rtsp-writer", daemon=True).start()

    def _send(self, pieces: queue.Queue[bytes | None]) -> None:
        with suppress(OSError):
            while (piece := pieces.get()) is not None:
                with self._writing:
                    self.wfile.write(piece)
            self.connection.shutdown(socket.SHUT_RDWR)


def _sdp(channel: Channel) -> str:
    encoding = _ENCODINGS[channel.codec]
    lines = [
        "v=0",
        "o=- 0 0 IN IP4 127.0.0.1",
        f"s={channel.name}",
        "c=IN IP4 0.0.0.0",
        "t=0 0",
        "a=control:*",
        "m=video 0 RTP/AVP 96",
        f"a=rtpmap:96 {encoding}/90000",
        *(["a=fmtp:96 packetization-mode=1"] if encoding == "H264" else []),
        "a=control:track1",
    ]
    return "\r\n".join(lines) + "\r\n"


class RtspStreams(Door):
    """Serves `rtsp://host:port/<camera>`."""

    server_class = socketserver.ThreadingTCPServer
    handler_class = _Handler
