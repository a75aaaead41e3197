"""Whether an artifact may become another version of the models that a repository holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mvfoul.artifact import Artifact
from mvfoul.errors import ConfigError
from serving.repository.config import RepositoryConfig
from serving.repository.model_config import ModelNames, artifact_version
from serving.repository.store import RepositoryReader

_BOUND_FIELDS: Final = ("backend", "input", "output")
"""What the versions of one model must share: Triton has one configuration for all of them."""


def check_fits(reader: RepositoryReader, artifact: Artifact, config: RepositoryConfig, models: dict[str, Any]) -> None:
    """Refuse to put versions under one configuration that cannot describe them all.

    Raises:
        ConfigError: Tensors, backend or the largest batch differ from those of the versions that are there.
    """
    names, version = ModelNames(config.name), artifact.model_version
    for model in (names.encoder, names.head):
        if others := [other for other in reader.versions(model) if other != version]:
            _check_tensors(reader.root / model, reader.config(model), models[model])
            _check_batch(reader, model, others, models[model].max_batch_size)


def _check_tensors(folder: Path, existing: Any, wanted: Any) -> None:
    differ = [name for name in _BOUND_FIELDS if getattr(existing, name, None) != getattr(wanted, name)]
    if differ:
        was, now = (", ".join(_bound_text(message, name) for name in differ) for message in (existing, wanted))
        raise ConfigError(
            f"{folder} holds versions with {was}; this one would have {now}. One model has one configuration: write it"
            " under another --name, or into another --output."
        )


def _check_batch(reader: RepositoryReader, model: str, versions: list[int], size: int) -> None:
    for version in versions:
        limit = reader.record(model, version).get("plan_max_views")
        if limit and size > limit:
            raise ConfigError(
                f"the largest batch would be {size}, and {artifact_version(version)} in {reader.root / model} has a"
                f" plan for at most {limit} views. Use --max-batch {limit}, or remove that version first: --prune"
                f" {artifact_version(version)}"
            )


def _bound_text(message: Any, name: str) -> str:
    value = getattr(message, name, "no configuration")
    return f"{name} {value}" if isinstance(value, str) else " ".join(f"{t.name}{list(t.dims)}" for t in value)
