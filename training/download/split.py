"""The files of one split: from its archive to its folder, by way of a folder that only this command writes to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mvfoul.artifact import write_json
from mvfoul.errors import DownloadError
from training.download.archive import Archive, Entry, OnBytes, same

_SHOWN = 3


@dataclass(frozen=True)
class Placed:
    """What became of the files of an archive."""

    new: int
    kept: int
    """Were there before, with the same content."""


def place(archive: Archive, folder: Path, work: Path, on_bytes: OnBytes) -> Placed:
    """Bring every file of the archive into `folder`.

    A folder that is not there yet appears whole, by one rename. Files that are there are compared, never written.

    Args:
        archive: What to extract.
        folder: Of the split.
        work: Where files lie until all are extracted; what an interrupted call left there is used.
        on_bytes: Called while it goes.

    Raises:
        DownloadError: A file is there with other content (nothing was changed), or extracting failed.
    """
    missing = _missing(archive.entries, folder)
    for entry in archive.entries:
        if entry in missing and not same(work / entry.name, entry):
            (work / entry.name).unlink(missing_ok=True)
            archive.extract(entry, work / entry.name)
        on_bytes(entry.size_bytes)
    try:
        _drop_all_but({work / entry.name for entry in missing}, work)
        if not folder.exists():
            work.rename(folder)
        else:
            _move(missing, work, folder)
    except OSError as error:
        raise DownloadError(f"cannot write to {folder}: {error}. Run the same command again: it goes on.") from error
    return Placed(new=len(missing), kept=len(archive.entries) - len(missing))


def write_record(path: Path, archive: Archive, sha256: str | None) -> None:
    """Note what a finished split consists of, so that it need not be downloaded to be checked."""
    files = {entry.name: entry.size_bytes for entry in archive.entries}
    write_json(path, {"sha256": sha256, "files": files})


def is_complete(path: Path, folder: Path, sha256: str | None) -> bool:
    """Return whether `folder` holds every file of the record, each of its size, and the record is of this archive.

    Raises:
        DownloadError: A file is there with another size.
    """
    try:
        record = json.loads(path.read_text())
        files: dict[str, int] = record["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if sha256 is None or record["sha256"] != sha256:
        return False
    there = {name: (folder / name).stat().st_size for name in files if (folder / name).is_file()}
    _refuse([folder / name for name, size in there.items() if size != files[name]])
    return len(there) == len(files)


def _missing(entries: Sequence[Entry], folder: Path) -> set[Entry]:
    """Return what `folder` lacks.

    Raises:
        DownloadError: A file is there with other content.
    """
    there = [entry for entry in entries if (folder / entry.name).exists()]
    _refuse([folder / entry.name for entry in there if not same(folder / entry.name, entry)])
    return set(entries) - set(there)


def _refuse(different: Sequence[Path]) -> None:
    if different:
        names = ", ".join(map(str, different[:_SHOWN])) + (", ..." if len(different) > _SHOWN else "")
        raise DownloadError(
            f"{len(different)} files are there with other content: {names}. Nothing was changed. Move them away, or "
            "choose another --out (each resolution needs its own)."
        )


def _move(missing: set[Entry], work: Path, folder: Path) -> None:
    for entry in sorted(missing, key=lambda entry: entry.name):
        target = folder / entry.name
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not a rename, which would replace a file that came in the meantime.
        target.hardlink_to(work / entry.name)
        (work / entry.name).unlink()
    shutil.rmtree(work, ignore_errors=True)


def _drop_all_but(wanted: set[Path], work: Path) -> None:
    """Delete what an interrupted call left of another version of the archive."""
    for path in work.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()
