"""Checkpoints: written atomically, read without running code from the file, refused with a reason.

A `.pth.tar` is one `torch.save`d dictionary of plain types and tensors, so `torch.load(weights_only=True)` reads it. It
carries all that is needed to rebuild the network: labels, clip specification, backbone and aggregation.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from mvfoul.clip import ClipSpec
from mvfoul.errors import CheckpointError, ClipSpecError, ConfigError
from mvfoul.labels import VOCABULARIES
from training.model.network import FoulNetwork

SCHEMA_VERSION: Final = 1
LOAD_ERRORS: Final = (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError)
"""What `torch.load` raises for a file that is damaged or something else."""
_REQUIRED: Final = ("epoch", "backbone", "aggregation", "state_dict", "optimizer", "histories", "config", "evaluation")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything of a run at the end of an epoch."""

    epoch: int
    """Epochs finished."""
    backbone: str
    aggregation: str
    clip: ClipSpec
    state_dict: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    """`FoulNetwork.options`; empty: its defaults."""
    optimizer: Mapping[str, Any] | None = None
    scheduler: Mapping[str, Any] | None = None
    scaler: Mapping[str, Any] | None = None
    histories: Mapping[str, list[float]] = field(default_factory=dict)
    """One value per epoch and curve, such as "valid/score"."""
    config: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """The metrics of the validation split at this epoch."""
    temperatures: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(map(str, VOCABULARIES), 1.0))
    versions: Mapping[str, str] = field(default_factory=dict)
    raw_state_dict: Mapping[str, Tensor] | None = None
    """The weights that learn, where `state_dict` is their moving average."""
    ema_updates: int = 0
    """Steps in that average."""
    progress: Mapping[str, Any] = field(default_factory=dict)
    """How far the run is, within an epoch too; see `training.run.Progress`."""
    world: Mapping[str, int] = field(default_factory=dict)
    """Processes of the run and micro-batches of a step."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What tells whether a split is the one that was trained on."""
    code: Mapping[str, Any] = field(default_factory=dict)
    """The revision of this project in git."""


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, also: Sequence[Path] = ()) -> None:
    """Write to a temporary name beside `path`, flush to disk, rename: a killed process leaves the old file whole.

    Args:
        path: The file.
        checkpoint: What to save.
        also: Further names for the same bytes, in the same folder: links to one file where the file system has links.
            They are there before `path` is.

    Raises:
        CheckpointError: The disk is full or read-only; the old files are untouched.
    """
    document = {f.name: getattr(checkpoint, f.name) for f in fields(Checkpoint)}
    document |= {
        "schema_version": SCHEMA_VERSION,
        "clip": checkpoint.clip.to_json(),
        "labels": {head: list(names) for head, names in VOCABULARIES.items()},
    }
    # Fixed names: a process that is killed here leaves one file of each, which the next save overwrites.
    temporary, second = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.link")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            torch.save(document, stream)
            stream.flush()
            os.fsync(stream.fileno())
        for name in also:
            _link_or_copy(temporary, second)
            second.replace(name)
        temporary.replace(path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        for leftover in (temporary, second):
            with suppress(OSError):
                leftover.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write {path}: {_reason(error)}. Free space or choose another --output. What was saved before is "
            "whole."
        ) from error


def _reason(error: BaseException) -> str:
    """Return what the system said; torch's writer hides it behind its own complaint about positions."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return str(cause or error)


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # not every network file system has hard links
        with source.open("rb") as reader, target.open("wb") as writer:
            shutil.copyfileobj(reader, writer)
            writer.flush()
            os.fsync(writer.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the renames themselves last through a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint to CPU memory.

    Raises:
        CheckpointError: Missing, damaged, foreign, of another schema, or with other labels; says the cure.
    """
    document = _read(path)
    if "schema_version" not in document:
        raise CheckpointError(_foreign(path, document))
    if document["schema_version"] != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema version {document['schema_version']!r}; this version reads {SCHEMA_VERSION}. "
            "Use the version that wrote it, or train again."
        )
    expected = {head: list(names) for head, names in VOCABULARIES.items()}
    if document.get("labels") != expected:
        raise CheckpointError(f"{path} was trained on labels {document.get('labels')}; this version knows {expected}.")
    try:
        # Files of the first version lack what was added since; it has defaults.
        values = {f.name: document[f.name] for f in fields(Checkpoint) if f.name in document or f.name in _REQUIRED}
        return Checkpoint(**{**values, "clip": ClipSpec.from_json(document["clip"])})
    except (KeyError, TypeError, ClipSpecError) as error:
        raise CheckpointError(f"{path} is not a complete checkpoint: {error}. Use another, or train again.") from error


def build_network(checkpoint: Checkpoint, *, source: str = "checkpoint") -> FoulNetwork:
    """Rebuild the network of a checkpoint, in evaluation mode on the CPU.

    Raises:
        CheckpointError: The weights are not those of the backbone and aggregation that the checkpoint names.
    """
    try:
        network = FoulNetwork(
            checkpoint.backbone,  # type: ignore[arg-type]
            checkpoint.aggregation,  # type: ignore[arg-type]
            clip=checkpoint.clip,
            **checkpoint.options,
        )
    except (ConfigError, TypeError) as error:
        raise CheckpointError(
            f"{source} cannot be rebuilt: {str(error).rstrip('.')}. Use the version that wrote it."
        ) from error
    own = network.state_dict()
    wrong = sorted(set(own) ^ set(checkpoint.state_dict)) or [
        key for key in own if own[key].shape != checkpoint.state_dict[key].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{source} does not fit {checkpoint.backbone} with {checkpoint.aggregation}: "
            f"{len(wrong)} tensors differ, first {wrong[0]}. It is of another architecture or version; train again."
        )
    network.load_state_dict(checkpoint.state_dict)
    return network.eval()


def load_network(path: Path, device: str | torch.device = "cpu") -> tuple[FoulNetwork, Checkpoint]:
    """Read a checkpoint and rebuild its network, in evaluation mode.

    Raises:
        CheckpointError: See `load_checkpoint` and `build_network`.
    """
    checkpoint = load_checkpoint(path)
    return build_network(checkpoint, source=str(path)).to(device), checkpoint


def reason_of(error: BaseException) -> str:
    """Return the first line of one of `LOAD_ERRORS`; some have none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _read(path: Path) -> dict[str, Any]:
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {path}. Train one: python -m training --data.root DIR") from error
    except LOAD_ERRORS as error:
        raise CheckpointError(f"{path} is damaged or not a checkpoint ({reason_of(error)}). Copy it again.") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds a {type(document).__name__}, not a checkpoint of this project.")
    return document


def _foreign(path: Path, document: Mapping[str, Any]) -> str:
    keys = sorted(map(str, document))
    state = document.get("state_dict")
    if isinstance(state, Mapping) and any(str(key).startswith("mvnetwork.") for key in state):
        return (
            f"{path} is a published VARS checkpoint (keys {keys}). Import it first: python -m training.legacy "
            f"--in {path} --backbone mvit_v2_s --aggregation attention --out vars.pth.tar"
        )
    return f"{path} is no checkpoint of this project: it has the keys {keys[:8]}, and no schema_version."
