"""The clips of decisions, kept by their SHA-256 until a policy removes them; the log keeps their hashes for ever.

A clip that cannot be written (a full disk) is still shown: the latest ones are in memory too.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from mvfoul.artifact import sha256_of
from serving.live.audit import LINES, sync_directory
from serving.live.chain import follow

CLIPS: Final = "clips"
RETENTION: Final = "retention"
"""Kind of the log's lines that name removed clips."""

_MEMORY_BYTES: Final = 128 << 20
_SUFFIX: Final = ".mp4"


class ClipStore:
    """Clips on disk, and the latest ones in memory. Usable from several threads."""

    def __init__(self, audit_dir: Path) -> None:
        """Keep clips in the folder `clips` of an audit directory that no other process writes to."""
        self._folder = audit_dir / CLIPS
        for left in self._folder.glob(".*"):
            left.unlink(missing_ok=True)  # Half a clip of a process that was killed.
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._mutex = threading.Lock()

    def put(self, data: bytes) -> str:
        """Keep a clip in memory and on disk, synced; return its SHA-256.

        Raises:
            OSError: The disk does not take it. It is in memory all the same.
        """
        name = self.remember(data)
        target = self._folder / (name + _SUFFIX)
        if target.is_file():
            os.utime(target)  # The policy counts from its latest use.
            return name
        if not self._folder.is_dir():
            self._folder.mkdir(exist_ok=True)
            sync_directory(self._folder.parent)
        temporary = self._folder / f".{name}.{threading.get_ident()}"
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            sync_directory(self._folder)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return name

    def remember(self, data: bytes) -> str:
        """Keep a clip in memory only; return its SHA-256."""
        name = hashlib.sha256(data).hexdigest()
        with self._mutex:
            self._recent[name] = data
            self._recent.move_to_end(name)
            while len(self._recent) > 1 and sum(map(len, self._recent.values())) > _MEMORY_BYTES:
                self._recent.popitem(last=False)
        return name

    def get(self, name: str) -> bytes | None:
        """Return a clip, or None if it is gone."""
        with self._mutex:
            if name in self._recent:
                return self._recent[name]
        path = self._folder / (name + _SUFFIX)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def expired(self, *, max_age_s: float, max_bytes: int, in_use: Collection[str] = ()) -> list[str]:
        """Return the clips that the policy removes: too old, then the oldest ones over the size.

        Args:
            max_age_s: Since it was written, or kept again for another decision.
            max_bytes: Of all clips together.
            in_use: Clips that stay whatever the policy says.
        """
        kept_bytes, now_s = 0, time.time()
        names = []
        for path, size, written_s in sorted(self._files(), key=lambda item: item[2], reverse=True):
            if path.stem in in_use:
                continue
            kept_bytes += size
            if kept_bytes > max_bytes or now_s - written_s > max_age_s:
                names.append(path.stem)
        return names

    def remove(self, names: Collection[str]) -> None:
        """Remove clips from disk and memory; missing ones are no error."""
        for name in names:
            (self._folder / (name + _SUFFIX)).unlink(missing_ok=True)
            with self._mutex:
                self._recent.pop(name, None)

    def _files(self) -> Iterator[tuple[Path, int, float]]:
        if not self._folder.is_dir():
            return
        for path in self._folder.glob("*" + _SUFFIX):
            status = path.stat()
            yield path, status.st_size, status.st_mtime


def clip_faults(audit_dir: Path) -> tuple[list[str], int, int]:
    """Compare the clips on disk with the log.

    Returns:
        A sentence for each clip that is changed, or gone though no policy removed it; how many are kept; how many were
        removed by the policy.
    """
    named: dict[str, int] = {}
    removed: set[str] = set()
    with (audit_dir / LINES).open("rb") as file:
        for entry in follow(line for line in file if line.endswith(b"\n")):
            if entry.kind == RETENTION:
                removed.update(entry.data["removed"])
            for clip in entry.data.get("clips", []):
                if clip["kept"]:
                    named.setdefault(clip["sha256"], entry.n)
                    removed.discard(clip["sha256"])
    faults, kept = [], 0
    for name, n in named.items():
        path = audit_dir / CLIPS / (name + _SUFFIX)
        if path.is_file():
            kept += 1
            if sha256_of(path) != name:
                faults.append(f"{path} (line {n}) was changed")
        elif name not in removed:
            faults.append(f"{path} (line {n}) is gone, though no policy removed it")
    return faults, kept, len(removed)
