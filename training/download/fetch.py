"""The whole command: ask, check the space, download, extract, say what comes next.

<out>/train/               the split, as training reads it
<out>/train.zip            with --keep-zips
<out>/.download/           unfinished files, and a record per finished split
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from mvfoul.errors import DownloadError
from mvfoul.layout import Split
from training.download.archive import Archive, OnBytes
from training.download.config import PASSWORD_VARIABLE, DownloadConfig
from training.download.hub import RemoteFile, difference, download, part_of, remote_file
from training.download.split import is_complete, place, write_record

_EXTRACTED: Final = 1.05
"""assumption: videos do not compress, so a split is about as large as its zip file."""


def fetch(config: DownloadConfig) -> None:
    """Download and extract the splits that `config` names.

    Raises:
        DownloadError: Too little space, the hub or the connection failed, a file is damaged or in the way.
    """
    console = Console(highlight=False, soft_wrap=True)
    with _locked(config.out) as work:
        wanted = {split: remote_file(config, config.file_of(split)) for split in config.splits}
        missing = {s: r for s, r in wanted.items() if not is_complete(_record(work, s), config.out / s, r.sha256)}
        for split in wanted.keys() - missing.keys():
            console.print(f"{split}: complete in {config.out / split}", markup=False)
        _check_space(config, work, missing)
        for split, remote in missing.items():
            console.print(f"{split}: {remote.name}, {_size(remote.size_bytes)}", markup=False)
            _fetch_split(config, split, remote, work, console)
    console.print(f"\nNext:\n  python -m training.check-data --root {shlex.quote(str(config.out))}", markup=False)


def _fetch_split(config: DownloadConfig, split: Split, remote: RemoteFile, work: Path, console: Console) -> None:
    kept = config.out / remote.name
    path = kept if kept.exists() or config.keep_zips else work / remote.name
    wrong = difference(path, remote) if path.exists() else "not there"
    if wrong and path.exists() and path == kept:
        raise DownloadError(f"{path} is there and is not the hub's: {wrong}. Move it away, or choose another --out.")
    if wrong:
        with _bar(console, f"downloading {remote.name}", remote.size_bytes) as advance:
            download(config, remote, path, folder=work, on_bytes=advance)
    if remote.sha256 is None:
        console.print("  the hub gives no hash of it: only its size and its checksums are checked", markup=False)
    password = config.password or os.environ.get(PASSWORD_VARIABLE)
    with Archive(path, password=password) as archive:
        _check_free(config.out, archive.size_bytes - _extracted_bytes(work / split), f"extracting {remote.name}")
        with _bar(console, f"extracting {split}", archive.size_bytes) as advance:
            placed = place(archive, config.out / split, work / split, advance)
        write_record(_record(work, split), archive, remote.sha256)
    if path != kept:
        path.unlink()
    there = f", {placed.kept} were there already" if placed.kept else ""
    console.print(f"  {placed.new} files extracted to {config.out / split}{there}", markup=False)


def _check_space(config: DownloadConfig, work: Path, missing: Mapping[Split, RemoteFile]) -> None:
    """Refuse before the first byte where the disk cannot hold it all."""
    remotes = missing.values()
    zips = [0 if (config.out / r.name).exists() else r.size_bytes - _bytes_there(r, work) for r in remotes]
    # Unless they are kept, at most one zip file is there at a time.
    transfer = sum(zips) if config.keep_zips else max(zips, default=0)
    extracted = sum(max(int(_EXTRACTED * r.size_bytes) - _extracted_bytes(work / s), 0) for s, r in missing.items())
    _check_free(config.out, transfer + extracted, f"{' '.join(missing)} at {config.resolution}")


def _check_free(folder: Path, needed_bytes: int, purpose: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise DownloadError(
            f"{purpose} needs {_size(needed_bytes)}, and {folder} has {_size(free)} free. Free space, name fewer "
            "--splits, or choose an --out on another disk."
        )


def _bytes_there(remote: RemoteFile, work: Path) -> int:
    return sum(p.stat().st_size for p in (part_of(remote, work), work / remote.name) if p.exists())


def _extracted_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _record(work: Path, split: Split) -> Path:
    return work / f"{split}.json"


@contextmanager
def _locked(out: Path) -> Iterator[Path]:
    """Make the folders, keep other downloads out of them, and yield the one for unfinished files.

    Raises:
        DownloadError: They cannot be made, or another process is at work in them.
    """
    work = out / ".download"
    try:
        work.mkdir(parents=True, exist_ok=True)
        stream = (work / "lock").open("w")
    except OSError as error:
        raise DownloadError(f"--out {out} cannot be written to: {error}. Choose another folder.") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadError(
                f"another download to {out} is running. Wait for it, or choose another --out."
            ) from error
        yield work


@contextmanager
def _bar(console: Console, description: str, total_bytes: int) -> Iterator[OnBytes]:
    columns = (TextColumn("  {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total_bytes)
        yield lambda done: progress.update(task, advance=done)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
