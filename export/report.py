"""What an export says while it works and when it is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.status import Status
from rich.table import Table

from export.checks import Check
from export.parity import ParityReport
from mvfoul.command import peak_memory_bytes

_WIDTH: Final = 120
_SHOWN_FAILURES: Final = 5
_DETAIL_EVERY_S: Final = 30.0


class Progress:
    """Prints one line per step, with its seconds and what it made."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or plain_console()
        self._start = time.monotonic()
        self._status: Status | None = None
        self._detailed = self._start

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; what the caller appends to the list is printed behind the seconds."""
        start = time.monotonic()
        facts: list[str] = []
        with self._console.status(f"{name} ...") as self._status:
            yield facts
        self.say(f"  {name:<30} {time.monotonic() - start:7.1f} s   {', '.join(facts)}".rstrip())

    def detail(self, line: str) -> None:
        """Show how far the current step is: on a terminal at once, in a log as a line every half minute."""
        if self._console.is_terminal and self._status is not None:
            self._status.update(line)
        elif (now := time.monotonic()) - self._detailed >= _DETAIL_EVERY_S:
            self._detailed = now
            self.say(f"    {line}")

    def say(self, line: str = "") -> None:
        """Print a line as it is."""
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def table(self, report: ParityReport) -> None:
        """Print the checks of a report, and the reasons of those that failed."""
        self._console.print(parity_table(report))
        for check in report.failed:
            for line in _reasons(check):
                self.say(line)
        for note in (note for check in report.checks for note in check.notes):
            self.say(f"  not counted: {note}")

    def totals(self) -> None:
        """Print the time since the start and the most memory that this process has held."""
        self.say(
            f"  {'in all':<30} {time.monotonic() - self._start:7.1f} s   peak memory {peak_memory_bytes() / 1e9:.1f} GB"
        )


def plain_console() -> Console:
    """Return a console on stdout; wide enough for the table where stdout is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def parity_table(report: ParityReport) -> Table:
    """Return the checks as a table."""
    table = Table(title=f"{report.candidate} against {report.reference}", title_justify="left", title_style="bold")
    for heading in ("check", "measured", "limit", "worst at", ""):
        table.add_column(heading, overflow="fold")
    for check in report.checks:
        verdict = "[green]ok[/green]" if check.passed else "[bold red]FAILED[/bold red]"
        table.add_row(check.name, check.measured, check.limit, check.where, verdict)
    return table


def size_of(path: Path) -> str:
    """Return a file's size in MB, spelled."""
    return f"{path.stat().st_size / 1e6:.1f} MB"


def _reasons(check: Check) -> Iterator[str]:
    for failure in check.failures[:_SHOWN_FAILURES]:
        yield f"  FAILED {check.name}: {failure}"
    if (more := len(check.failures) - _SHOWN_FAILURES) > 0:
        yield f"  FAILED {check.name}: and {more} more, all in parity.json"
