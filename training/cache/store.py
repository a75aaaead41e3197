"""One file per decoded clip, shared by any number of processes.

    <folder>/format.json                    what this folder is; another version is refused
    <folder>/usage                          bytes of all entries; locked while an entry comes or goes
    <folder>/<2 hex>/<30 hex>.clip          header (one page: magic, length, JSON), then the pixels uint8 [3, F, H, W]

A clip is found by a hash of its path below the data root (split, action, file), its size and modification time, the
frames and the picture size that were decoded, and what decoded them. The path is relative so that a cache serves the
same data set wherever it is mounted; size and time are what `make` and `rsync` trust, and reading the files to hash
them would cost as much as the cache saves.

One file per clip and not a few large ones: as many files as the data set has, no index to keep consistent, nothing to
lock for reading, and an entry can go alone. measured, 2.4 MB entries in the page cache: 0.125 ms per clip from files
of their own, 0.105 ms from one large mapped file; decoding takes 30 ms.

When the limit is reached nothing is added any more and nothing is thrown out: each epoch uses every clip once in random
order, so throwing out the least recently used one would lose more hits than it wins.

What this does not cover: a file that another program truncates or deletes on a network file system while it is mapped
(the process dies of SIGBUS); do not prune there while training runs.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import mmap
import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from numpy.typing import NDArray

from mvfoul.clip import ClipSpec
from mvfoul.errors import ConfigError, MVFoulError

FORMAT: Final = 1
PIXELS: Final = 1
"""Raise it when `mvfoul.video` or `mvfoul.resize` give other pixels: old entries are then stale."""

_MAGIC: Final = b"MVFCLIP1"
_PAGE: Final = 4096
_PREFIX: Final = struct.Struct("<8sI")
_KIND: Final = "decoded clips of mvfoul"
_ABANDONED_S: Final = 3600

Pixels = NDArray[np.uint8]


class CacheFullError(MVFoulError):
    """Nothing more can be added: the limit is reached, or the disk is full or failing."""


class DamagedEntryError(MVFoulError):
    """An entry is not what was written."""


@dataclass(frozen=True)
class Source:
    """What tells a clip's file from others, and from itself after a change."""

    path: Path
    name: str
    """Below the data root: split, action, file."""
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Source:
        """Look at a file.

        Raises:
            OSError: It is not there.
        """
        found = path.stat()
        return cls(path, "/".join(path.parts[-3:]), found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class Entry:
    """The header of a file."""

    file: Path
    header: dict[str, Any]
    size_bytes: int

    @property
    def reason(self) -> str | None:
        """Why the clip cannot be decoded; None: it was."""
        reason: str | None = self.header["reason"]
        return reason


def decoder_identity() -> dict[str, Any]:
    """Return what decides the pixels besides the file and the clip specification."""
    libraries = av.library_versions
    return {"pixels": PIXELS, **{name: list(libraries[name]) for name in ("libavcodec", "libswscale")}}


class ClipStore:
    """The entries of a folder. Reading locks nothing; processes and threads may add at the same time."""

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        """Open or make the folder.

        Args:
            folder: Of the cache alone.
            limit_bytes: All entries together. 0: what is there is used, nothing is added, and it may be read-only.

        Raises:
            ConfigError: The folder cannot be made or written to, or holds something else or another version.
        """
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._decoder = decoder_identity()
        self._checked: set[str] = set()
        try:
            if limit_bytes:
                folder.mkdir(parents=True, exist_ok=True)
            self._check_format()
            if limit_bytes:
                self._count()
        except OSError as error:
            raise ConfigError(
                f"--data.cache-dir {folder} cannot be used: {error.strerror or error}. Choose a folder on a disk that "
                "you may write to, or use a cache that is there as it is with --data.cache-gib 0."
            ) from error

    def get(self, source: Source, spec: ClipSpec) -> Pixels | str | None:
        """Return a clip's pixels, uint8 `[3, F, H, W]` mapped from the file, or why it cannot be decoded, or None.

        Raises:
            DamagedEntryError: The entry is not what was written. It is gone now, if it could be removed.
        """
        file = self._file(source, spec)
        try:
            with file.open("rb") as stream:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise self._damaged(file, str(error)) from error
        try:
            return self._read(file, mapped, spec)
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise self._damaged(file, str(error)) from error

    def put(self, source: Source, spec: ClipSpec, content: Pixels | str) -> None:
        """Add a clip's pixels, or why it cannot be decoded.

        Raises:
            CacheFullError: The limit is reached, or the disk is full or failing. Nothing is left half-written.
        """
        file = self._file(source, spec)
        pixels = b"" if isinstance(content, str) else np.ascontiguousarray(content).tobytes()
        header = {
            "path": str(source.path.absolute()),
            "name": source.name,
            "size_bytes": source.size_bytes,
            "mtime_ns": source.mtime_ns,
            "clip": self._clip(spec),
            "decoder": self._decoder,
            "reason": content if isinstance(content, str) else None,
            "crc32": zlib.crc32(pixels),
        }
        text = json.dumps(header).encode()
        if _PREFIX.size + len(text) > _PAGE:  # a reason of FFmpeg's, kilobytes long
            header["reason"] = str(header["reason"])[:500]
            text = json.dumps(header).encode()
        page = (_PREFIX.pack(_MAGIC, len(text)) + text).ljust(_PAGE, b"\0")
        try:
            self._write(file, page, pixels)
        except OSError as error:
            why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror or error)
            raise CacheFullError(
                f"{self.folder}: {why}. Clips that are not in the cache are decoded in every epoch. Free space or "
                "choose another --data.cache-dir."
            ) from error

    def has(self, source: Source, spec: ClipSpec) -> bool:
        """Return whether there is an entry; it is not read."""
        return self._file(source, spec).exists()

    def used_bytes(self) -> int:
        """Return the size of all entries."""
        with suppress(OSError, ValueError):
            return int((self.folder / "usage").read_text())
        return 0

    def entries(self) -> Iterator[Entry]:
        """Read the headers of all entries; damaged ones have an empty header."""
        for file in sorted(self.folder.glob("??/*.clip")):
            size = file.stat().st_size
            try:
                with file.open("rb") as stream:
                    yield Entry(file, _header(stream.read(_PAGE)), size)
            except (OSError, ValueError, struct.error):
                yield Entry(file, {}, size)

    def remove(self, entry: Entry) -> None:
        """Delete an entry."""
        with self._locked() as usage:
            entry.file.unlink(missing_ok=True)
            _write_number(usage, max(0, _read_number(usage) - entry.size_bytes))

    def _file(self, source: Source, spec: ClipSpec) -> Path:
        identity = [source.name, source.size_bytes, source.mtime_ns, self._clip(spec), self._decoder]
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return self.folder / name[:2] / f"{name[2:32]}.clip"

    @staticmethod
    def _clip(spec: ClipSpec) -> dict[str, Any]:
        short_side = {"short_side_px": spec.short_side_px} if spec.resize == "center_crop" else {}
        return {"frames": list(spec.frame_indices), "resize": spec.resize, "size_px": spec.size_px, **short_side}

    def _read(self, file: Path, mapped: mmap.mmap, spec: ClipSpec) -> Pixels | str:
        header = _header(mapped[:_PAGE])
        if header["reason"] is not None:
            return str(header["reason"])
        shape = spec.view_shape
        if len(mapped) != _PAGE + int(np.prod(shape)):
            raise ValueError(f"it has {len(mapped)} bytes, {_PAGE + int(np.prod(shape))} were written")
        # Once per process and entry: a third of a millisecond that later epochs save.
        if file.name not in self._checked:
            with memoryview(mapped) as everything:
                if zlib.crc32(everything[_PAGE:]) != header["crc32"]:
                    raise ValueError("its checksum is wrong")
            self._checked.add(file.name)
        return np.frombuffer(mapped, np.uint8, offset=_PAGE).reshape(shape)

    def _damaged(self, file: Path, why: str) -> DamagedEntryError:
        if self.limit_bytes:
            with suppress(OSError):
                self.remove(Entry(file, {}, file.stat().st_size))
        return DamagedEntryError(f"cache entry {file} is damaged ({why}); its clip is decoded again.")

    def _write(self, file: Path, page: bytes, pixels: bytes) -> None:
        file.parent.mkdir(exist_ok=True)
        temporary = file.with_name(f"{file.stem}.{os.getpid()}.{time.monotonic_ns()}.tmp")
        try:
            with temporary.open("xb") as stream:
                stream.write(page)
                stream.write(pixels)
            size = len(page) + len(pixels)
            with self._locked() as usage:
                if file.exists():  # another process was faster
                    return
                used = _read_number(usage) + size
                if used > self.limit_bytes:
                    raise CacheFullError(
                        f"{self.folder} has reached its limit of {self.limit_bytes / 2**30:.2f} GiB. Clips that are "
                        "not in it are decoded in every epoch. Raise --data.cache-gib, or remove what is stale with "
                        "python -m training.cache --prune."
                    )
                temporary.rename(file)
                _write_number(usage, used)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        usage = os.open(self.folder / "usage", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(usage, fcntl.LOCK_EX)
            yield usage
        finally:
            os.close(usage)

    def _check_format(self) -> None:
        marker = self.folder / "format.json"
        try:
            found = json.loads(marker.read_text())
        except FileNotFoundError:
            self._mark(marker)
            return
        except ValueError:
            found = {}
        if found.get("kind") != _KIND or found.get("version") != FORMAT:
            raise ConfigError(
                f"--data.cache-dir {self.folder} was written by another version (format {found.get('version')!r}, this "
                f"one reads {FORMAT}). Choose another folder, or delete that one."
            )

    def _mark(self, marker: Path) -> None:
        if not self.limit_bytes:
            raise ConfigError(
                f"--data.cache-dir {self.folder} holds no cache, and --data.cache-gib is 0: nothing would be added. "
                "Name a folder that python -m training.cache has filled, or raise --data.cache-gib."
            )
        if others := [path.name for path in self.folder.iterdir() if not path.name.startswith("format.json")][:3]:
            raise ConfigError(
                f"--data.cache-dir {self.folder} holds other files ({', '.join(others)}). Name an empty or new folder."
            )
        temporary = marker.with_name(f"format.json.{os.getpid()}")
        temporary.write_text(json.dumps({"kind": _KIND, "version": FORMAT}))
        temporary.rename(marker)

    def _count(self) -> None:
        """Count what is there anew: a killed process may have left the number wrong, and half-written files."""
        with self._locked() as usage:
            used = 0
            for folder in os.scandir(self.folder):
                for file in os.scandir(folder) if folder.is_dir() else ():
                    with suppress(FileNotFoundError):
                        used += self._size_or_removed(file)
            _write_number(usage, used)

    @staticmethod
    def _size_or_removed(file: os.DirEntry[str]) -> int:
        found = file.stat()
        if file.name.endswith(".clip"):
            return found.st_size
        if time.time() - found.st_mtime > _ABANDONED_S:
            Path(file.path).unlink(missing_ok=True)
        return 0


def _header(page: bytes) -> dict[str, Any]:
    magic, length = _PREFIX.unpack_from(page)
    if magic != _MAGIC or length > _PAGE - _PREFIX.size:
        raise ValueError("it does not start like an entry")
    header: dict[str, Any] = json.loads(page[_PREFIX.size : _PREFIX.size + length])
    return header


def _read_number(file: int) -> int:
    text = os.pread(file, 32, 0).strip()
    return int(text) if text.isdigit() else 0


def _write_number(file: int, number: int) -> None:
    os.pwrite(file, str(number).ljust(32).encode(), 0)
