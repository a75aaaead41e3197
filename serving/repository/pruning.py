"""Removing old versions from a model repository, never the one that answers."""

from __future__ import annotations

import json
from pathlib import Path

from mvfoul.errors import ConfigError
from serving.repository.config import RepositoryConfig
from serving.repository.model_config import ModelNames, artifact_version
from serving.repository.store import RECORD, RepositoryStore


def prune(store: RepositoryStore, config: RepositoryConfig) -> list[str]:
    """Remove the versions of --prune and those beyond --keep; return the lines to print.

    Raises:
        ConfigError: A version is not there, or the ensemble answers with it.
    """
    names = ModelNames(config.name)
    there = {artifact_version(version): version for version in store.versions(names.encoder)}
    answering = {artifact_version(version) for version in store.versions(names.ensemble)}
    if not there:
        raise ConfigError(f"{store.root} has no versions of {names.encoder}; check --output and --name.")
    _check_removable(config.prune, list(there), answering, store.root)
    newest_first = sorted(
        there, key=lambda name: _written_at(store.root / names.encoder / str(there[name])), reverse=True
    )
    kept = [name for name in newest_first if name not in answering and name not in config.prune]
    beyond = kept[max(0, config.keep - len(answering)) :] if config.keep else []
    removed = [*config.prune, *beyond]
    if config.dry_run:
        return [f"would remove {name}" for name in removed]
    for name in removed:
        for model in (names.head, names.encoder):
            store.remove_version(model, there[name])
    left = ", ".join(name for name in newest_first if name not in removed)
    return [*(f"removed {name}" for name in removed), f"{store.root} has {left}"]


def _check_removable(wanted: tuple[str, ...], there: list[str], answering: set[str], root: Path) -> None:
    if missing := [name for name in wanted if name not in there]:
        raise ConfigError(f"--prune names {', '.join(missing)}; {root} has {', '.join(there)}.")
    if busy := [name for name in wanted if name in answering]:
        raise ConfigError(f"--prune names {busy[0]}, with which the ensemble answers. Write another artifact first.")


def _written_at(folder: Path) -> str:
    """Return when a version came, as text that sorts; versions without a record are the oldest."""
    try:
        return str(json.loads((folder / RECORD).read_text())["written_at"])
    except (OSError, ValueError, KeyError):
        return ""
