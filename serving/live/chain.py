"""Lines that are chained by their hashes: a changed, removed, added or exchanged line does not fit its neighbours.

    {"n": 3, "at_s": 1764099900.1, "kind": "decision", "data": {...}, "previous": "<sha256>", "sha256": "<sha256>"}

`sha256` covers everything else of the line, `previous` is the line before's. A chain shows that a line was touched, not
who did it: whoever may write the directory can write a new chain. Note its head elsewhere (`verify --expect`) if that
matters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

GENESIS: Final = "0" * 64
"""What the first line names as the line before it."""


class ChainError(ValueError):
    """A line is no line of this chain; the message says why."""


@dataclass(frozen=True)
class Entry:
    """One line of the log."""

    n: int
    """Counted from 1."""
    at_s: float
    """UNIX seconds."""
    kind: str
    data: Mapping[str, Any]
    previous: str
    sha256: str

    def line(self) -> bytes:
        """Return the line as it stands in the file, its newline included."""
        return _canonical({**_body(self), "sha256": self.sha256}) + b"\n"


def chained(n: int, at_s: float, kind: str, data: Mapping[str, Any], previous: str) -> Entry:
    """Make the line that follows the one with the hash `previous`."""
    # Through JSON once, so that the entry in memory is the one that is read back.
    plain = json.loads(json.dumps(data))
    draft = Entry(n, at_s, kind, plain, previous, "")
    return Entry(n, at_s, kind, plain, previous, _digest(draft))


def parse(line: bytes) -> Entry:
    """Read a line and check its own hash.

    Raises:
        ChainError: It is no JSON object of an entry, or its hash is another.
    """
    try:
        document = json.loads(line)
        entry = Entry(**document)
    except (ValueError, TypeError) as error:
        raise ChainError(f"it is no entry ({error})") from error
    if not isinstance(entry.data, Mapping) or entry.sha256 != _digest(entry):
        raise ChainError("its content does not fit its hash: it was changed")
    # `json` reads more spellings than it writes, and a hash covers meaning only.
    if entry.line() != line:
        raise ChainError("it is not spelled as this program spells it: it was changed")
    return entry


def follow(lines: Iterator[bytes]) -> Iterator[Entry]:
    """Yield the entries of whole lines, each checked against the one before.

    Raises:
        ChainError: At the first line that does not fit.
    """
    previous = GENESIS
    for n, line in enumerate(lines, start=1):
        try:
            entry = parse(line)
        except ChainError as error:
            raise ChainError(f"line {n}: {error}") from error
        if entry.n != n or entry.previous != previous:
            raise ChainError(f"line {n}: it does not follow the line before it; lines were removed, added or exchanged")
        previous = entry.sha256
        yield entry


def _body(entry: Entry) -> dict[str, Any]:
    return {
        "n": entry.n,
        "at_s": entry.at_s,
        "kind": entry.kind,
        "data": entry.data,
        "previous": entry.previous,
    }


def _digest(entry: Entry) -> str:
    return hashlib.sha256(_canonical(_body(entry))).hexdigest()


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
