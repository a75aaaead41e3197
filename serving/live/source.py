"""Open a camera and read its compressed pictures: network protocols, files and test patterns, all through PyAV."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import av
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from mvfoul.errors import ConfigError, MVFoulError
from serving.live import srt
from serving.live.clock import TICKS_PER_S

PATTERN_SCHEME: Final = "lavfi"
CODECS: Final = ("h264", "hevc", "mpeg4", "mpeg2video", "mjpeg")
"""What can be cut out of a stream without encoding it again, to exactly the right picture (tested)."""

_TICK: Final = Fraction(1, TICKS_PER_S)
_OPEN_TIMEOUT_S: Final = 4.0
_READ_TIMEOUT_S: Final = 1.5
_PLAYLIST_TIMEOUT_S: Final = 12.0
"""HLS delivers a segment at a time, of 2 to 10 s."""

# What each scheme may open in turn; a playlist never names a local file.
_WHITELISTS: Final[Mapping[str, str]] = {
    "rtsp": "rtsp,rtp,udp,tcp",
    "rtsps": "rtsps,rtp,udp,tcp,tls",
    "rtp": "rtp,udp",
    "udp": "udp",
    "tcp": "tcp",
    "srt": "srt",
    "http": "http,https,tcp,tls,crypto",
    "https": "http,https,tcp,tls,crypto",
    "rtmp": "rtmp,tcp",
    "file": "file",
}
_COMMON_OPTIONS: Final = {"fflags": "-genpts", "analyzeduration": "1500000", "probesize": "5000000"}
_OPTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "rtsp": {"rtsp_flags": "prefer_tcp"},
    "rtsps": {"rtsp_flags": "prefer_tcp"},
    "udp": {"fifo_size": "57344", "overrun_nonfatal": "1", "buffer_size": str(2**21)},
}

# measured on loopback: the parser waits for the next picture, and in a transport stream a packet ends with the next.
_LAGS: Final[Mapping[str, int]] = {"mpegts": 2, "hls": 2, "rtsp": 1}
_MOST_UNTIMED: Final = 8


class WrongCodecError(MVFoulError):
    """A camera sends something that cannot become a clip."""


@dataclass(frozen=True, slots=True)
class Received:
    """One compressed picture as it came; timestamps in ticks of 1/90000 s."""

    data: bytes
    ticks: int
    dts_ticks: int | None
    is_keyframe: bool
    is_corrupt: bool
    told_s: float | None
    """UNIX seconds at which the sender says that it was taken."""


class Source(Protocol):
    """An open camera."""

    codec: str
    width_px: int
    height_px: int
    extradata: bytes
    is_paced: bool
    """Whether pictures are to be taken at the speed of their timestamps: they come as fast as they are read."""

    lag: int
    """A picture is returned when so many more have begun to arrive: FFmpeg looks for where it ends."""

    def pictures(self) -> Iterator[Received]:
        """Yield compressed pictures in decoding order until the stream ends.

        Raises:
            av.error.FFmpegError: The connection is lost, or nothing came for seconds.
        """


def public_url(url: str) -> str:
    """Return a URL without its user and password, and without its query, for messages and logs."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    address, slash, path = rest.partition("/")
    _, _, host = address.rpartition("@")
    return (scheme + separator + host + slash + path).partition("?")[0]


def check_url(url: str, camera: str) -> None:
    """Refuse what can never be opened here.

    Raises:
        ConfigError: It is no URL, its file does not exist, or this build of FFmpeg lacks the protocol.
    """
    scheme = scheme_of(url)
    if scheme == PATTERN_SCHEME:
        _check_pattern(url, camera)
        return
    if scheme == "file":
        if not (path := _path_of(url)).is_file():
            raise ConfigError(f"camera {camera}: there is no file {str(path)!r}. Give a file, or a URL with ://.")
        return
    if scheme not in _WHITELISTS:
        known = ", ".join(f"{s}://" for s in _WHITELISTS if _can_open(s))
        raise ConfigError(
            f"camera {camera}: {public_url(url)!r} has the unknown protocol {scheme}. Use {known}, lavfi: or a file."
        )
    _check_address(url, camera)
    if not _can_open(scheme):
        cure = f"Install {srt.PROGRAM} (Debian: srt-tools)" if scheme == "srt" else "Use another protocol"
        raise ConfigError(
            f"camera {camera}: {public_url(url)!r} needs the protocol {scheme}, which this build of FFmpeg lacks "
            f"(PyAV {av.__version__}). {cure}, or a PyAV that was built with it."
        )


def _can_open(scheme: str) -> bool:
    return has_protocol(scheme) or (scheme == "srt" and srt.is_available())


def _check_pattern(url: str, camera: str) -> None:
    try:
        av.open(url.split(":", 1)[1], format="lavfi").close()
    except (av.error.FFmpegError, ValueError) as error:
        raise ConfigError(
            f"camera {camera}: {public_url(url)!r} is no test pattern of FFmpeg's. "
            "Use lavfi:testsrc2=size=1280x720:rate=25."
        ) from error


def _check_address(url: str, camera: str) -> None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(
            f"camera {camera}: {public_url(url)!r} is no URL ({error}). Use scheme://host:port/path."
        ) from error
    if scheme_of(url) in ("udp", "rtp", "tcp", "srt") and port is None:
        raise ConfigError(f"camera {camera}: {public_url(url)!r} names no port. Use scheme://host:port.")
    if not host and scheme_of(url) not in ("udp", "rtp", "srt"):
        raise ConfigError(f"camera {camera}: {public_url(url)!r} names no host. Use scheme://host:port/path.")


def scheme_of(url: str) -> str:
    """Return the protocol of a URL; `file` for a path, `lavfi` for a test pattern."""
    if url.startswith(f"{PATTERN_SCHEME}:"):
        return PATTERN_SCHEME
    return url.split("://", 1)[0].lower() if "://" in url else "file"


@functools.cache
def has_protocol(scheme: str) -> bool:
    """Whether this build of FFmpeg knows a protocol. It is asked to open an address where nobody answers."""
    try:
        av.open(f"{scheme}://127.0.0.1:9", timeout=0.05).close()
    except av.error.ProtocolNotFoundError:
        return False
    except (av.error.FFmpegError, ValueError):
        return True
    return True


@contextmanager
def open_source(url: str) -> Iterator[Source]:
    """Connect to a camera.

    Raises:
        WrongCodecError: It sends no video, or of a codec that cannot become a clip.
        av.error.FFmpegError: It cannot be reached, or sends nothing that FFmpeg knows.
    """
    if scheme_of(url) == PATTERN_SCHEME:
        with av.open(url.split(":", 1)[1], format="lavfi") as container:
            yield _Pattern(container)
        return
    if scheme_of(url) == "srt" and not has_protocol("srt"):
        with (
            srt.SrtPipe(url, open_timeout_s=_OPEN_TIMEOUT_S, read_timeout_s=_READ_TIMEOUT_S) as pipe,
            av.open(pipe, "r", format="mpegts", container_options=dict(_COMMON_OPTIONS)) as container,
        ):
            yield _Stream(container, _video_of(container))
        return
    with _open(url) as container:
        yield _Stream(container, _video_of(container))


def _open(url: str) -> InputContainer:
    scheme = scheme_of(url)
    is_playlist = scheme in ("http", "https") and urlsplit(url).path.endswith(".m3u8")
    return av.open(
        os.fspath(_path_of(url)) if scheme == "file" else url,
        container_options={
            **_COMMON_OPTIONS,
            **_OPTIONS.get(scheme, {}),
            "protocol_whitelist": _WHITELISTS[scheme],
        },
        timeout=(_OPEN_TIMEOUT_S, _PLAYLIST_TIMEOUT_S if is_playlist else _READ_TIMEOUT_S),
        metadata_errors="replace",
    )


def _path_of(url: str) -> Path:
    return Path(url.removeprefix("file://"))


def _video_of(container: InputContainer) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise WrongCodecError(f"it sends no video, only {', '.join(s.type for s in container.streams) or 'nothing'}")
    codec = streams[0].codec_context.name if streams[0].codec_context else "unknown"
    if codec not in CODECS:
        raise WrongCodecError(f"its codec is {codec}; known: {', '.join(CODECS)}")
    return streams[0]


class _Stream:
    """A camera that FFmpeg demuxes."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        context = stream.codec_context
        self._container, self._stream = container, stream
        self.codec: str = context.name
        self.width_px, self.height_px = int(context.width), int(context.height)
        extradata = context.extradata or b""
        self._to_annex_b: BitStreamFilterContext | None = None
        if self.codec in ("h264", "hevc") and extradata[:1] == b"\x01":
            self._to_annex_b = BitStreamFilterContext(f"{self.codec}_mp4toannexb", stream)
            extradata = b""  # The filter writes it into the keyframes.
        self.extradata = extradata
        self.is_paced = bool(container.duration)
        self._untimed: list[tuple[Packet[Any], float]] = []
        self.lag = _LAGS.get(container.format.name, 0)

    def pictures(self) -> Iterator[Received]:
        """Yield compressed pictures in decoding order until the stream ends."""
        for packet in self._container.demux(self._stream):
            if not packet.size:
                continue
            told_s = _told_s(packet)
            for whole in self._to_annex_b.filter(packet) if self._to_annex_b else [packet]:
                for timed, timed_s in self._with_times(whole, told_s):
                    if (received := _received(timed, self._stream.time_base, timed_s)) is not None:
                        yield received

    def _with_times(self, packet: Packet[Any], told_s: float | None) -> list[tuple[Packet[Any], float | None]]:
        """Hold back pictures without a timestamp until the next one's: RTSP's first, a keyframe, has none."""
        if packet.pts is None and told_s is not None and len(self._untimed) < _MOST_UNTIMED:
            self._untimed.append((packet, told_s))
            return []
        untimed: list[tuple[Packet[Any], float]]
        untimed, self._untimed = self._untimed, []
        if packet.pts is None or told_s is None:
            return [(packet, told_s)]
        for early, early_s in untimed:
            early.pts = packet.pts - round((told_s - early_s) / (early.time_base or _TICK))
        return [*untimed, (packet, told_s)]


class _Pattern:
    """A picture generator of FFmpeg's, encoded here as a camera would."""

    def __init__(self, container: InputContainer) -> None:
        self._container = container
        stream = container.streams.video[0]
        self._rate = Fraction(stream.average_rate or 25)
        self.codec, self.extradata, self.is_paced, self.lag = "h264", b"", True, 0
        self.width_px, self.height_px = int(stream.codec_context.width), int(stream.codec_context.height)

    def pictures(self) -> Iterator[Received]:
        """Yield compressed pictures for ever."""
        encoder: Any = av.CodecContext.create("libx264", "w")
        encoder.width, encoder.height, encoder.pix_fmt = self.width_px, self.height_px, "yuv420p"
        encoder.time_base, encoder.framerate, encoder.gop_size = 1 / self._rate, self._rate, round(self._rate)
        encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "threads": "1"}
        with closing(self._container):
            for number, frame in enumerate(self._container.decode(video=0)):
                picture = frame.reformat(format="yuv420p")
                picture.pts, picture.time_base = number, 1 / self._rate
                for packet in encoder.encode(picture):
                    if (received := _received(packet, 1 / self._rate, None)) is not None:
                        yield received


def _received(packet: Packet[Any], time_base: Fraction | None, told_s: float | None) -> Received | None:
    """Copy a packet; None if nobody says when it is shown."""
    time_base = packet.time_base or time_base
    if packet.pts is None or not time_base:
        return None
    return Received(
        data=bytes(packet),
        ticks=round(packet.pts * time_base / _TICK),
        dts_ticks=None if packet.dts is None else round(packet.dts * time_base / _TICK),
        is_keyframe=packet.is_keyframe,
        is_corrupt=packet.is_corrupt,
        told_s=told_s,
    )


def _told_s(packet: Packet[Any]) -> float | None:
    """Read the producer's reference time (FFmpeg's AVProducerReferenceTime: i64 microseconds, i32 flags)."""
    if not packet.has_sidedata("prft"):
        return None
    return int.from_bytes(bytes(packet.get_sidedata("prft"))[:8], "little", signed=True) / 1e6
