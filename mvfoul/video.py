"""Decode one view: encoded clip in, uint8 `[3, T, H, W]` out. The only decoder, for training and for serving.

The file is read into memory (bounded). Its packets up to the window's end are listed without decoding, the frames are
chosen by time (`mvfoul.timeline`), and decoding starts at the keyframe before the first of them. H.264 pictures
that are neither wanted nor referred to are skipped. Every picture that is decoded must arrive undamaged, since later
ones are built on it and FFmpeg would conceal the damage.

Threads: one. Training workers and the server decode many clips side by side, and with slice threads FFmpeg's H.264
decoder does not report damaged slices. measured: two frame threads cost 13 % more CPU time per real clip, and on two
busy cores they save no time. Calls from several threads do not disturb each other.

Not seen: damage that decodes without an error (one of 60 flipped bytes did, in real clips), and blocks that are missing
from a damaged Matroska file, whose reader skips them.

Hostile input: FFmpeg gets bytes in memory and a short list of containers and codecs, never a path, URL or playlist. How
large an index it builds is bounded before it begins (`mvfoul.mp4_index`).
"""

from __future__ import annotations

import io
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from mvfoul.clip import ClipSpec
from mvfoul.errors import InvalidClipError
from mvfoul.mp4_index import index_entries
from mvfoul.picture import has_hole, is_reference, upright
from mvfoul.resize import Resizer, cached_resizer
from mvfoul.timeline import Timeline, pts_of, read_timeline

_CONTAINERS: Final = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,avi"

# FFmpeg's names of decoders; some have two for one format.
_CODECS: Final = (
    *("h264", "hevc", "av1", "libdav1d", "vp8", "libvpx", "vp9", "libvpx-vp9"),
    *("mpeg4", "mpeg2video", "mjpeg"),
)


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """What a clip may cost before it is refused."""

    max_bytes: int = 64 * 2**20
    """Of the encoded clip."""
    max_frame_pixels: int = 4096 * 2304
    max_frames: int = 5000
    """Frames of the clip up to a second after the window, needed or not."""
    max_decode_s: float = 60.0
    """CPU seconds of the calling thread; a busy or suspended machine refuses nothing."""
    max_index_entries: int = 1 << 21
    """Of an mp4, times its edits: a day of video, or 43 s with uncompressed sound. FFmpeg needs up to 80 bytes each."""


DEFAULT_LIMITS: Final = DecodeLimits()


@dataclass(frozen=True)
class ClipInfo:
    """What a clip's packets declare; no picture was decoded to see whether it is true."""

    duration_s: float
    frames: int
    width_px: int
    height_px: int
    """As stored; a display matrix may turn the picture by 90 degrees."""
    fps: float
    """Average, from the timestamps."""
    codec: str


def decode_clip(source: Path | bytes, spec: ClipSpec, *, limits: DecodeLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Decode one view into uint8 `[3, T, H, W]`, RGB, resized; normalisation is the network's first layer.

    Args:
        source: A file's path, or the bytes of one.
        spec: Which frames, and how they are resized.
        limits: What the clip may cost.

    Raises:
        InvalidClipError: Not a video, damaged in or before the window, over before the last frame of `spec`, or over a
            limit. The message says what is wrong and the cure; the caller knows which clip it is.
    """
    deadline_s = time.thread_time() + limits.max_decode_s
    with _open(source, limits) as (container, stream):
        packets = _packets(container, stream, limits.max_frames)
        timeline = read_timeline(packets, _time_base(stream), last_index=spec.frame_indices[-1])
        places = timeline.choose(spec.frame_indices)
        decoder = _Decoder(stream, timeline, limits, deadline_s)
        *first_tries, last_try = timeline.runs(places)
        for run in first_tries:
            try:
                return _fill(decoder.pictures(run, places), places, spec)
            except InvalidClipError:
                decoder.reset()
        return _fill(decoder.pictures(last_try, places), places, spec)


def probe_clip(source: Path | bytes, *, limits: DecodeLimits = DEFAULT_LIMITS) -> ClipInfo:
    """List a clip's packets without decoding a picture. The whole clip, however long: `max_frames` does not apply.

    Raises:
        InvalidClipError: Not a video, without frames, or over a limit.
    """
    with _open(source, limits) as (container, stream):
        timeline = read_timeline(_packets(container, stream), _time_base(stream))
        frames, duration_s = len(timeline.timestamps), float(timeline.duration_s)
        return ClipInfo(
            duration_s=duration_s,
            frames=frames,
            width_px=stream.width,
            height_px=stream.height,
            fps=frames / duration_s,
            codec=stream.codec_context.name,
        )


@contextmanager
def _open(source: Path | bytes, limits: DecodeLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    data = source if isinstance(source, bytes) else _read(source, limits)
    if not data:
        raise InvalidClipError("the clip is empty (0 bytes); copy or record it again.")
    if len(data) > limits.max_bytes:
        raise InvalidClipError(
            f"the clip has more than {limits.max_bytes} bytes (the limit); cut it to the seconds around the contact."
        )
    if (entries := index_entries(data)) > limits.max_index_entries:
        raise InvalidClipError(
            f"the clip's index claims {entries} samples; the limit is {limits.max_index_entries}. It is forged, or "
            "very long: cut it to the seconds around the contact."
        )
    try:
        container = av.open(
            io.BytesIO(data),
            mode="r",
            options={"max_pixels": str(limits.max_frame_pixels)},
            container_options={
                "format_whitelist": _CONTAINERS,
                "codec_whitelist": ",".join(_CODECS),
                "protocol_whitelist": "none",
                # PyAV asks FFmpeg to guess timestamps that a container (AVI) lacks. With B-frames it guesses wrong.
                "fflags": "-genpts",
            },
            metadata_errors="replace",
        )
    except (av.error.FFmpegError, ValueError) as error:
        raise InvalidClipError(_why_not_a_video(data, error)) from error
    with container:
        yield container, _video_stream(container, limits)


def _read(path: Path, limits: DecodeLimits) -> bytes:
    if not path.exists():
        raise InvalidClipError("the file does not exist.")
    if not path.is_file():
        raise InvalidClipError("the path is not that of a file; give the path of one clip.")
    with path.open("rb") as stream:
        return stream.read(limits.max_bytes + 1)


def _why_not_a_video(data: bytes, error: Exception) -> str:
    if data[4:8] == b"ftyp" and b"moov" not in data:
        return "the clip is cut off: its index is missing (moov atom not found). Copy or record it again."
    return f"the clip is no video in mp4, mov, mkv, webm, ts or avi (FFmpeg: {_reason(error)}). Encode it as mp4."


def _video_stream(container: InputContainer, limits: DecodeLimits) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams if s.type != "video"})) or "a still"
        raise InvalidClipError(f"the clip has no video, only {kinds}. Send the file with the picture.")
    stream = streams[0]
    codec = stream.codec_context.name if stream.codec_context else "unknown"
    if codec not in _CODECS:
        raise InvalidClipError(f"the clip's codec is {codec}; known: {', '.join(_CODECS)}. Encode it as h264.")
    if not 0 < stream.width * stream.height <= limits.max_frame_pixels:
        raise InvalidClipError(
            f"the clip's pictures are {stream.width}x{stream.height}; the limit is {limits.max_frame_pixels} pixels."
        )
    return stream


def _time_base(stream: VideoStream) -> Fraction:
    if not stream.time_base:
        raise InvalidClipError("the clip's video has no time base; encode it again.")
    return stream.time_base


def _packets(
    container: InputContainer, stream: VideoStream, max_frames: int | None = None
) -> Iterator[Packet[VideoStream]]:
    try:
        for count, packet in enumerate(container.demux(stream)):
            if count == max_frames:
                raise InvalidClipError(
                    f"the clip has more than {max_frames} frames (the limit) up to a second after the window. Cut it."
                )
            if packet.size:
                yield packet
    except av.error.FFmpegError:
        return  # What is missing after the damage is reported as missing, if it is needed.
    except IndexError:
        return  # A transport stream had a stream more than announced: PyAV stumbles over it at the end.


def _fill(
    pictures: Iterable[tuple[int, NDArray[np.uint8]]], places: Mapping[int, Sequence[int]], spec: ClipSpec
) -> NDArray[np.uint8]:
    out = np.empty(spec.view_shape, np.uint8)
    resizers: dict[tuple[int, ...], Resizer] = {}  # A stream may change its size on the way.
    for timestamp, rgb in pictures:
        if rgb.shape not in resizers:
            resizers[rgb.shape] = cached_resizer(rgb.shape[0], rgb.shape[1], spec)
        first, *others = places[timestamp]
        resizers[rgb.shape].into(rgb, out[:, first])
        for other in others:
            out[:, other] = out[:, first]
    return out


class _Decoder:
    """Turns packets into upright RGB pictures, or says which picture is damaged."""

    def __init__(self, stream: VideoStream, timeline: Timeline, limits: DecodeLimits, deadline_s: float) -> None:
        self._context = stream.codec_context
        self._context.thread_count = 1
        self._context.options = {"max_pixels": str(limits.max_frame_pixels)}
        self._codec = self._context.name, self._context.extradata
        self._max_frame_pixels = limits.max_frame_pixels
        self._timeline = timeline
        self._deadline_s = deadline_s

    def reset(self) -> None:
        """Forget everything, for another run of packets."""
        self._context.flush_buffers()

    def pictures(
        self, packets: Sequence[Packet[VideoStream]], wanted: Collection[int]
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Decode packets that start with a keyframe; yield timestamp and uint8 `[H, W, 3]` of the wanted pictures.

        Raises:
            InvalidClipError: A picture is damaged or does not come out. Wanted or not: others are built on it.
        """
        reformatter = VideoReformatter()
        needed = [p for p in packets if p.pts in wanted or is_reference(p, *self._codec)]
        for timestamp, frame in self._frames(needed):
            if timestamp in wanted:
                try:
                    rgb = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                except av.error.FFmpegError as error:
                    raise self._damage(timestamp, f"its colours cannot be converted ({_reason(error)})") from error
                yield timestamp, upright(rgb.astype(np.uint8, copy=False), frame)

    def _frames(self, packets: Sequence[Packet[VideoStream]]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield every picture from the first packet's on, in the order in which they are shown.

        Pictures shown before the first packet's refer to what is not there: FFmpeg drops them.
        """
        start = pts_of(packets[0])
        due = {pts_of(p) for p in packets if pts_of(p) >= start and not p.is_discard}
        last = start - 1
        for packet in (*packets, None):
            for frame in self._decode(packet, start):
                if frame.pts is None or frame.pts <= last:
                    raise self._damage(last, "after it, timestamps contradict the order of the pictures")
                if frame.is_corrupt:
                    raise self._damage(frame.pts, "parts of it cannot be decoded")
                last = frame.pts
                due.discard(last)
                yield last, frame
        if due:
            raise self._damage(min(due), "the decoder does not return it")

    def _decode(self, packet: Packet[VideoStream] | None, start: int) -> list[VideoFrame]:
        if time.thread_time() > self._deadline_s:
            raise InvalidClipError(
                "the clip takes too long to decode (over the limit). Encode it with fewer or smaller frames."
            )
        timestamp = start if packet is None else pts_of(packet)
        if packet is not None and (packet.is_corrupt or has_hole(packet, *self._codec)):
            raise self._damage(timestamp, "a part of its data is missing")
        try:
            return self._context.decode(packet)
        except av.error.ArgumentError as error:
            # What FFmpeg leaves of a size that it refuses to allocate; its reason stands in its log only.
            if self._context.width or self._context.height:
                raise self._damage(timestamp, _reason(error)) from error
            limit = f"a picture claims to be larger than the limit, {self._max_frame_pixels} pixels, or has no size"
            raise self._damage(timestamp, limit) from error
        except av.error.FFmpegError as error:
            raise self._damage(timestamp, _reason(error)) from error

    def _damage(self, timestamp: int, reason: str) -> InvalidClipError:
        at_s = float((timestamp - self._timeline.timestamps[0]) * self._timeline.time_base)
        return InvalidClipError(f"the clip is damaged at {at_s:.2f} s: {reason}. Copy or record it again.")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or error)
