"""What the cameras play: action after action, each camera one view of it, as compressed pictures."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Protocol

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from numpy.typing import NDArray

from mvfoul.clip import CONTACT_FRAME, TIMELINE_FPS
from mvfoul.errors import AnnotationError, InvalidClipError
from serving.live.clock import TICKS_PER_S

_TICK: Final = Fraction(1, TICKS_PER_S)
INTERVAL_TICKS: Final = TICKS_PER_S // TIMELINE_FPS
CONTACT_TICKS: Final = CONTACT_FRAME * INTERVAL_TICKS + INTERVAL_TICKS // 2
"""The contact of a clip of the data set: the middle of the time in which frame 75 is on display."""


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """One compressed picture in Annex B form; 1/90000 s from the start of its clip."""

    data: bytes
    ticks: int
    dts_ticks: int
    is_keyframe: bool


@dataclass(frozen=True)
class Take:
    """What all cameras play for some seconds."""

    name: str
    clips: Sequence[Path | None]
    """One per camera; None is black."""
    contact_ticks: int | None = None


class Programme(Protocol):
    """Takes, one after the other, and from the start again."""

    @property
    def takes(self) -> Sequence[Take]:
        """Return each of them once."""

    def take(self, number: int) -> Take:
        """Return a take; numbers count on over repetitions."""


@dataclass(frozen=True)
class Repeated:
    """A list of takes that is repeated for ever."""

    takes: Sequence[Take]

    def take(self, number: int) -> Take:
        """Return a take; numbers count on over repetitions."""
        return self.takes[number % len(self.takes)]


def actions_of(split_folder: Path, cameras: int, *, limit: int = 0) -> Repeated:
    """List the actions of a split in the official layout, those with views for all cameras first; 0 is no limit.

    Raises:
        AnnotationError: There is no `action_<id>/clip_<k>.mp4` in the folder.
    """
    takes = []
    for folder in sorted(split_folder.glob("action_*"), key=_number):
        clips = sorted(folder.glob("clip_*.mp4"), key=_number)[:cameras]
        if clips:
            padded = [*clips, *[None] * (cameras - len(clips))]
            takes.append(Take(name=folder.name, clips=padded, contact_ticks=CONTACT_TICKS))
    if not takes:
        raise AnnotationError(
            f"{split_folder} has no action_<id>/clip_<k>.mp4. Name the folder of a split in the official layout."
        )
    return Repeated(sorted(takes, key=lambda take: take.clips.count(None))[: limit or None])


def _number(path: Path) -> tuple[int, str]:
    digits = path.stem.rpartition("_")[2]
    return (int(digits) if digits.isdigit() else 0, path.name)


@functools.lru_cache(maxsize=32)
def read_clip(path: Path) -> tuple[EncodedPicture, ...]:
    """Read a clip's compressed pictures; none is decoded.

    Raises:
        InvalidClipError: It is not h264, or hides pictures at its start.
    """
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if stream.codec_context.name not in ("h264", "hevc"):
            raise InvalidClipError(f"{path} is {stream.codec_context.name}. Encode it as h264.")
        packets = [p for p in container.demux(stream) if p.size]
        if any(p.is_discard for p in packets):
            raise InvalidClipError(f"{path} hides its first pictures (edit list). Encode it again.")
        if (stream.codec_context.extradata or b"")[:1] == b"\x01":
            convert = BitStreamFilterContext(f"{stream.codec_context.name}_mp4toannexb", stream)
            packets = [whole for p in packets for whole in convert.filter(p)]
        times = [_timed(p) for p in packets]
        first = min(ticks for ticks, _ in times)
        return tuple(
            EncodedPicture(bytes(p), ticks - first, dts - first, p.is_keyframe)
            for p, (ticks, dts) in zip(packets, times, strict=True)
        )


def codec_of(path: Path) -> tuple[str, int, int]:
    """Return FFmpeg's name of a clip's codec, and width and height in pixels."""
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        return context.name, context.width, context.height


def _timed(packet: Any) -> tuple[int, int]:
    if packet.pts is None or packet.dts is None:
        raise InvalidClipError("a clip has pictures without timestamps. Encode it again as mp4.")
    return round(packet.pts * packet.time_base / _TICK), round(packet.dts * packet.time_base / _TICK)


def check_takes(takes: Sequence[Take]) -> None:
    """Read every clip of a programme before it goes on the air.

    Raises:
        InvalidClipError: One cannot be read, or has another codec than the camera's first: viewers are told it once.
    """
    first: dict[int, str] = {}
    for take in takes:
        for camera, clip in enumerate(take.clips):
            if clip is None:
                continue
            try:
                read_clip(clip)
                codec = codec_of(clip)[0]
            except (av.error.FFmpegError, OSError, IndexError, ValueError) as error:
                raise InvalidClipError(f"{clip} cannot be read: {error}. Take it out, or encode it again.") from error
            if (expected := first.setdefault(camera, codec)) != codec:
                raise InvalidClipError(
                    f"{clip} is {codec}, the clip before it on this camera {expected}. Encode all its clips alike."
                )


def length_ticks(pictures: Sequence[EncodedPicture]) -> int:
    """Return how long a clip's pictures are on display, the last as long as the one before."""
    shown = sorted(picture.ticks for picture in pictures)
    return shown[-1] + (shown[-1] - shown[-2] if len(shown) > 1 else INTERVAL_TICKS)


def still(rgb: NDArray[np.uint8], *, codec: str = "h264") -> Iterator[EncodedPicture]:
    """Encode one picture, uint8 `[H, W, 3]`, again and again, at 25 per second: a black or a frozen camera."""
    height, width, _ = rgb.shape
    encoder: Any = av.CodecContext.create({"h264": "libx264", "hevc": "libx265"}[codec], "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.gop_size = width, height, "yuv420p", TIMELINE_FPS
    encoder.time_base, encoder.framerate = Fraction(1, TIMELINE_FPS), Fraction(TIMELINE_FPS)
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "threads": "1"}
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p")
    number = 0
    while True:
        frame.pts, frame.time_base = number, Fraction(1, TIMELINE_FPS)
        for packet in encoder.encode(frame):
            yield EncodedPicture(bytes(packet), number * INTERVAL_TICKS, number * INTERVAL_TICKS, packet.is_keyframe)
        number += 1


def decode_keyframe(picture: EncodedPicture, codec: str) -> NDArray[np.uint8]:
    """Decode a keyframe by itself to uint8 RGB `[H, W, 3]`."""
    decoder: Any = av.CodecContext.create(codec, "r")
    frame = [*decoder.decode(av.Packet(picture.data)), *decoder.decode(None)][0]
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    return pixels


def write_pattern(path: Path, *, width_px: int, height_px: int, seconds: int) -> None:
    """Write a moving test pattern of FFmpeg's as an mp4, h264, 25 pictures and one keyframe per second."""
    with (
        av.open(
            f"testsrc2=size={width_px}x{height_px}:rate={TIMELINE_FPS}:duration={seconds}", format="lavfi"
        ) as source,
        av.open(str(path), "w") as output,
    ):
        stream = output.add_stream("libx264", rate=TIMELINE_FPS, options={"preset": "veryfast", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        stream.codec_context.gop_size = TIMELINE_FPS
        for number, frame in enumerate(source.decode(video=0)):
            picture = frame.reformat(format="yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, TIMELINE_FPS)
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
