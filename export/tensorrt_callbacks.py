"""What TensorRT tells us while it works: messages, and how far the build is.

`BuildLog` and `BuildProgress` know nothing of TensorRT. `make_logger` and `make_monitor` hand them to it as the
subclasses that its bindings want, each with the base class initialised explicitly, as the bindings' documentation says.
TensorRT calls from several threads, holding Python's lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Show = Callable[[str], None]
"""Gets one line on what is going on; called often."""


@dataclass
class BuildLog:
    """TensorRT's errors and warnings, in order, each once; what is less is dropped."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, severity: str, message: str) -> None:
        """Keep a message; `severity` is the name that TensorRT gives it."""
        kept = {"INTERNAL_ERROR": self.errors, "ERROR": self.errors, "WARNING": self.warnings}.get(severity)
        if kept is not None and message not in kept:
            kept.append(message)

    def take_errors(self) -> list[str]:
        """Return the errors so far and forget them: what caused them is dealt with."""
        taken, self.errors = self.errors, []
        return taken


@dataclass
class _Phase:
    name: str
    steps: int
    done: int = 0


class BuildProgress:
    """Turns the phases of a build into one line: "Building engine 3/7 > Timing 12/40". Thread-safe."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()
        self.cancelled = False
        """Whether Ctrl-C came; the next `step` then asks TensorRT to stop."""

    def start(self, phase: str, steps: int) -> None:
        """Enter a phase inside the ones that are open."""
        with self._lock:
            self._phases[phase] = _Phase(phase, steps)
        self._say()

    def step(self, phase: str, step: int) -> None:
        """Count a finished step, numbered from 0."""
        with self._lock:
            if known := self._phases.get(phase):
                known.done = step + 1
        self._say()

    def finish(self, phase: str) -> None:
        """Leave a phase; it may have steps left."""
        with self._lock:
            self._phases.pop(phase, None)

    def _say(self) -> None:
        with self._lock:
            line = " > ".join(f"{phase.name} {phase.done}/{phase.steps}" for phase in self._phases.values())
        self._show(line)


@contextmanager
def _noting_ctrl_c(progress: BuildProgress) -> Iterator[None]:
    """Keep Ctrl-C out of TensorRT's C++: its way to stop a build is the answer of `step_complete`."""
    try:
        yield
    except KeyboardInterrupt:
        progress.cancelled = True


def make_logger(trt: Any, log: BuildLog) -> Any:
    """Return a `tensorrt.ILogger` that keeps messages in `log`. It must outlive what is made with it."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            log.add(severity.name, msg)

    return Logger()


def make_monitor(trt: Any, progress: BuildProgress) -> Any:
    """Return a `tensorrt.IProgressMonitor` that reports to `progress`. It must outlive the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            with _noting_ctrl_c(progress):
                progress.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with _noting_ctrl_c(progress):
                progress.step(phase_name, step)
            return not progress.cancelled

        def phase_finish(self, phase_name: str) -> None:
            with _noting_ctrl_c(progress):
                progress.finish(phase_name)

    return Monitor()
