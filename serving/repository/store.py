"""Changes of a model repository on disk, each of which a polling Triton sees as a whole or not at all.

Everything is made in a folder beside the repository and renamed into it. (A temporary folder inside would be taken for
a model.) One process writes at a time; what a killed one left is removed by the next.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from mvfoul.errors import ConfigError
from serving.repository.model_config import CONFIG, messages

RECORD: Final = "artifact.json"
"""In each version folder: which artifact it is. Triton does not read it."""


class RepositoryReader:
    """What a model repository holds."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def versions(self, model: str) -> list[int]:
        """Return the version folders of a model; none if there is no such model."""
        folder = self.root / model
        names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
        return sorted(int(name) for name in names if name.isdecimal())

    def config(self, model: str) -> Any | None:
        """Return a model's configuration, or None if it has none.

        Raises:
            ConfigError: It is not one that this version of Triton's protobuf knows.
        """
        from google.protobuf import text_format

        path = self.root / model / CONFIG
        if not path.is_file():
            return None
        try:
            return text_format.Parse(path.read_text(), messages().ModelConfig())
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no configuration of Triton ({error}). Use another --output.") from error

    def answering_version(self, ensemble: str) -> int | None:
        """Return the version that the ensemble answers with; None where there is no ensemble of ours."""
        config = self.config(ensemble)
        named = list(config.version_policy.specific.versions) if config else []
        return int(named[0]) if named else None

    def record(self, model: str, version: int) -> dict[str, Any]:
        """Return what a version folder says about itself; empty if it says nothing."""
        try:
            document = json.loads((self.root / model / str(version) / RECORD).read_text())
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}


class RepositoryStore(RepositoryReader):
    """One model repository, locked against other writers; made by `open_store`."""

    def __init__(self, root: Path, staging: Path) -> None:
        super().__init__(root)
        self._staging = staging

    def add_version(self, model: str, version: int, config: Any, fill: Callable[[Path], None]) -> None:
        """Add a version folder, with the model's configuration if the model is new.

        Args:
            model: Its name.
            version: The folder's; it must not exist.
            config: A `ModelConfig`.
            fill: Writes the files of the version into the folder that it is given.
        """
        made = self._staging / model
        folder = made / str(version)
        folder.mkdir(parents=True)
        fill(folder)
        if (self.root / model).is_dir():
            folder.rename(self.root / model / str(version))
        else:
            _write_config(made / CONFIG, config)
            made.rename(self.root / model)

    def replace_config(self, model: str, config: Any) -> None:
        """Replace a model's configuration."""
        _write_config(self._staging / CONFIG, config)
        (self._staging / CONFIG).replace(self.root / model / CONFIG)

    def remove_version(self, model: str, version: int) -> None:
        """Remove a version folder; nothing happens if there is none."""
        folder = self.root / model / str(version)
        if folder.is_dir():
            folder.rename(self._staging / f"{model}-{version}")

    def remove_model(self, model: str) -> None:
        """Remove a model with all its versions; nothing happens if there is none."""
        if (self.root / model).is_dir():
            (self.root / model).rename(self._staging / f"{model}-removed")


@contextmanager
def open_store(root: Path) -> Iterator[RepositoryStore]:
    """Lock a repository for writing, making it if it is missing, and clean up behind a writer that was killed.

    Raises:
        ConfigError: Another process writes to it, files beside it cannot be renamed into it, or the disk refuses.
    """
    root = root.absolute()
    beside = root.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        if beside.stat().st_dev != root.stat().st_dev:
            raise ConfigError(
                f"--output {root} is a mount point, so nothing can be renamed into it in one step. "
                f"Use a folder in it: --output {root / 'models'}"
            )
        with _locked(root, beside / f".{root.name}.lock"):
            for left in beside.glob(f".{root.name}.staging-*"):
                shutil.rmtree(left)
            with tempfile.TemporaryDirectory(dir=beside, prefix=f".{root.name}.staging-") as staging:
                yield RepositoryStore(root, Path(staging))
    except OSError as error:
        raise ConfigError(f"cannot write {root}: {error}. Check the permissions of its folder and the disk.") from error


@contextmanager
def _locked(root: Path, path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another process writes to {root}; wait for it to end.") from error
        yield


def _write_config(path: Path, config: Any) -> None:
    path.write_text(config_text(config))


def config_text(config: Any) -> str:
    """Return a `ModelConfig` as Triton reads it from config.pbtxt."""
    from google.protobuf import text_format

    text: str = text_format.MessageToString(config)
    return text
