"""Going on with a run: what is there, whether the settings still are those of the run, and what changes.

The order of actions, the views, the random changes to them and dropout depend on (seed, epoch, step) alone. So a
checkpoint needs no state of random generators, and a run that goes on has bitwise the losses of one that was never
interrupted, on the same machine with the same number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mvfoul.errors import CheckpointError, ConfigError
from training.checkpoint import Checkpoint, load_checkpoint
from training.config import DataConfig, TrainConfig, flat_settings
from training.folder import LAST, checkpoints
from training.provenance import versions

FREE: Final = (
    "recipe",
    "output",
    "overwrite",
    "resume",
    "device",
    "data.root",
    "data.workers",
    "data.preload_gib",
    "data.prefetch",
    "data.cache_dir",
    "data.cache_gib",
    "loop.epochs",
    "loop.patience",
    "loop.accumulate",
    "loop.compile",
    "loop.gradient_checkpointing",
    "loop.channels_last",
    "save.",
    "track.",
    "metrics.",
)
"""Settings that may change when a run goes on; a name that ends with a dot is a group. The root may move; whether the
data is the same is checked by its content."""


def find(output: Path) -> tuple[Checkpoint, Path] | None:
    """Return the checkpoint to go on from and its file, or None where there is none.

    Raises:
        CheckpointError: It is damaged; the message names the others in the folder.
    """
    held = checkpoints(output)
    if not held:
        return None
    # best.pth.tar alone: the run was killed between its first two files, which are the same.
    path = output / LAST if output / LAST in held else held[0]
    try:
        return load_checkpoint(path), path
    except CheckpointError as error:
        others = [other for other in held if other != path]
        if not others:
            raise CheckpointError(
                f"{error} There is no other checkpoint in {output}; start again with --overwrite."
            ) from error
        names = ", ".join(other.name for other in others)
        raise CheckpointError(
            f"{error} Or go on from another one of this run ({names}): "
            f"cp {others[0]} {output / LAST}, then the same command with --resume."
        ) from error


def check_settings(config: TrainConfig, checkpoint: Checkpoint, path: Path) -> list[str]:
    """Compare the settings of the run with those it is to go on with.

    Returns:
        One sentence per setting that may change and does.

    Raises:
        ConfigError: Another setting differs; the message has each flag, its old and its new value.
    """
    old, new = flat_settings(checkpoint.config), flat_settings(config.to_json())
    # A run of an earlier version lacks settings that are newer than it: it did what their defaults do.
    defaults = flat_settings(TrainConfig(data=DataConfig(root=config.data.root)).to_json())
    changed = {
        name: (old.get(name, defaults.get(name)), new.get(name))
        for name in sorted({*old, *new})
        if old.get(name, defaults.get(name)) != new.get(name)
    }
    refused = [_difference(name, values) for name, values in changed.items() if not _is_free(name)]
    if refused:
        raise ConfigError(
            f"--resume: {path} was trained with other settings: {'; '.join(refused)}. Give the old values, or start "
            "another run with another --output."
        )
    telling = ("loop.", "data.root", "device")
    return [_difference(name, values) for name, values in changed.items() if name.startswith(telling)]


def check_data(checkpoint: Checkpoint, data: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare the data of the run with what is there now; `data` as `data_identity` has it, by split.

    Raises:
        ConfigError: It is other data.
    """
    for split, now in data.items():
        before = checkpoint.data.get(split, now)
        if before["sha256"] != now["sha256"]:
            raise ConfigError(
                f"--resume: --data.root holds another {split} split than the run had: {before['actions']} actions with "
                f"{before['clips']} clips then, {now['actions']} with {now['clips']} now, or other labels. Restore the "
                "data, or start another run with another --output."
            )


def what_changes(checkpoint: Checkpoint, world: Mapping[str, int]) -> list[str]:
    """Return a sentence for each thing outside the settings that makes the numbers differ from an uninterrupted run."""
    lines = []
    before = checkpoint.world
    if before and dict(before) != dict(world):
        lines.append(
            f"{_processes(before)} before, {_processes(world)} now: each step still sees the same actions, but dropout "
            "draws differ and sums are rounded in another order: the losses are not bitwise those of one long run"
        )
    now = versions()
    lines += [
        f"{name} was {version}, is {now[name]}: the losses may differ in the last digits"
        for name, version in checkpoint.versions.items()
        if name in now and now[name] != version
    ]
    return lines


def _processes(world: Mapping[str, int]) -> str:
    size, parts = world.get("size", 1), world.get("accumulate", 1)
    each = f" with {parts} micro-batches per step" if parts > 1 else ""
    return f"{size} process{'es' if size > 1 else ''}{each}"


def _is_free(name: str) -> bool:
    return any(name == free or (free.endswith(".") and name.startswith(free)) for free in FREE)


def _difference(name: str, values: tuple[Any, Any]) -> str:
    return f"--{name.replace('_', '-')} was {values[0]!r}, is {values[1]!r}"
