"""When a picture was taken, in UNIX seconds, and how regularly pictures come.

A stream's timestamps start anywhere. They are mapped to the common clock by the sender's wall clock where it tells
(RTCP), or else by arrival: a picture cannot arrive before it was taken, so the smallest difference of arrival and
timestamp is the offset. What is constant in the way from lens to here stays unseen; `CameraSpec.offset_s` is for that.

Ticks are 1/90000 s, the clock of RTP and of MPEG transport streams.
"""

from __future__ import annotations

import time
from bisect import insort
from collections import deque
from statistics import median
from typing import Final

TICKS_PER_S: Final = 90_000

_WINDOW_S: Final = 60
"""Arrivals that count: a clock that is off by 100 ppm drifts by 6 ms in this time."""
_JUMP_S: Final = 0.25
_SEAM_S: Final = 0.12
"""Pictures arrive so much later than they would if no time had passed where timestamps jumped: time has passed."""
_STEADY_S: Final = 0.4
"""After connecting, a sender may deliver what it kept: timestamps outrun arrivals until they kept pace for so long."""
_REORDERED: Final = 16
"""Pictures that wait until they are in the order of display; H.264 and H.265 allow as many."""

_EPOCH_S: Final = time.time() - time.monotonic()


def now_s() -> float:
    """Return UNIX seconds that never jump: the system's clock at import, carried on by the monotonic one."""
    return _EPOCH_S + time.monotonic()


class StreamClock:
    """Maps the timestamps of one connection, in ticks, to UNIX seconds."""

    def __init__(self, *, fixed_s: float | None = None, seed_s: float | None = None) -> None:
        """Make a clock that knows nothing yet, whose tick 0 is at `fixed_s`, or probably at `seed_s`."""
        self._fixed_s, self._seed_s = fixed_s, seed_s
        self._told_s: deque[float] = deque(maxlen=9)
        self._minima: deque[tuple[int, float]] = deque()
        self._zero_s = (seed_s if fixed_s is None else fixed_s) or 0.0

    @property
    def source(self) -> str:
        """Return whose clock counts: `rtcp`, `arrival`, or `file` for pictures that are played here."""
        if self._fixed_s is not None:
            return "file"
        return "rtcp" if self._told_s else "arrival"

    def unix_s(self, ticks: int) -> float:
        """Return when the picture with this timestamp was taken."""
        return self._zero_s + ticks / TICKS_PER_S

    def ticks(self, unix_s: float) -> int:
        """Return the timestamp of a picture that was taken at this instant."""
        return round((unix_s - self._zero_s) * TICKS_PER_S)

    def told(self, ticks: int, unix_s: float) -> None:
        """Take the sender's word for when a picture was taken."""
        self._told_s.append(unix_s - ticks / TICKS_PER_S)
        self._update()

    def arrived(self, ticks: int, arrival_s: float) -> None:
        """Learn from a picture's arrival."""
        zero_s, second = arrival_s - ticks / TICKS_PER_S, int(arrival_s)
        if not self._minima or self._minima[-1][0] != second:
            self._minima.append((second, zero_s))
        elif zero_s < self._minima[-1][1]:
            self._minima[-1] = second, zero_s
        else:
            return
        while self._minima[0][0] < second - _WINDOW_S:
            self._minima.popleft()
            self._seed_s = None
        self._update()

    def is_too_early(self, ticks: int, arrival_s: float) -> bool:
        """Whether a picture would have arrived before it was taken: the stream's timestamps jumped ahead."""
        return self._fixed_s is None and bool(self._minima) and arrival_s < self.unix_s(ticks) - _JUMP_S

    def _update(self) -> None:
        if self._fixed_s is not None:
            return
        if self._told_s:
            self._zero_s = median(self._told_s)
            return
        candidates = sorted(zero_s for _, zero_s in self._minima)
        # One outlier below the others is a wrong timestamp.
        arrival = candidates[1 if len(candidates) > 2 else 0] if candidates else None
        self._zero_s = _joined(arrival, self._seed_s, self._zero_s)


def _joined(arrival_s: float | None, seed_s: float | None, otherwise_s: float) -> float:
    """Return the offset by arrival, or that of a stream which went on without a pause, if arrivals allow that."""
    if arrival_s is None or seed_s is None:
        return otherwise_s if arrival_s is None else arrival_s
    return min(arrival_s, seed_s) if arrival_s - seed_s < _SEAM_S else arrival_s


class Jumps:
    """Notices where a stream's timestamps do not go on: an encoder restarted, a counter wrapped, a clock was set."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None
        self._since: tuple[int, float] | None = None
        self._is_live = False

    def is_jump(self, ticks: int, arrival_s: float, clock: StreamClock) -> bool:
        """Whether the decoding time `ticks` cannot follow the one before."""
        last, self._last = self._last, (ticks, arrival_s)
        if last is None:
            return False
        step_s, passed_s = (ticks - last[0]) / TICKS_PER_S, arrival_s - last[1]
        if step_s < 0:
            return True
        if self._is_live and step_s - passed_s > _JUMP_S and clock.is_too_early(ticks, arrival_s):
            return True
        self._watch_pace(ticks, arrival_s)
        return False

    def _watch_pace(self, ticks: int, arrival_s: float) -> None:
        since = self._since = self._since or (ticks, arrival_s)
        taken_s = (ticks - since[0]) / TICKS_PER_S
        if taken_s >= _STEADY_S:
            self._is_live = self._is_live or arrival_s - since[1] > taken_s / 2
            self._since = ticks, arrival_s


class Pace:
    """Counts pictures and those that are missing, and measures jitter."""

    def __init__(self) -> None:
        self.frames = 0
        self.dropped = 0
        self.jitter_s = 0.0
        self._waiting: list[int] = []
        self._last_ticks: int | None = None
        self._intervals: deque[int] = deque(maxlen=50)
        self._transit_s: float | None = None

    @property
    def interval_ticks(self) -> int:
        """Return the usual time from one picture to the next; 0 before the second one."""
        return round(median(self._intervals)) if self._intervals else 0

    def restart(self) -> None:
        """Forget the timestamps: what comes next does not continue what was."""
        self._waiting, self._last_ticks, self._transit_s = [], None, None

    def count(self, ticks: int, dts_ticks: int, arrival_s: float) -> None:
        """Count a picture by its presentation time; measure jitter by its decoding time, as RFC 3550 (6.4.1) does."""
        self.frames += 1
        transit_s = arrival_s - dts_ticks / TICKS_PER_S
        if self._transit_s is not None:
            self.jitter_s += (abs(transit_s - self._transit_s) - self.jitter_s) / 16
        self._transit_s = transit_s
        insort(self._waiting, ticks)
        if len(self._waiting) > _REORDERED:
            self._in_order(self._waiting.pop(0))

    def _in_order(self, ticks: int) -> None:
        if self._last_ticks is not None and ticks > self._last_ticks:
            interval, usual = ticks - self._last_ticks, self.interval_ticks
            if usual and interval > 1.5 * usual:
                self.dropped += round(interval / usual) - 1
            else:
                self._intervals.append(interval)
        self._last_ticks = ticks
