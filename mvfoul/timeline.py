"""Which of a clip's packets hold the frames of a `ClipSpec`: chosen by time, before anything is decoded.

Frame `i` is the picture shown `i / 25` s after the clip's first picture: the latest one whose timestamp is not later
(by more than `_TOLERANCE_S`, for containers that round timestamps). In a 25 fps file that is the file's own frame `i`;
other, changing and unknown frame rates need no special case.

The first picture is the first that can be decoded and that the container shows: a stream that starts in the middle of
a group of pictures starts at its first keyframe, and what an edit list cuts away is not counted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Final

from av.packet import Packet
from av.video.stream import VideoStream

from mvfoul.clip import TIMELINE_FPS
from mvfoul.errors import InvalidClipError

# Matroska rounds to 1 ms, so the difference of two timestamps is off by up to 1 ms.
_TOLERANCE_S: Final = Fraction(1, 1000)


@dataclass(frozen=True)
class Timeline:
    """The packets of a clip from its first keyframe on, and when their pictures are shown."""

    packets: Sequence[Packet[VideoStream]]
    """In decoding order."""
    timestamps: Sequence[int]
    """Of the pictures that are shown, ascending, in units of `time_base`."""
    time_base: Fraction
    """Seconds."""

    @property
    def duration_s(self) -> Fraction:
        """From the first picture until the last one is over."""
        last = self.timestamps[-1]
        declared = max((p.duration or 0 for p in self.packets if p.pts == last), default=0)
        gap = last - self.timestamps[-2] if len(self.timestamps) > 1 else 0
        last_s = (declared or gap) * self.time_base or Fraction(1, TIMELINE_FPS)
        return (last - self.timestamps[0]) * self.time_base + last_s

    def choose(self, frame_indices: Sequence[int]) -> dict[int, list[int]]:
        """Return the timestamps of the wanted pictures, and the places on the T axis where each goes.

        Raises:
            InvalidClipError: The clip is over before the last of them.
        """
        last_index, duration_s = max(frame_indices), self.duration_s
        if Fraction(last_index, TIMELINE_FPS) + _TOLERANCE_S > duration_s:
            raise InvalidClipError(
                f"the clip has {len(self.timestamps)} readable frames ({float(duration_s):.2f} s); frame {last_index} "
                f"(at {last_index / TIMELINE_FPS:.2f} s) is needed. Use a longer clip, or one that was copied whole."
            )
        places: dict[int, list[int]] = {}
        for place, index in enumerate(frame_indices):
            shown = bisect_right(self.timestamps, self.timestamps[0] + _ticks(index, self.time_base)) - 1
            places.setdefault(self.timestamps[shown], []).append(place)
        return places

    def runs(self, wanted: Collection[int]) -> Iterator[Sequence[Packet[VideoStream]]]:
        """Yield the packets to decode for the pictures `wanted`: from the keyframe before them, else from the first.

        The second run is for keyframes that are none: recovery points, or wrong flags.
        """
        first = min(wanted)
        start = max(i for i, p in enumerate(self.packets) if i == 0 or (p.is_keyframe and pts_of(p) <= first))
        end = 1 + max(i for i, p in enumerate(self.packets) if p.pts in wanted)
        yield self.packets[start:end]
        if start > 0:
            yield self.packets[:end]


def read_timeline(
    packets: Iterable[Packet[VideoStream]], time_base: Fraction, *, last_index: int | None = None
) -> Timeline:
    """List the packets of a video stream, up to a second after the frame `last_index` or to the end.

    Raises:
        InvalidClipError: No packet can be decoded and shown, or one has no timestamp.
    """
    # A second more than needed, so that timestamps in disorder are noticed.
    window = None if last_index is None else _ticks(last_index + TIMELINE_FPS, time_base)
    listed: list[Packet[VideoStream]] = []
    timestamps: list[int] = []
    for packet in packets:
        if not listed and not packet.is_keyframe:
            continue
        listed.append(packet)
        # What follows a keyframe but is shown before it refers to pictures before the keyframe, which are not there.
        if not packet.is_discard and pts_of(packet) >= pts_of(listed[0]):
            timestamps.append(pts_of(packet))
        if window is not None and timestamps and _is_past(packet, timestamps[0] + window):
            break
    if not timestamps:
        raise InvalidClipError("the clip has no picture that can be decoded (no keyframe); encode it again.")
    return Timeline(listed, sorted(timestamps), time_base)


def _ticks(frame_index: int, time_base: Fraction) -> int:
    """Return the latest timestamp, counted from the first picture's, that a frame's picture may have."""
    return floor((Fraction(frame_index, TIMELINE_FPS) + _TOLERANCE_S) / time_base)


def _is_past(packet: Packet[VideoStream], timestamp: int) -> bool:
    """Whether everything that follows is shown later: nothing is shown before it is decoded."""
    return packet.dts is not None and packet.dts > timestamp


def pts_of(packet: Packet[VideoStream]) -> int:
    """Return when a packet's picture is shown, in units of its time base.

    Raises:
        InvalidClipError: The container does not say.
    """
    if packet.pts is None:
        raise InvalidClipError(
            "the clip has pictures without timestamps (B-frames in AVI have none). Encode it again as mp4."
        )
    return packet.pts
