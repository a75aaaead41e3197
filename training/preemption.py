"""SIGTERM and Ctrl-C: finish the step, save, leave with a code that a scheduler can act on.

    with catch_signals() as stop:
        ...                       a signal ends this at once: there is nothing to save yet
        stop.defer()
        if stop.requested:        from here on a signal is only noted; look after each step
            raise Stopped(stop.signal)

A second Ctrl-C ends the process at once. SIGTERM may come several times: schedulers repeat it, torchrun hands it on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from mvfoul.command import INTERRUPTED, PREEMPTED

EXIT_CODES: Final = {signal.SIGTERM: PREEMPTED, signal.SIGINT: INTERRUPTED}


class Stopped(KeyboardInterrupt):
    """Someone asked the run to stop. A KeyboardInterrupt: everything between here and the user lets it pass."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """Of the process."""
        return EXIT_CODES[self.signal]


class StoppedAfterSaving(Stopped):
    """All ranks have agreed to stop, and everything is saved."""


class StopRequest:
    """Whether someone has asked the run to stop."""

    def __init__(self) -> None:
        self.signal: int = 0
        """The first that came; 0 for none."""
        self._deferring = False

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return bool(self.signal)

    def defer(self) -> None:
        """From now on only note signals; whoever calls this looks at `requested`."""
        self._deferring = True

    def receive(self, number: int, _frame: FrameType | None = None) -> None:
        """Note a signal; the handler of both.

        Raises:
            Stopped: Signals are not deferred, or it is the second Ctrl-C.
        """
        again = self.signal == number == signal.SIGINT
        self.signal = self.signal or number
        if again or not self._deferring:
            raise Stopped(number)


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Handle SIGTERM and SIGINT until the end, then as before. Outside the main thread nothing is caught."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.receive) for number in EXIT_CODES}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_signals_to_the_parent() -> None:
    """Prepare a worker process: terminals and torchrun signal the whole group, and the run ends its workers itself.

    The loader ends a worker that hangs with SIGTERM too: so only the first one is let pass.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _next_one_counts)


def _next_one_counts(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
