"""The audit log: one line a decision, only ever added to, chained by hashes, on disk before the decision is shown.

    python -m serving.live.audit verify runs/audit                     (`serving.live.audit_cli`)

    decisions.jsonl   the chained lines (`serving.live.chain`)
    head.json         number and hash of the last line, replaced by rename: lines cut off at the end are noticed
    lock              held by the process that writes; a second one is refused
    quarantine/       a last line that a killed process left half written, moved away at the next start
    clips/            the clips by their SHA-256 (`serving.live.clips`)

A line is finished when both it and the head are synced. A process killed between the two leaves one line more than the
head says, which is right; one line less never is.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mvfoul.errors import ConfigError, MVFoulError
from serving.live.chain import GENESIS, ChainError, Entry, chained, follow, parse

LINES: Final = "decisions.jsonl"
HEAD: Final = "head.json"
LOCK: Final = "lock"
QUARANTINE: Final = "quarantine"


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
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        _sync_directory(self.directory)
        self.repaired = _quarantine_torn_line(self._fd, self.directory)
        verdict = verify(self.directory)
        if verdict.faults:
            os.close(self._fd)
            raise AuditError(
                f"the audit log in {self.directory} is broken: {'; '.join(verdict.faults)}. Keep the directory as "
                "evidence, and start with another --audit-dir."
            )
        self._n, self._head = verdict.lines, verdict.head
        # The head may be one line behind, never two.
        try:
            if self._n:
                _write_head(self.directory, self._n, self._head)
        except OSError as error:
            os.close(self._fd)
            raise ConfigError(f"--audit-dir {self.directory} cannot be written: {error.strerror}.") from error
        self._end = os.lseek(self._fd, 0, os.SEEK_END)

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
    faults: list[str] = []
    remarks: list[str] = []
    hashes = [GENESIS]
    try:
        hashes += [entry.sha256 for entry in follow(_whole_lines(path))]
    except ChainError as error:
        # Line by line, so that what fits before the fault is counted.
        hashes += _hashes_before_the_fault(path)
        faults.append(str(error))
    except FileNotFoundError:
        faults.append(f"there is no {LINES}")
    faults += _head_faults(directory, hashes) if not faults else []
    if expect and expect not in hashes:
        faults.append(f"no line has the hash {expect}: the log was cut or written anew since it was noted")
    if _torn_bytes(path):
        remarks.append(
            f"{_torn_bytes(path)} bytes after the last whole line: being written, or left by a killed process"
        )
    return Verdict(len(hashes) - 1, hashes[-1], tuple(faults), tuple(remarks))


def _head_faults(directory: Path, hashes: list[str]) -> list[str]:
    lines = len(hashes) - 1
    try:
        document = json.loads((directory / HEAD).read_bytes())
        n, sha256 = int(document["n"]), str(document["sha256"])
    except FileNotFoundError:
        # The first line is on disk before the first head is.
        return [f"there is no {HEAD}, though there are {lines} lines"] if lines > 1 else []
    except (ValueError, KeyError, TypeError) as error:
        return [f"{HEAD} is unreadable ({error})"]
    if n > lines:
        return [f"{HEAD} says {n} lines, there are {lines}: lines were removed at the end"]
    if n < lines - 1:
        return [f"{HEAD} says {n} lines, there are {lines}: {HEAD} was put back, or lines were added by hand"]
    if hashes[n] != sha256:
        return [f"{HEAD} names another line {n} than there is: the log or {HEAD} was exchanged"]
    return []


def _hashes_before_the_fault(path: Path) -> list[str]:
    hashes = []
    with contextlib.suppress(ChainError):
        for entry in follow(_whole_lines(path)):
            hashes.append(entry.sha256)  # noqa: PERF401  # what came before the error is wanted
    return hashes


def _whole_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def _torn_bytes(path: Path) -> int:
    if not path.is_file():
        return 0
    data = path.read_bytes()
    return len(data) - (data.rfind(b"\n") + 1)


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


def _quarantine_torn_line(fd: int, directory: Path) -> str:
    """Move what stands after the last newline away; return what was done, as a sentence."""
    size = os.fstat(fd).st_size
    data = os.pread(fd, size, 0)
    whole = _whole_bytes(data, _head_n(directory))
    if whole == size:
        return ""
    folder = directory / QUARANTINE
    folder.mkdir(exist_ok=True)
    target = folder / f"torn-{time.time_ns()}.txt"
    with target.open("wb") as file:
        file.write(data[whole:])
        file.flush()
        os.fsync(file.fileno())
    _sync_directory(folder)
    os.ftruncate(fd, whole)
    os.fsync(fd)
    return f"the last line of {LINES} was half written ({size - whole} bytes); it was moved to {target}"


def _whole_bytes(data: bytes, head_n: int) -> int:
    """Return where the last whole line ends. A last line that the head does not know and that is garbage is none."""
    whole = data.rfind(b"\n") + 1
    start = data.rfind(b"\n", 0, max(0, whole - 1)) + 1
    if data.count(b"\n") > head_n:
        try:
            parse(data[start:whole])
        except ChainError:
            return start
    return whole


def _head_n(directory: Path) -> int:
    try:
        return int(json.loads((directory / HEAD).read_bytes())["n"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


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
        _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


if __name__ == "__main__":
    from serving.live.audit_cli import main

    sys.exit(main())
