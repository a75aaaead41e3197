"""Cut a few seconds out of the ring buffer: an mp4 in memory whose time zero is exactly where it was asked to be.

Nothing is decoded or encoded. The mp4 starts with the keyframe before the cut; an edit list hides what is shown before
time zero, in `mvfoul.video` as in players. The picture that is on display at time zero is retimed to it, so that frame
`i` of a clip specification is the picture that the camera showed `i / 25` s after the cut's first instant: for any
frame rate, group length and phase. measured: exact in every case of tests/serving/live/test_cut.py, so there is no
second way by encoding again.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Final

import av

from mvfoul.clip import TIMELINE_FPS, ClipSpec
from mvfoul.errors import InvalidClipError, MVFoulError
from mvfoul.video import decode_clip, probe_clip
from serving.live.buffer import CodedPicture
from serving.live.clock import TICKS_PER_S

_TOLERANCE_TICKS: Final = TICKS_PER_S // 1000
"""As in `mvfoul.timeline`: a picture that is at most 1 ms late is on time."""
_MAX_HOLE_S: Final = 0.5
_CHECK_PX: Final = 16
_PARAMETER_SETS: Final = {"h264": (0x1F, 0, 7), "hevc": (0x7E, 1, 33)}
"""Mask and shift of a unit's type in its first byte, and the type of a sequence parameter set."""


class CutError(MVFoulError):
    """The buffer does not hold what a cut needs; this view is left out of the decision."""


@dataclass(frozen=True)
class CameraCut:
    """A clip of one camera around a contact."""

    camera: str
    data: bytes
    """mp4; its time zero is `contact_s` less the seconds before it."""
    contact_s: float
    """UNIX seconds, as asked for."""
    first_frame_s: float
    """When the first shown picture was taken; at most one picture's duration before time zero."""
    frames: int
    """Pictures that are shown."""
    sha256: str
    """Of `data`."""


def cut_pictures(
    camera: str, pictures: Sequence[CodedPicture], start_s: float, end_s: float
) -> tuple[bytes, int, float]:
    """Return the mp4 of the pictures on display from `start_s` to `end_s`, their count, and when the first was taken.

    Raises:
        CutError: Pictures are missing at the start, at the end or between, or were damaged on the way.
    """
    # The clock goes on learning; within a cut it stands still.
    starts = {segment: segment.clock.ticks(start_s - segment.offset_s) for segment in {p.segment for p in pictures}}
    timed = [(picture.ticks - starts[picture.segment], picture) for picture in pictures]
    if not timed:
        raise CutError(f"camera {camera}: its buffer is empty. Wait until it is ok.")
    first, last = _bounds(camera, timed, start_s, end_s)
    run = timed[first : last + 1]
    first_shown = max(ticks for ticks, _ in run if ticks <= _TOLERANCE_TICKS)
    _check_one_stream(camera, [picture for _, picture in run])
    _check_whole(camera, [t for t, _ in run if t >= first_shown], end_s - start_s)
    if any(picture.is_corrupt for _, picture in run):
        raise CutError(f"camera {camera}: parts of the pictures were lost on the way. Check its network.")
    shown = _apart([(0 if ticks == first_shown else ticks, picture) for ticks, picture in run])
    frames = sum(ticks >= 0 for ticks, _ in shown)
    try:
        data = _mp4(shown)
        if _has_gap(shown):
            _check_decodes(data)
    except (av.error.FFmpegError, InvalidClipError) as error:
        reason = getattr(error, "strerror", "") or error
        raise CutError(f"camera {camera}: pictures were lost, and what is left is no clip ({reason})") from error
    return data, frames, start_s + first_shown / TICKS_PER_S


def _has_gap(shown: Sequence[tuple[int, CodedPicture]]) -> bool:
    """Whether a picture is missing, from the keyframe on: others may be built on it."""
    times = sorted(ticks for ticks, _ in shown)
    interval = shown[-1][1].segment.interval_ticks
    return any(later - earlier > 1.5 * interval for earlier, later in pairwise(times))


def _check_decodes(data: bytes) -> None:
    """Decode as the server will; about a second for 720p, which a camera that loses nothing does not cost.

    Raises:
        InvalidClipError: It will not.
    """
    last = int(probe_clip(data).duration_s * TIMELINE_FPS) - 1
    decode_clip(data, ClipSpec(window=(0, last + 1), frame_indices=(0, last), size_px=_CHECK_PX))


def _apart(shown: Sequence[tuple[int, CodedPicture]]) -> list[tuple[int, CodedPicture]]:
    """Move a picture by a tick where some sender gave two the same time, which no mp4 can hold."""
    taken: set[int] = set()
    apart = []
    for ticks, picture in shown:
        while ticks in taken:
            ticks += 1  # noqa: PLW2901
        taken.add(ticks)
        apart.append((ticks, picture))
    return apart


def _bounds(camera: str, timed: Sequence[tuple[int, CodedPicture]], start_s: float, end_s: float) -> tuple[int, int]:
    """Return the places of the first and the last picture to copy."""
    keyframes = [i for i, (ticks, picture) in enumerate(timed) if picture.is_keyframe and ticks <= _TOLERANCE_TICKS]
    if not keyframes:
        missing_s = timed[0][0] / TICKS_PER_S
        raise CutError(
            f"camera {camera}: the first {missing_s:.2f} s of the cut are not in the buffer (no longer, or not yet). "
            "Trigger sooner, or make the buffer longer."
        )
    settled_s = max(p.segment.unix_s(p.settled_ticks + p.segment.interval_ticks) for _, p in timed[-2:])
    if settled_s < end_s:
        raise CutError(
            f"camera {camera}: the last {end_s - settled_s:.2f} s of the cut have not arrived. Wait for them."
        )
    length = round((end_s - start_s) * TICKS_PER_S)
    first = keyframes[-1]
    last = max(i for i, (ticks, _) in enumerate(timed) if i >= first and (ticks <= length or i == first))
    latest = max(ticks for ticks, _ in timed[first : last + 1])
    # Pictures shown before the latest one, but coded after it.
    while last + 1 < len(timed) and 0 <= timed[last + 1][0] < latest:
        last += 1
    return first, last


def _check_one_stream(camera: str, run: Sequence[CodedPicture]) -> None:
    first = run[0].segment
    for picture in run:
        segment = picture.segment
        if (segment.connection, segment.codec) != (first.connection, first.codec):
            raise CutError(f"camera {camera}: it was reconnected in the cut. Check its network.")


def _check_whole(camera: str, ticks: Sequence[int], length_s: float) -> None:
    shown = sorted(ticks)
    ends = [*shown[1:], max(shown[-1], round(length_s * TICKS_PER_S))]
    hole_s, at = max((end - start, start) for start, end in zip(shown, ends, strict=True))
    if hole_s > _MAX_HOLE_S * TICKS_PER_S:
        raise CutError(
            f"camera {camera}: {hole_s / TICKS_PER_S:.2f} s without a picture, from {at / TICKS_PER_S:.2f} s after the "
            "cut's start on. Check its network."
        )


def _mp4(shown: Sequence[tuple[int, CodedPicture]]) -> bytes:
    segment = shown[0][1].segment
    out = io.BytesIO()
    options = {
        "video_track_timescale": str(TICKS_PER_S),
        "movie_timescale": str(TICKS_PER_S),
        # Times before zero stay, and become the edit list.
        "avoid_negative_ts": "disabled",
    }
    with av.open(out, "w", format="mp4", options=options) as container:
        stream = container.add_mux_stream(
            segment.codec, rate=_rate(segment.interval_ticks), width=segment.width_px, height=segment.height_px
        )
        times = [ticks for ticks, _ in shown]
        decoding = sorted(times)
        delay = max(d - t for d, t in zip(decoding, times, strict=True))
        for number, (ticks, picture) in enumerate(shown):
            packet = av.Packet(_self_contained(picture) if number == 0 else picture.data)
            packet.pts, packet.dts, packet.time_base = ticks, decoding[number] - delay, Fraction(1, TICKS_PER_S)
            packet.duration, packet.is_keyframe, packet.stream = segment.interval_ticks, picture.is_keyframe, stream
            container.mux(packet)
    return out.getvalue()


def _rate(interval_ticks: int) -> Fraction:
    return Fraction(TICKS_PER_S, interval_ticks or TICKS_PER_S // 25).limit_denominator(1001)


def _self_contained(picture: CodedPicture) -> bytes:
    """Return a keyframe's data with its parameter sets, which some senders tell only once (RTSP)."""
    codec, extradata = picture.segment.codec, picture.segment.extradata
    if codec not in _PARAMETER_SETS or not extradata:
        return picture.data
    mask, shift, wanted = _PARAMETER_SETS[codec]
    units = re.finditer(rb"\x00\x00\x01(.)", picture.data, re.DOTALL)
    has_own = any((unit[1][0] & mask) >> shift == wanted for unit in units)
    return picture.data if has_own else extradata + picture.data


def sha256_of(data: bytes) -> str:
    """Return the hash that the audit trail names a clip by."""
    return hashlib.sha256(data).hexdigest()
