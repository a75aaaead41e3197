"""The files of one version folder: an artifact's graph, what Triton's python backend needs beside it, and a record."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import mvfoul.engines
from mvfoul.artifact import Artifact, sha256_of, write_json
from mvfoul.errors import ArtifactError
from serving.repository import triton_model
from serving.repository.config import RepositoryConfig
from serving.repository.store import RECORD


@dataclass(frozen=True)
class VersionContent:
    """The files of one version folder: from the artifact under another name, and of our own."""

    graph: str
    """Name in the artifact."""
    target: str
    """Name in the version folder."""
    ours: dict[str, Path] = field(default_factory=dict)
    """Our own files, by their names in the version folder."""


def encoder_content(artifact: Artifact, config: RepositoryConfig) -> VersionContent:
    """Return what the encoder's version folder holds."""
    manifest = artifact.manifest
    if config.encoder == "python":
        return _python_content(manifest.encoder.file)
    plan = manifest.plan.file if manifest.plan else ""
    return VersionContent(plan, "model.plan") if config.encoder == "tensorrt" else _onnx_content(manifest.encoder.file)


def head_content(artifact: Artifact, config: RepositoryConfig) -> VersionContent:
    """Return what the head's version folder holds."""
    file = artifact.manifest.head.file
    return _python_content(file) if config.encoder == "python" else _onnx_content(file)


def _onnx_content(graph: str) -> VersionContent:
    return VersionContent(graph, "model.onnx")


def _python_content(graph: str) -> VersionContent:
    ours = {"model.py": Path(triton_model.__file__), "engines.py": Path(mvfoul.engines.__file__)}
    return VersionContent(graph, graph, ours)


def fill_version(folder: Path, artifact: Artifact, content: VersionContent) -> None:
    """Write the files of a version into its folder.

    Raises:
        ArtifactError: What was copied is not what the manifest promises.
    """
    shutil.copyfile(artifact.path(content.graph), folder / content.target)
    check_unchanged(folder / content.target, artifact, content.graph)
    for name, source in content.ours.items():
        shutil.copyfile(source, folder / name)
    if content.ours:
        # Python would write its cache folder of this name; a polling Triton would take that for a new version and load
        # it again. A file in its place keeps it from that.
        (folder / "__pycache__").touch()
    write_record(folder, artifact, plan=content.target == "model.plan")


def write_record(folder: Path, artifact: Artifact, *, plan: bool = False) -> None:
    """Write into a version folder which artifact it is and when it came."""
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    manifest = artifact.manifest
    document = {
        "artifact": artifact.version,
        "written_at": now,
        "created_at": manifest.created_at,
        "precision": manifest.precision,
        "backbone": manifest.origin.backbone,
        "checkpoint_sha256": manifest.origin.checkpoint_sha256,
    }
    built = manifest.plan if plan else None
    write_json(folder / RECORD, {**document, "plan_max_views": built.max_views} if built else document)


def check_unchanged(path: Path, artifact: Artifact, graph: str) -> None:
    """Refuse a file whose bytes are not those that the manifest promises.

    Raises:
        ArtifactError: It is missing or has other bytes; says the cure.
    """
    if not path.is_file() or sha256_of(path) != artifact.manifest.files[graph]:
        raise ArtifactError(
            f"{path} is not the {graph} of artifact {artifact.version}: it was changed, or another --encoder wrote it. "
            f"Write it under another --name, or remove the version first: --prune {artifact.version}"
        )
