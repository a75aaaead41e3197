"""What is answered so far, one JSON object per line, in a file beside the output: a killed run loses nothing of it.

The first line says which run it is; answers of another artifact or another split never mix with it.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from mvfoul.errors import ConfigError
from serving.bulk.actions import Action


@dataclass(frozen=True)
class Heading:
    """Which run a journal belongs to."""

    data: str
    split: str
    artifact: str
    max_views: int


@dataclass(frozen=True)
class Outcome:
    """What became of one action."""

    action_id: str
    labels: tuple[int, int] | None
    """Action class and offence severity, as indices; None: there is no prediction."""
    reason: str = ""
    """Why there is none."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Clips that the server refused, with its reason; the prediction is over the others."""


class Journal:
    """Open it with `with`; it holds the file until then."""

    def __init__(self, path: Path, heading: Heading) -> None:
        """Read what is there.

        Raises:
            ConfigError: It belongs to another run, or cannot be read or written.
        """
        self.path = path
        self.outcomes: dict[str, Outcome] = {}
        self._fingerprints: dict[str, Any] = {}
        self._stream = _open_alone(path)
        try:
            lines = _whole_lines(self._stream.read())
            if lines:
                self._check(heading, lines[0])
            for line in lines[1:]:
                self._take(json.loads(line))
            # Written anew, so that a line torn by a kill is gone.
            self._stream.truncate(0)
            self._stream.write(b"".join(lines or [_line(asdict(heading))]))
            self._stream.flush()
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stream.close()

    def knows(self, action: Action) -> bool:
        """Return whether the action has its outcome, and its clips are still the same."""
        return self._fingerprints.get(action.action_id) == action.fingerprint

    def add(self, action: Action, outcome: Outcome) -> None:
        """Write down what became of an action."""
        self._stream.write(_line({**asdict(outcome), "clips": action.fingerprint}))
        self._stream.flush()
        self.outcomes[outcome.action_id] = outcome

    def remove(self) -> None:
        """Delete the file: the output is written."""
        self.path.unlink(missing_ok=True)

    def _take(self, entry: dict[str, Any]) -> None:
        self._fingerprints[entry["action_id"]] = entry.pop("clips")
        labels = entry.pop("labels")
        self.outcomes[entry["action_id"]] = Outcome(labels=tuple(labels) if labels else None, **entry)

    def _check(self, heading: Heading, line: bytes) -> None:
        known = json.loads(line)
        if different := [name for name, value in asdict(heading).items() if known.get(name) != value]:
            (name, *_) = different
            raise ConfigError(
                f"{self.path} is of an unfinished run with {name} {known.get(name)!r}; this one has "
                f"{getattr(heading, name)!r}. Finish that run, or give --restart to forget it."
            )


def read_artifact(path: Path) -> str:
    """Return the version of the artifact that an unfinished run's answers are of; empty where there is none."""
    try:
        lines = _whole_lines(path.read_bytes())
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}. Choose another --out.") from error
    return str(json.loads(lines[0]).get("artifact", "")) if lines else ""


def _open_alone(path: Path) -> BinaryIO:
    """Open a journal at its beginning, as the only process that has it."""
    try:
        stream = path.open("a+b")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}. Choose another --out.") from error
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        stream.close()
        raise ConfigError(f"another run writes {path}. Wait for it, or choose another --out.") from error
    stream.seek(0)
    return stream


def _whole_lines(content: bytes) -> list[bytes]:
    """Return the lines that end as they should and are JSON objects."""
    return [line for line in content.splitlines(keepends=True) if line.endswith(b"\n") and _is_object(line)]


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _line(entry: Mapping[str, Any]) -> bytes:
    return (json.dumps(entry) + "\n").encode()
