"""The folder of a run: what its files are called, who may write there, and which checkpoints stay.

best.pth.tar            the epoch with the best validation result
last.pth.tar            the last finished epoch, or a step of the one in progress; --resume reads it
epoch-0010.pth.tar      with --save.every-epochs and --save.keep-best
training_history.png    losses and accuracies of all epochs
config.json             every setting, the clip specification, the versions, the revision of the code
.lock                   held while a run writes here; left behind, it says nothing
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mvfoul.errors import ConfigError
from training.config import SaveConfig, TrainConfig

BEST: Final = "best.pth.tar"
LAST: Final = "last.pth.tar"
HISTORY: Final = "training_history.png"
CONFIG: Final = "config.json"
LOCK: Final = ".lock"

_EPOCH_FILE: Final = re.compile(r"epoch-(\d+)\.pth\.tar")


def epoch_file(epoch: int) -> str:
    """Return the name of an epoch's own checkpoint; epochs count from 1."""
    return f"epoch-{epoch:04d}.pth.tar"


def make_folder(config: TrainConfig) -> Path:
    """Make the folder of the run.

    Raises:
        ConfigError: It cannot be made.
    """
    default = Path("runs") / f"{config.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    output = default if config.output is None else config.output
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be made: {error}. Choose another folder.") from error
    return output


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep other runs out of the folder until the end; a killed process keeps nobody out.

    Raises:
        ConfigError: Another run writes there, or nobody may.
    """
    try:
        stream = (output / LOCK).open("a+")
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error}. Choose another folder.") from error
    with stream:
        try:
            # A POSIX lock: unlike one of flock, worker processes do not inherit it. They outlive a killed run by
            # seconds, in which it could not be resumed.
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise ConfigError(
                    f"--output {output} cannot be locked: {error}. Choose a folder on a file system with locks."
                ) from error
            stream.seek(0)
            raise ConfigError(
                f"--output {output} is being written by another run ({stream.read().strip() or 'unknown'}). Wait for "
                "it, stop it, or choose another folder."
            ) from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        stream.flush()
        yield


def clear(output: Path, *, overwrite: bool) -> None:
    """Make room for a new run.

    Raises:
        ConfigError: There are checkpoints of another one, and they may not be overwritten.
    """
    held = [path.name for path in checkpoints(output)]
    if held and not overwrite:
        raise ConfigError(
            f"--output {output} holds {' and '.join(held)} of another run. Go on with it by --resume, choose another "
            "folder, or add --overwrite."
        )
    # A run that is interrupted early must not leave its settings beside another run's checkpoint.
    for name in (*held, HISTORY, CONFIG):
        (output / name).unlink(missing_ok=True)


def checkpoints(output: Path) -> list[Path]:
    """Return the checkpoints in the folder: best, last, then the epochs' own, the latest first."""
    named = [output / name for name in (BEST, LAST) if (output / name).exists()]
    numbered = [path for path in output.glob("epoch-*.pth.tar") if _EPOCH_FILE.fullmatch(path.name)]
    return [*named, *sorted(numbered, reverse=True)]


def kept_epochs(goodness: Sequence[float], config: SaveConfig) -> set[int]:
    """Return the epochs whose own checkpoints stay.

    Args:
        goodness: The validation result of each epoch; larger is better, and of equal ones the earlier.
        config: What to keep.
    """
    epochs = range(1, len(goodness) + 1)
    best = sorted(epochs, key=lambda epoch: (-goodness[epoch - 1], epoch))[: config.keep_best]
    regular = [epoch for epoch in epochs if config.every_epochs and epoch % config.every_epochs == 0]
    return {*best, *regular}


def remove_epochs_but(output: Path, kept: set[int]) -> None:
    """Delete the epochs' own checkpoints that no longer stay."""
    for path in checkpoints(output):
        match = _EPOCH_FILE.fullmatch(path.name)
        if match and int(match[1]) not in kept:
            path.unlink(missing_ok=True)
