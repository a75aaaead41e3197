"""A file of contacts to decide: one a line, `TIME` and then a note; `#` begins a comment.

+12.5                        seconds after the console's start
1764099900.25                UNIX seconds
2026-11-25T19:45:00.25Z      ISO 8601, with its zone
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from pathlib import Path

from mvfoul.errors import ConfigError


@dataclass(frozen=True)
class Timecode:
    """One contact of the list."""

    at_s: float
    """UNIX seconds, or seconds after the start."""
    is_relative: bool
    note: str

    def contact_s(self, start_s: float) -> float:
        """Return UNIX seconds, where the console started at `start_s`."""
        return start_s + self.at_s if self.is_relative else self.at_s


def read_timecodes(path: Path) -> tuple[Timecode, ...]:
    """Read the list.

    Raises:
        ConfigError: It cannot be read, or a line begins with no time; the message has its number.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--timecodes {path} cannot be read: {error}.") from error
    contents = ((number, line.partition("#")[0].strip()) for number, line in enumerate(lines, start=1))
    return tuple(_parse(path, number, line) for number, line in contents if line)


def _parse(path: Path, number: int, line: str) -> Timecode:
    text, _, note = line.partition(" ")
    try:
        at_s = float(text)
    except ValueError:
        at_s = _iso_s(path, number, text)
    if not isfinite(at_s) or at_s < 0:
        raise ConfigError(f"{path}, line {number}: {text!r} is no time to wait for.")
    return Timecode(at_s, text.startswith("+"), note.strip())


def _iso_s(path: Path, number: int, text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"{path}, line {number}: {text!r} is no time. Use UNIX seconds, +SECONDS, or 2026-11-25T19:45:00Z."
        ) from error
    if moment.tzinfo is None:
        raise ConfigError(f"{path}, line {number}: {text!r} has no time zone. Append Z or +01:00.")
    return moment.timestamp()
