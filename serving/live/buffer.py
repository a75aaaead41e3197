"""The last seconds of one camera as compressed pictures: bounded by time and by bytes, and never decoded.

What goes in comes out in whole groups of pictures, since a picture is nothing without the keyframe before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.live.clock import StreamClock


@dataclass(eq=False)
class Segment:
    """A stretch of a stream whose timestamps go on and whose pictures are coded alike: until it reconnects or jumps."""

    connection: int
    """Counts connections; what was sent between two of them is lost."""
    codec: str
    """FFmpeg's name."""
    clock: StreamClock
    extradata: bytes = b""
    """Parameter sets in Annex B form that are told outside of the pictures; may be empty."""
    width_px: int = 0
    height_px: int = 0
    interval_ticks: int = 0
    offset_s: float = 0.0

    def unix_s(self, ticks: int) -> float:
        """Return a timestamp on the common clock."""
        return self.clock.unix_s(ticks) + self.offset_s


@dataclass(frozen=True, slots=True)
class CodedPicture:
    """One compressed picture; timestamps in 1/90000 s on the clock of its segment."""

    data: bytes
    ticks: int
    """When it is shown."""
    settled_ticks: int
    """Every picture that is shown until then has arrived, this one included."""
    is_keyframe: bool
    is_corrupt: bool
    segment: Segment

    @property
    def unix_s(self) -> float:
        """Return when it was taken, on the common clock."""
        return self.segment.unix_s(self.ticks)


@dataclass
class _Group:
    """A keyframe and what follows it."""

    pictures: list[CodedPicture] = field(default_factory=list)
    size_bytes: int = 0

    @property
    def start_s(self) -> float:
        return self.pictures[0].unix_s


class RingBuffer:
    """Holds at least `max_s` seconds (and the group in which they start), but never more than `max_bytes`.

    Not thread-safe: the camera's lock guards it.
    """

    def __init__(self, *, max_s: float, max_bytes: int) -> None:
        self._max_s, self._max_bytes = max_s, max_bytes
        self._groups: deque[_Group] = deque()
        self.size_bytes = 0
        self.overflowed = False
        """Whether bytes, not seconds, decided what was thrown away last."""

    def append(self, picture: CodedPicture) -> None:
        """Add the next picture in decoding order. Before the first keyframe nothing can be decoded: it is left out."""
        if picture.is_keyframe:
            self._groups.append(_Group())
        elif not self._groups:
            return
        self._groups[-1].pictures.append(picture)
        self._groups[-1].size_bytes += len(picture.data)
        self.size_bytes += len(picture.data)
        self._trim(picture.unix_s)

    def _trim(self, newest_s: float) -> None:
        while len(self._groups) > 1 and self._groups[1].start_s <= newest_s - self._max_s:
            self._drop_oldest()
            self.overflowed = False
        while self.size_bytes > self._max_bytes:
            self._drop_oldest()
            self.overflowed = True

    def _drop_oldest(self) -> None:
        self.size_bytes -= self._groups.popleft().size_bytes

    @property
    def pictures(self) -> Sequence[CodedPicture]:
        """Return everything, in decoding order."""
        return [picture for group in self._groups for picture in group.pictures]

    @property
    def first_s(self) -> float | None:
        """Return the instant of the oldest picture."""
        return self._groups[0].start_s if self._groups else None

    @property
    def settled_s(self) -> float | None:
        """Return the instant until which every picture has arrived."""
        if not self._groups:
            return None
        last = self._groups[-1].pictures[-1]
        return last.segment.unix_s(last.settled_ticks)

    @property
    def held_s(self) -> float:
        """Return the seconds from the oldest picture to the newest."""
        first_s, settled_s = self.first_s, self.settled_s
        return 0.0 if first_s is None or settled_s is None else max(0.0, settled_s - first_s)
