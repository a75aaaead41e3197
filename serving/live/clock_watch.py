"""Notices that somebody set the machine's clock; the console itself goes on with one that never jumps.

Cuts of cameras that are timed by arrival stay right. A camera that tells the time itself (RTCP) and whose clock was
set together with the machine's differs from the console's by the jump from then on: it is late or ahead, and an
instant of the console finds other pictures in it, until the console starts again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from serving.live.clock import now_s

JUMP_S: Final = 0.5
"""A smaller difference is slewing, as NTP does all day."""


class ClockWatch:
    """Compares the machine's clock with the console's."""

    def __init__(self, machine_s: Callable[[], float] = time.time) -> None:
        self._machine_s = machine_s
        self._told_s = 0.0

    def jump(self) -> str:
        """Return a sentence if the machine's clock was set since the last call, else an empty string."""
        drift_s = self._machine_s() - now_s()
        step_s = drift_s - self._told_s
        if abs(step_s) < JUMP_S:
            return ""
        self._told_s = drift_s
        return f"the machine's clock jumped by {step_s:+.1f} s; the console goes on with its own"
