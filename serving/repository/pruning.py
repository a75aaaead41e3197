"""Removing old versions from a model repository, never the one that answers."""

from __future__ import annotations

from pathlib import Path

from mvfoul.errors import ConfigError
from serving.repository.config import RepositoryConfig
from serving.repository.model_config import ModelNames, artifact_version
from serving.repository.store import RepositoryReader, open_store


def prune(config: RepositoryConfig) -> list[str]:
    """Remove the versions of --prune and those beyond --keep; return the lines to print.

    Raises:
        ConfigError: A version is not there, or the ensemble answers with it.
    """
    names = ModelNames(config.name)
    reader = RepositoryReader(config.output)
    there = {artifact_version(version): version for version in reader.versions(names.encoder)}
    if not there:
        raise ConfigError(f"{reader.root} has no versions of {names.encoder}; check --output and --name.")
    if config.dry_run:
        return [f"would remove {name}" for name in _removable(reader, config, there)]
    with open_store(config.output) as store:
        removed = _removable(store, config, there)
        for name in removed:
            for model in (names.ensemble, names.head, names.encoder):
                store.remove_version(model, there[name])
    left = ", ".join(name for name in there if name not in removed)
    hint = f"a Triton in mode explicit unloads it when {names.encoder} and {names.head} are loaded again"
    return [
        *(f"removed {name}" for name in removed),
        f"{reader.root} has {left}",
        *([hint] if removed and not config.triton else []),
    ]


def _removable(reader: RepositoryReader, config: RepositoryConfig, there: dict[str, int]) -> list[str]:
    names = ModelNames(config.name)
    answering = reader.answering_version(names.ensemble)
    others = [name for name, version in there.items() if version != answering]
    _check_named(config.prune, there, others, reader.root)
    # Versions without a record are the oldest.
    others.sort(key=lambda name: str(reader.record(names.encoder, there[name]).get("written_at", "")), reverse=True)
    kept = [name for name in others if name not in config.prune]
    beyond = kept[max(0, config.keep - (len(there) - len(others))) :] if config.keep else []
    return [*config.prune, *beyond]


def _check_named(wanted: tuple[str, ...], there: dict[str, int], others: list[str], root: Path) -> None:
    if missing := [name for name in wanted if name not in there]:
        raise ConfigError(f"--prune names {', '.join(missing)}; {root} has {', '.join(there)}.")
    if busy := [name for name in wanted if name not in others]:
        raise ConfigError(f"--prune names {busy[0]}, with which the ensemble answers. Write another artifact first.")
