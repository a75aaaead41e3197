"""From packets as they come to pictures on the common clock: jumps are noticed, drops and jitter are measured."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from serving.live.buffer import CodedPicture, Segment
from serving.live.clock import TICKS_PER_S, Jumps, Pace, StreamClock
from serving.live.source import Received, Source

_PLAUSIBLE_S: Final = 10.0
"""A sender whose clock differs by more from ours is not set by the same time server: its word is not taken."""


@dataclass
class _Stretch:
    """The current segment, and where it has come to."""

    segment: Segment
    latest_ticks: int
    order_ticks: int
    arrival_s: float
    is_order_told: bool
    reordered_ticks: int = 0
    """How far a picture was shown before one that came earlier; for senders that tell no decoding times."""


class Intake:
    """Takes the packets of one camera, connection after connection."""

    def __init__(self, *, offset_s: float) -> None:
        self.pace = Pace()
        self.jumps = 0
        self.jumped_s = 0.0
        """By how much the timestamps jumped last; positive is forwards."""
        self.delay_s = 0.0
        """From when a picture was taken until it is here, smoothed. By arrival: without what is constant in it."""
        self._offset_s = offset_s
        self._connection = 0
        self._stretch: _Stretch | None = None
        self._source: Source
        self._is_new = True
        self._distrusts_dts = False
        self._returns: deque[float] = deque(maxlen=1)
        """When the last pictures were returned; the first of them tells when the newest arrived."""
        self._jumps = Jumps()

    @property
    def clock_source(self) -> str:
        """Return whose clock counts now: `rtcp`, `arrival` or `file`."""
        return self._stretch.segment.clock.source if self._stretch else "arrival"

    @property
    def due_s(self) -> float:
        """Return when the last taken picture of a file is due: as from a camera, when its latest part has been seen."""
        stretch = self._stretch
        return stretch.segment.clock.unix_s(stretch.latest_ticks) if stretch else 0.0

    def connect(self, source: Source, *, goes_on: bool = False) -> None:
        """Take pictures from `source` from now on. `goes_on`: it continues the last one, as a file that is repeated."""
        self._source, self._is_new = source, True
        self._returns = deque(maxlen=source.lag + 1)
        self._distrusts_dts = False
        if not goes_on:
            self._connection += 1
            self._stretch = None

    def take(self, received: Received, arrival_s: float) -> CodedPicture:
        """Place a picture on the common clock."""
        if self._contradicts_itself(received):
            self._distrusts_dts = True
        if self._distrusts_dts:
            received = replace(received, dts_ticks=None)
        order = _order_ticks(received, None if self._is_new else self._stretch)
        stretch = self._stretch_of(received, order, arrival_s)
        self._is_new = False
        stretch.order_ticks, stretch.arrival_s = order, arrival_s
        stretch.reordered_ticks = max(stretch.reordered_ticks, stretch.latest_ticks - received.ticks)
        stretch.latest_ticks = max(stretch.latest_ticks, received.ticks)
        self._measure(received, stretch)
        # A picture that comes next may be shown as long before the latest one as another was.
        settled = stretch.latest_ticks - (stretch.reordered_ticks + 1 if stretch.reordered_ticks else 0)
        return CodedPicture(
            data=received.data,
            ticks=received.ticks,
            settled_ticks=settled if received.dts_ticks is None else min(received.dts_ticks, stretch.latest_ticks),
            is_keyframe=received.is_keyframe,
            is_corrupt=received.is_corrupt,
            segment=stretch.segment,
        )

    def _contradicts_itself(self, received: Received) -> bool:
        """Whether a B-frame would be decoded before the picture that came before it.

        After a jump, FFmpeg's RTP reader says of all pictures that they are decoded when they are shown. Of the last
        ones of a pyramid of B-frames that is true.
        """
        stretch, ticks = self._stretch, received.ticks
        if stretch is None or self._is_new or received.dts_ticks != ticks:
            return False
        return 0 < stretch.order_ticks - ticks <= stretch.reordered_ticks

    def _measure(self, received: Received, stretch: _Stretch) -> None:
        clock, ticks = stretch.segment.clock, received.ticks
        arrival_s = self.due_s if self._source.is_paced else stretch.arrival_s
        if received.told_s is not None and abs(arrival_s - received.told_s) < _PLAUSIBLE_S:
            clock.told(ticks, received.told_s)
        self._returns.append(arrival_s)
        clock.arrived(ticks, self._returns[0])
        self.delay_s += (arrival_s - clock.unix_s(ticks) - self.delay_s) / 16
        self.pace.count(ticks, stretch.order_ticks, arrival_s)
        stretch.segment.interval_ticks = self.pace.interval_ticks

    def _stretch_of(self, received: Received, order: int, arrival_s: float) -> _Stretch:
        """Return the stretch that a picture belongs to: the current one, or a new one where timestamps do not go on."""
        before = self._stretch
        if before is None:
            clock = StreamClock(fixed_s=arrival_s - received.ticks / TICKS_PER_S if self._source.is_paced else None)
            return self._begin(clock, received, order, arrival_s)
        if (received.dts_ticks is not None) != before.is_order_told:
            # Matroska tells no decoding time of the first pictures. Times of two kinds cannot be compared.
            before.is_order_told, self._jumps = received.dts_ticks is not None, Jumps()
        is_jump = not self._is_new and self._jumps.is_jump(order, arrival_s, before.segment.clock)
        if not is_jump and not self._is_new:
            return before
        if is_jump:
            self.jumps += 1
            due = before.order_ticks + (arrival_s - before.arrival_s) * TICKS_PER_S
            self.jumped_s = (order - due) / TICKS_PER_S
        # It went on with the next picture; if not, arrivals will tell.
        goes_on_s = before.segment.clock.unix_s(before.order_ticks + self.pace.interval_ticks)
        zero_s = goes_on_s - order / TICKS_PER_S
        clock = StreamClock(fixed_s=zero_s) if self._source.is_paced else StreamClock(seed_s=zero_s)
        return self._begin(clock, received, order, arrival_s)

    def _begin(self, clock: StreamClock, received: Received, order: int, arrival_s: float) -> _Stretch:
        source = self._source
        segment = Segment(
            connection=self._connection,
            codec=source.codec,
            clock=clock,
            extradata=source.extradata,
            width_px=source.width_px,
            height_px=source.height_px,
            offset_s=self._offset_s,
        )
        reordered = self._stretch.reordered_ticks if self._stretch else 0
        self._stretch = _Stretch(
            segment, received.ticks, order, arrival_s, received.dts_ticks is not None, reordered_ticks=reordered
        )
        self._jumps = Jumps()
        self._jumps.is_jump(order, arrival_s, clock)
        self.pace.restart()
        return self._stretch


def _order_ticks(received: Received, stretch: _Stretch | None) -> int:
    """Return the decoding time; where it is not told, something that grows as long as timestamps go on."""
    if received.dts_ticks is not None:
        return received.dts_ticks
    if stretch is None or received.ticks < stretch.latest_ticks - TICKS_PER_S:
        return received.ticks
    return max(received.ticks, stretch.latest_ticks)
