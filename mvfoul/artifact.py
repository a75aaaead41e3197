"""The artifact: the directory that export writes and serving reads.

    encoder.onnx   VIEWS uint8 [N,3,T,H,W]  -> FEATURES f32 [N,D]
    head.onnx      FEATURES f32 [V,D]       -> ACTION_LOGITS [8], ACTION_PROBABILITIES [8], VIEW_WEIGHTS [V],
                                               OFFENCE_SEVERITY_LOGITS [4], OFFENCE_SEVERITY_PROBABILITIES [4]
    golden.npz     inputs and reference outputs for the self-test at start-up (`GOLDEN_TENSORS`)
    parity.json    the checks against PyTorch that let the artifact be published; parity.md and parity.png show them
    MODEL_CARD.md  what the model is for, what it is worth, and what it must not be used for
    model.onnx     optional: both graphs in one, VIEWS of one action to probabilities
    config.json    how the export was called
    encoder.plan   optional: encoder.onnx built by TensorRT for one kind of GPU, with parity_plan.json (`mvfoul.plan`)
    manifest.json  written last, by rename: an artifact without it does not exist

Labels and the clip specification reach serving only through the manifest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from mvfoul.clip import ClipSpec
from mvfoul.errors import ArtifactError, ClipSpecError
from mvfoul.labels import VOCABULARIES
from mvfoul.plan import PlanSpec

SCHEMA_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
ENCODER: Final = "encoder.onnx"
HEAD: Final = "head.onnx"
GOLDEN: Final = "golden.npz"
MERGED: Final = "model.onnx"
MODEL_CARD: Final = "MODEL_CARD.md"

VIEWS: Final = "VIEWS"
FEATURES: Final = "FEATURES"
ACTION_LOGITS: Final = "ACTION_LOGITS"
OFFENCE_SEVERITY_LOGITS: Final = "OFFENCE_SEVERITY_LOGITS"
ACTION_PROBABILITIES: Final = "ACTION_PROBABILITIES"
OFFENCE_SEVERITY_PROBABILITIES: Final = "OFFENCE_SEVERITY_PROBABILITIES"
VIEW_WEIGHTS: Final = "VIEW_WEIGHTS"

GOLDEN_TENSORS: Final = (
    VIEWS,
    FEATURES,
    ACTION_LOGITS,
    OFFENCE_SEVERITY_LOGITS,
    ACTION_PROBABILITIES,
    OFFENCE_SEVERITY_PROBABILITIES,
    VIEW_WEIGHTS,
)
"""The arrays of golden.npz: one action, its views and what PyTorch answered, by tensor name."""


GOLDEN_TOLERANCE: Final[Mapping[str, float]] = {"fp32": 1e-3, "fp16": 5e-2, "int8": 0.2}
"""Largest difference of a logit or probability from golden.npz, by the manifest's precision; see `golden_limit`.

assumption: ten times the tolerance of the export's parity check, because other CPUs sum in another order."""

VIEW_WEIGHTS_SLACK: Final = 0.02
"""Added for view weights: under `max` they count which view supplies a feature, so a tie of one feature that another
CPU decides the other way moves a whole 1/D, 1/400 to 1/1024. This allows ten features of 512; decisions stay strict."""


def golden_limit(tolerance: float, tensor: str) -> float:
    """Return how far a tensor may be from golden.npz, absolutely, where `tolerance` holds for logits."""
    return tolerance + VIEW_WEIGHTS_SLACK if tensor == VIEW_WEIGHTS else tolerance


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype name and shape of a graph's input or output; a string in the shape is a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX file and its tensors."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Origin:
    """The checkpoint that the artifact was made from."""

    checkpoint_sha256: str
    backbone: str
    aggregation: str
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything serving may rely on."""

    clip: ClipSpec
    encoder: GraphSpec
    head: GraphSpec
    origin: Origin
    precision: str
    """Of the encoder: "fp32", "fp16" or "int8". The head is always fp32."""
    parity: Mapping[str, Any]
    """`{"passed": true, ...}` and the figures worth showing; all of them are in parity.json."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of every file but the manifest. Filled in by `write_manifest`."""
    labels: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {str(head): names for head, names in VOCABULARIES.items()}
    )
    temperatures: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(VOCABULARIES, 1.0))
    """Calibration per head, already inside head.onnx: probabilities = softmax(logits / temperature)."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    plan: PlanSpec | None = None
    merged: GraphSpec | None = None
    """Encoder and head in one file, where the export was asked for it."""
    caveats: tuple[str, ...] = ()
    """What a client must know that no tensor says, one sentence each."""
    versions: Mapping[str, str] = field(default_factory=dict)
    created_at: str = ""
    """UTC, ISO 8601."""
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Artifact:
    """A verified artifact on disk."""

    directory: Path
    manifest: Manifest

    @property
    def version(self) -> str:
        """Twelve hexadecimal digits that change whenever any file does."""
        return version_of(self.manifest)

    @property
    def model_version(self) -> int:
        """`version` as the positive integer that Triton wants: the name of its folder in a model repository."""
        return int(self.version, 16)

    def path(self, name: str) -> Path:
        """Return the path of one of the manifest's files.

        Raises:
            ArtifactError: The manifest does not list it.
        """
        if name not in self.manifest.files:
            raise ArtifactError(f"{self.directory} has no {name}; it has {', '.join(sorted(self.manifest.files))}.")
        return self.directory / name

    def golden(self) -> dict[str, NDArray[Any]]:
        """Return the self-test: one array per name of `GOLDEN_TENSORS`.

        Raises:
            ArtifactError: An array is missing, or it is no archive of plain arrays.
        """
        try:
            with self.path(GOLDEN).open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in GOLDEN_TENSORS if name in archive}
        except (ValueError, TypeError, EOFError, BadZipFile) as error:
            raise ArtifactError(
                f"{self.directory / GOLDEN} is no archive of arrays ({error}); export again."
            ) from error
        if missing := [name for name in GOLDEN_TENSORS if name not in arrays]:
            raise ArtifactError(f"{self.directory / GOLDEN} lacks {missing}; export again.")
        return arrays


def version_of(manifest: Manifest) -> str:
    """Return `Artifact.version` without looking at the files."""
    return hashlib.sha256(json.dumps(dict(manifest.files), sort_keys=True).encode()).hexdigest()[:12]


def write_manifest(directory: Path, manifest: Manifest) -> Artifact:
    """Hash every file of `directory` and write manifest.json, last and by rename.

    Raises:
        ArtifactError: Parity has not passed, or a file that the manifest names is missing.
    """
    if manifest.parity.get("passed") is not True:
        raise ArtifactError(f"{directory}: parity has not passed; nothing is published.")
    names = sorted(path.name for path in directory.iterdir() if path.is_file() and path.name != MANIFEST)
    if missing := [name for name in _required(manifest) if name not in names]:
        raise ArtifactError(f"{directory} lacks {missing}; it cannot be published.")
    document = {**_to_json(manifest), "files": {name: sha256_of(directory / name) for name in names}}
    write_json(directory / MANIFEST, document)
    return load_artifact(directory)


def publish(work: Path, target: Path) -> Path:
    """Move a finished work directory to `target`, replacing what is there; a killed process leaves one of both.

    The old artifact is first renamed to `<target>.previous` (which replaces an older one), so a rollback is one rename.
    """
    previous = target.with_name(target.name + ".previous")
    if target.exists():
        if previous.exists():
            shutil.rmtree(previous)
        target.rename(previous)
    target.parent.mkdir(parents=True, exist_ok=True)
    work.rename(target)
    return target


def load_artifact(directory: Path) -> Artifact:
    """Read an artifact and check it: schema, labels, clip specification, every file's hash.

    Raises:
        ArtifactError: It is incomplete, damaged, or of a schema that this version does not know; says the cure.
    """
    manifest = read_manifest(directory)
    for fault in file_faults(directory, manifest):
        raise ArtifactError(fault)
    return Artifact(directory, manifest)


def file_faults(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Yield a sentence for every file that is missing, changed, or not listed though it must be."""
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.is_file():
            yield f"{path} is missing, though the manifest lists it. Copy the whole directory again."
        elif (actual := sha256_of(path)) != expected:
            yield (
                f"{path} has SHA-256 {actual[:12]}..., the manifest says {expected[:12]}.... "
                "The file is damaged or was changed; copy the directory again, or export again."
            )
    if missing := [name for name in _required(manifest) if name not in manifest.files]:
        yield f"{directory / MANIFEST} does not list {missing}; export again."


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write indented JSON to a temporary name beside `path`, flush it to disk and rename it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
        try:
            json.dump(document, stream, indent=2, allow_nan=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
            # A temporary file is private; what is published may be read by a server of another user.
            os.fchmod(stream.fileno(), 0o644)
            Path(stream.name).replace(path)
        except BaseException:
            Path(stream.name).unlink(missing_ok=True)
            raise


def without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by None, in a document for `write_json`."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _required(manifest: Manifest) -> tuple[str, ...]:
    plan = (manifest.plan.file,) if manifest.plan else ()
    merged = (manifest.merged.file,) if manifest.merged else ()
    return (manifest.encoder.file, manifest.head.file, GOLDEN, "parity.json", "config.json", *plan, *merged)


def _to_json(manifest: Manifest) -> dict[str, Any]:
    document = asdict(manifest)
    # Versions that do not know these can read an artifact that has none.
    for name in ("merged", "caveats"):
        if not document[name]:
            del document[name]
    return {"schema_version": document.pop("schema_version"), **document, "clip": manifest.clip.to_json()}


def read_manifest(directory: Path) -> Manifest:
    """Read manifest.json alone: schema, labels, clip specification; no other file is opened.

    Raises:
        ArtifactError: There is none, or it is not one that this version knows; says the cure.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise ArtifactError(
            f"{directory} is not an artifact: no {MANIFEST} in it. Make one: python -m export --ckpt best.pth.tar"
        )
    try:
        document = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not JSON ({error}); export again.") from error
    schema = document.get("schema_version") if isinstance(document, dict) else None
    if schema != SCHEMA_VERSION:
        raise ArtifactError(f"{path} has schema version {schema!r}; this version reads {SCHEMA_VERSION}. Export again.")
    try:
        return _parse_manifest(document, path)
    except (AttributeError, KeyError, TypeError, ClipSpecError) as error:
        raise ArtifactError(f"{path} is not a manifest of schema {SCHEMA_VERSION}: {error!r}. Export again.") from error


def _parse_manifest(document: dict[str, Any], path: Path) -> Manifest:
    labels = {head: tuple(names) for head, names in document["labels"].items()}
    if labels != dict(VOCABULARIES):
        raise ArtifactError(f"{path} has labels {labels}; this version knows {dict(VOCABULARIES)}. Export again.")
    if unknown := sorted(set(document) - {f.name for f in fields(Manifest)}):
        raise ArtifactError(f"{path} has unknown fields {unknown}; use the version that wrote it.")
    hashes = {name: str(digest) for name, digest in document["files"].items()}
    if unsafe := [name for name in hashes if Path(name).name != name or name == ".."]:
        raise ArtifactError(f"{path} names files outside its directory: {unsafe}. Do not use it.")
    parsed = {
        "labels": labels,
        "files": hashes,
        "clip": ClipSpec.from_json(document["clip"]),
        "encoder": _parse_graph(document["encoder"]),
        "head": _parse_graph(document["head"]),
        "origin": Origin(**document["origin"]),
        "plan": PlanSpec(**document["plan"]) if document.get("plan") else None,
        "merged": _parse_graph(document["merged"]) if document.get("merged") else None,
        "caveats": tuple(document.get("caveats", ())),
    }
    return Manifest(**{**document, **parsed})


def _parse_graph(document: Mapping[str, Any]) -> GraphSpec:
    def tensors(items: Iterable[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(t["name"], t["dtype"], tuple(t["shape"])) for t in items)

    return GraphSpec(document["file"], tensors(document["inputs"]), tensors(document["outputs"]))
