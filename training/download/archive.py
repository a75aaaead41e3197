"""A zip file into a folder: nothing outside of it, nothing overwritten, and on where it was interrupted.

Every file is written to a temporary name, its checksum compared, then renamed: a file under its own name is whole.
"""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from mvfoul.errors import DownloadError
from training.download.config import PASSWORD_VARIABLE

_BLOCK_BYTES: Final = 1 << 20
_ENCRYPTED: Final = 0x1
_JUNK: Final = ("__MACOSX/",)
_JUNK_NAMES: Final = (".DS_Store", "Thumbs.db")

OnBytes = Callable[[int], None]
"""Called with how many bytes more are done."""


@dataclass(frozen=True)
class Entry:
    """One file of an archive."""

    name: str
    """Where it goes, below the split's folder."""
    size_bytes: int
    crc: int
    stored_as: str
    """Its name in the archive."""


class Archive:
    """An open zip file whose names and sizes have been checked. Use it in a `with` statement."""

    def __init__(self, path: Path, *, password: str | None = None) -> None:
        """Open it and look at every name; nothing is extracted yet.

        Raises:
            DownloadError: No zip file, a name that would leave the folder, or an encrypted one without its password.
        """
        self.path = path
        self._password = password
        try:
            self._file, self._damage = _open(path)
            infos = [info for info in self._file.infolist() if not info.is_dir() and not _is_junk(info.filename)]
            self.entries = _entries(path, infos)
        except (zipfile.BadZipFile, OSError) as error:
            raise DownloadError(f"{path} is no readable zip file: {error}. Delete it and download it again.") from error
        if self.encrypted and not password:
            self._file.close()
            raise DownloadError(
                f"{path.name} is encrypted. SoccerNet gives the password with its NDA (https://www.soccer-net.org); "
                f"set {PASSWORD_VARIABLE} or use --password. The download is kept."
            )

    def __enter__(self) -> Archive:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    @property
    def encrypted(self) -> bool:
        """Whether a password is needed."""
        return any(info.flag_bits & _ENCRYPTED for info in self._file.infolist())

    @property
    def size_bytes(self) -> int:
        """Of all files, extracted, as the archive declares: no more is ever written."""
        return sum(entry.size_bytes for entry in self.entries)

    def extract(self, entry: Entry, target: Path) -> None:
        """Write one file, which must not be there.

        Raises:
            DownloadError: The archive is damaged there, the password is wrong, or the disk failed.
        """
        temporary = target.with_name(f"{target.name}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._sentences(entry):
            # Both readers compare the checksum, or AES's authentication code, when the end is read.
            with self._reader(entry) as source, temporary.open("wb") as stream:
                _copy(source, stream, entry.size_bytes)
            temporary.rename(target)

    def _reader(self, entry: Entry) -> Any:
        password = None if self._password is None else self._password.encode()
        return self._file.open(entry.stored_as, pwd=password if self.encrypted else None)

    @contextmanager
    def _sentences(self, entry: Entry) -> Iterator[None]:
        """Turn what goes wrong with one file into a sentence with a cure."""
        name = self.path.name
        try:
            yield
        except OSError as error:
            raise DownloadError(
                f"{name}: cannot extract {entry.name}: {error}. Run the same command again: it goes on."
            ) from error
        except self._damage as error:
            raise DownloadError(
                f"{name} is damaged at {entry.stored_as}: {error}. What was extracted before stays. Delete {self.path} "
                "and run the same command again; report it if the same comes again."
            ) from error
        except RuntimeError as error:  # what both readers raise for a password
            raise DownloadError(f"{name}: {error}. Check {PASSWORD_VARIABLE} or --password.") from error


def same(path: Path, entry: Entry) -> bool:
    """Return whether the file at `path` is the entry's: size and CRC-32. AES-encrypted archives store a CRC of 0."""
    if not path.is_file() or path.stat().st_size != entry.size_bytes:
        return False
    return entry.crc == 0 or _crc_of(path) == entry.crc


def _crc_of(path: Path) -> int:
    crc = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


def _open(path: Path) -> tuple[Any, tuple[type[Exception], ...]]:
    """Open an archive; return it and the errors with which its reader reports damage."""
    damage = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError)
    archive = zipfile.ZipFile(path)
    if not any(info.flag_bits & _ENCRYPTED for info in archive.infolist()):
        return archive, damage
    archive.close()
    try:
        # The standard library does not read AES.
        import pyzipper
    except ImportError as error:
        raise DownloadError(f"{path.name} is encrypted. Install what reads it: pip install pyzipper") from error
    return pyzipper.AESZipFile(path), (*damage, pyzipper.BadZipFile)


def _entries(path: Path, infos: Sequence[Any]) -> tuple[Entry, ...]:
    """Check the names, and take away a folder that everything lies in."""
    for info in infos:
        name, kind = PurePosixPath(info.filename), stat.S_IFMT(info.external_attr >> 16)
        inside = not name.is_absolute() and ".." not in name.parts and "\\" not in info.filename
        if not inside or ":" in name.parts[0] or kind not in (0, stat.S_IFREG):
            raise DownloadError(
                f"{path.name} holds {info.filename!r}, which is no ordinary file inside its folder. The archive is not "
                "SoccerNet's; nothing was extracted."
            )
    common = _common_folder([info.filename for info in infos])
    entries = tuple(Entry(i.filename.removeprefix(common), i.file_size, i.CRC, i.filename) for i in infos)
    if not entries:
        raise DownloadError(f"{path.name} holds no files.")
    # Folded: some disks do not tell upper case from lower.
    if len({entry.name.casefold() for entry in entries}) != len(entries):
        raise DownloadError(f"{path.name} holds a name twice; the archive is not SoccerNet's. Nothing was extracted.")
    return entries


def _common_folder(names: Sequence[str]) -> str:
    """Return "folder/" where annotations.json lies in it and everything else too; otherwise nothing."""
    tops = {name.split("/")[0] for name in names}
    if len(tops) == 1 and f"{(top := next(iter(tops)))}/annotations.json" in names:
        return f"{top}/"
    return ""


def _is_junk(name: str) -> bool:
    return name.startswith(_JUNK) or PurePosixPath(name).name in _JUNK_NAMES


def _copy(source: Any, stream: Any, size_bytes: int) -> None:
    left = size_bytes
    while block := source.read(_BLOCK_BYTES):
        left -= len(block)
        if left < 0:
            raise zipfile.BadZipFile("longer than declared")
        stream.write(block)
    if left:
        raise zipfile.BadZipFile(f"{left} bytes shorter than declared")
