"""The audit log: one line a decision, only ever added to, chained by hashes, on disk before the decision is shown.

    python -m serving.live.audit verify runs/audit                     (`serving.live.audit_cli`)

    decisions.jsonl   the chained lines (`serving.live.chain`)
    head.json         number and hash of the last line, replaced by rename: lines cut off at the end are noticed
    lock              held by the process that writes; a second one is refused
    quarantine/       a last line that a killed process left half written, moved away at the next start
    clips/            the clips by their SHA-256 (`serving.live.clips`)

A line is finished when both it and the head are synced. A process killed between the two leaves one line more than the
head says, which is right; one line less never is. The head is there before the first line, so none is never right.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from mvfoul.errors import ConfigError, MVFoulError
from serving.live.chain import GENESIS, ChainError, Entry, chained, follow, parse

LINES: Final = "decisions.jsonl"
HEAD: Final = "head.json"
LOCK: Final = "lock"
QUARANTINE: Final = "quarantine"
_LONGEST_TORN: Final = 64 << 20
"""Bytes that a killed process may have left of one line; more is something else, and stays where it is."""


class AuditError(MVFoulError):
    """A line cannot be written, or the log that is there is broken."""


@dataclass(frozen=True)
class Verdict:
    """What `verify` found."""

    lines: int
    """Whole lines that fit, up to the first fault."""
    head: str
    """Hash of the last of them."""
    faults: tuple[str, ...]
    """What proves that the log was touched; empty if it is whole."""
    remarks: tuple[str, ...] = field(default=())
    """What is worth knowing and proves nothing."""


class AuditLog:
    """The log of one directory, open for adding lines. Usable from several threads."""

    def __init__(self, directory: Path) -> None:
        """Lock the directory, repair a torn last line, and check the chain.

        Raises:
            ConfigError: Another process writes there, or the directory cannot be written.
            AuditError: The chain is broken; nothing is added to it.
        """
        self.directory = directory
        self.repaired = ""
        """What was repaired at the start, as a sentence; empty if nothing was."""
        self._mutex = threading.Lock()
        self._lock = _locked(directory)
        try:
            self._open()
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self) -> None:
        path = self.directory / LINES
        if not (self.directory / HEAD).exists() and not (path.exists() and path.stat().st_size):
            self._save_head(0, GENESIS)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            sync_directory(self.directory)
            scan = self._checked(path)
            # The head may be one line behind, never two.
            self._save_head(scan.lines, scan.head)
        except BaseException:
            os.close(self._fd)
            raise
        self._n, self._head, self._end = scan.lines, scan.head, scan.end

    def _checked(self, path: Path) -> _Scan:
        head = _read_head(self.directory)
        scan = _scan(path, head.n)
        if _is_torn(self._fd, scan, head):
            self.repaired = _quarantine(self._fd, scan.end, self.directory)
            scan = replace(scan, fault="")
        if faults := [*_faults(scan, head), *_left_over(self._fd, scan)]:
            raise AuditError(
                f"the audit log in {self.directory} is broken: {'; '.join(faults)}. Keep the directory as evidence, "
                "and start with another --audit-dir."
            )
        return scan

    def _save_head(self, n: int, sha256: str) -> None:
        try:
            _write_head(self.directory, n, sha256)
        except OSError as error:
            raise ConfigError(f"--audit-dir {self.directory} cannot be written: {error.strerror}.") from error

    @property
    def head(self) -> tuple[int, str]:
        """Number and hash of the last line."""
        with self._mutex:
            return self._n, self._head

    def append(self, kind: str, data: Mapping[str, Any]) -> Entry:
        """Add a line; when this returns, it is on disk.

        Raises:
            AuditError: It could not be written (a full disk). The log is as it was before.
        """
        with self._mutex:
            entry = chained(self._n + 1, round(time.time(), 6), kind, data, self._head)
            line = entry.line()
            try:
                _write_all(self._fd, line, self._end)
                os.fsync(self._fd)
                _write_head(self.directory, entry.n, entry.sha256)
            except OSError as error:
                self._undo()
                raise AuditError(f"cannot write {self.directory / LINES}: {error.strerror}.") from error
            self._n, self._head, self._end = entry.n, entry.sha256, self._end + len(line)
            return entry

    def _undo(self) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._end)
            os.fsync(self._fd)

    def entries(self) -> Iterator[Entry]:
        """Yield all lines, oldest first.

        Raises:
            ChainError: One was touched since the start.
        """
        return follow(_whole_lines(self.directory / LINES))

    def close(self) -> None:
        """Let another process write. Call it once."""
        os.close(self._fd)
        os.close(self._lock)


def verify(directory: Path, *, expect: str = "") -> Verdict:
    """Check a log: every line, the chain, its end, and that it contains the head `expect`, if one is given."""
    path = directory / LINES
    if not path.is_file():
        return Verdict(0, GENESIS, (f"there is no {LINES}",))
    # The head before and after, as a console may be writing: the lines are between the two.
    head = _read_head(directory)
    scan = _scan(path, head.n, expect)
    faults, remarks = _faults(scan, head, latest_n=_read_head(directory).n), []
    if expect and not scan.has_expected:
        faults.append(f"no line has the hash {expect}: the log was cut or written anew since it was noted")
    if not scan.fault and (torn := path.stat().st_size - scan.end) > 0:
        remarks.append(f"{torn} bytes after the last whole line: being written, or left by a killed process")
    return Verdict(scan.lines, scan.head, tuple(faults), tuple(remarks))


@dataclass(frozen=True)
class _Head:
    """What head.json says; `fault` if it says nothing."""

    n: int = 0
    sha256: str = ""
    fault: str = ""


def _read_head(directory: Path) -> _Head:
    try:
        document = json.loads((directory / HEAD).read_bytes())
        return _Head(int(document["n"]), str(document["sha256"]))
    except FileNotFoundError:
        return _Head(fault=f"there is no {HEAD}: it was removed, and lines may have been removed with it")
    except (ValueError, KeyError, TypeError) as error:
        return _Head(fault=f"{HEAD} is unreadable ({error})")


@dataclass
class _Scan:
    """What one reading of the log found, up to the first line that does not fit."""

    lines: int = 0
    head: str = GENESIS
    end: int = 0
    """Of the last line that fits, in bytes."""
    at_head: str = ""
    """Hash of the line that head.json numbers."""
    has_expected: bool = False
    fault: str = ""


def _scan(path: Path, head_n: int, expect: str = "") -> _Scan:
    """Read the log once, a line at a time."""
    scan = _Scan(at_head=GENESIS if head_n == 0 else "", has_expected=expect == GENESIS)
    with path.open("rb") as file:
        try:
            for entry in follow(line for line in file if line.endswith(b"\n")):
                scan.lines, scan.head, scan.end = entry.n, entry.sha256, file.tell()
                scan.has_expected |= entry.sha256 == expect
                if entry.n == head_n:
                    scan.at_head = entry.sha256
        except ChainError as error:
            scan.fault = str(error)
    return scan


def _faults(scan: _Scan, head: _Head, *, latest_n: int = 0) -> list[str]:
    lines, n = scan.lines, head.n
    if scan.fault or head.fault:
        return [fault for fault in (scan.fault, head.fault) if fault]
    if n > lines:
        return [f"{HEAD} says {n} lines, there are {lines}: lines were removed at the end"]
    if max(n, latest_n) < lines - 1:
        return [f"{HEAD} says {n} lines, there are {lines}: {HEAD} was put back, or lines were added by hand"]
    if scan.at_head != head.sha256:
        return [f"{HEAD} names another line {n} than there is: the log or {HEAD} was exchanged"]
    return []


def _whole_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def _locked(directory: Path) -> int:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise ConfigError(f"--audit-dir {directory} cannot be written: {error.strerror}. Choose another.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ConfigError(
            f"--audit-dir {directory} is in use by another process. Stop it, or choose another directory."
        ) from error
    return lock


def _is_torn(fd: int, scan: _Scan, head: _Head) -> bool:
    """Whether what follows the lines that fit is a line that was never finished, which the head does not know."""
    left = os.fstat(fd).st_size - scan.end
    if head.fault or scan.lines < head.n or not 0 < left <= _LONGEST_TORN:
        return False
    first, newline, rest = _read(fd, left, scan.end).partition(b"\n")
    if not newline:
        return True
    if b"\n" in rest:
        return False
    try:
        parse(first + newline)
    except ChainError:
        return True
    return False


def _left_over(fd: int, scan: _Scan) -> list[str]:
    left = os.fstat(fd).st_size - scan.end
    return [f"{left} bytes follow line {scan.lines}"] if left and not scan.fault else []


def _read(fd: int, size: int, offset: int) -> bytes:
    """Return `size` bytes; one call of the system may return fewer."""
    parts: list[bytes] = []
    while size and (part := os.pread(fd, size, offset)):
        parts.append(part)
        size, offset = size - len(part), offset + len(part)
    return b"".join(parts)


def _quarantine(fd: int, whole: int, directory: Path) -> str:
    """Move what stands after the last whole line away; return what was done, as a sentence."""
    torn = _read(fd, os.fstat(fd).st_size - whole, whole)
    folder = directory / QUARANTINE
    folder.mkdir(exist_ok=True)
    target = folder / f"torn-{time.time_ns()}.txt"
    with target.open("wb") as file:
        file.write(torn)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(folder)
    os.ftruncate(fd, whole)
    os.fsync(fd)
    return f"the last line of {LINES} was half written ({len(torn)} bytes); it was moved to {target}"


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _write_head(directory: Path, n: int, sha256: str) -> None:
    temporary = directory / (HEAD + ".tmp")
    with temporary.open("wb") as file:
        file.write(json.dumps({"n": n, "sha256": sha256}).encode())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / HEAD)
    # Renamed is renamed: a head that names the line must not be followed by taking the line back.
    with contextlib.suppress(OSError):
        sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Put on disk which files a directory has: a file that was renamed into it is there after a power cut, too."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


if __name__ == "__main__":
    from serving.live.audit_cli import main

    sys.exit(main())
