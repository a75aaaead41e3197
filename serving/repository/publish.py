"""From an artifact to versions in a model repository, in the order in which a running Triton must see them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import mvfoul.engines
from mvfoul.artifact import Artifact, load_artifact, sha256_of, write_json
from mvfoul.errors import ArtifactError, ConfigError
from serving.repository import triton_model
from serving.repository.config import RepositoryConfig
from serving.repository.model_config import ModelNames, artifact_version, build_configs, triton_version
from serving.repository.pruning import prune
from serving.repository.store import RECORD, RepositoryStore, config_text, open_store

_BOUND_FIELDS: Final = ("backend", "input", "output")
"""What the versions of one model must share: Triton has one configuration for all of them."""


def publish(config: RepositoryConfig) -> list[str]:
    """Write, prune or show what would be written; return the lines to print.

    Raises:
        ArtifactError: The artifact is damaged, computes something else here than at export, or lacks what was asked.
        ConfigError: A flag does not fit the artifact, or the repository holds something that does not go with it.
    """
    if config.artifact is None:
        with open_store(config.output) as store:
            return prune(store, config)
    artifact = load_artifact(config.artifact)
    models = build_configs(artifact, config)
    if not config.no_self_test:
        _self_test(artifact)
    if config.dry_run:
        return _described(artifact, config, models)
    with open_store(config.output) as store:
        lines = _write(store, artifact, config, models)
        if config.prune or config.keep:
            lines += prune(store, config)
    return [*lines, *next_steps(artifact, config)]


def _self_test(artifact: Artifact) -> None:
    from serving.graphs import OnnxGraphs

    OnnxGraphs(artifact, threads=0).self_test(artifact)


@dataclass(frozen=True)
class _Content:
    """The files of one version folder: from the artifact under another name, and of our own."""

    graph: str
    target: str
    ours: dict[str, Path]


def _write(store: RepositoryStore, artifact: Artifact, config: RepositoryConfig, models: dict[str, Any]) -> list[str]:
    """Encoder and head first: an ensemble without them would not load. Until the last step the one before answers."""
    names, version = ModelNames(config.name), triton_version(artifact)
    for model in (names.encoder, names.head):
        _check_fits(store, model, models[model], version)
    lines = [f"artifact {artifact.version} is version {version} in {store.root}:"]
    for model, content in (
        (names.encoder, _encoder_content(artifact, config)),
        (names.head, _head_content(artifact, config)),
    ):
        lines.append(_put_version(store, artifact, model, models[model], content))
    lines.append(_put_ensemble(store, artifact, names.ensemble, models[names.ensemble]))
    return lines


def _check_fits(store: RepositoryStore, model: str, wanted: Any, version: int) -> None:
    """Refuse to mix what one configuration cannot describe."""
    existing = store.config(model)
    if existing is None or not set(store.versions(model)) - {version}:
        return
    differ = [name for name in _BOUND_FIELDS if getattr(existing, name) != getattr(wanted, name)]
    if differ:
        was, now = (", ".join(_bound_text(message, name) for name in differ) for message in (existing, wanted))
        raise ConfigError(
            f"{store.root / model} holds versions with {was}; this one would have {now}. One model has one"
            " configuration: write it under another --name, or into another --output."
        )


def _bound_text(message: Any, name: str) -> str:
    value = getattr(message, name)
    return f"{name} {value}" if isinstance(value, str) else " ".join(f"{t.name}{list(t.dims)}" for t in value)


def _encoder_content(artifact: Artifact, config: RepositoryConfig) -> _Content:
    manifest = artifact.manifest
    if config.encoder == "python":
        return _python_content(manifest.encoder.file)
    plan = manifest.plan.file if manifest.plan else ""
    return _Content(plan, "model.plan", {}) if config.encoder == "tensorrt" else _onnx_content(manifest.encoder.file)


def _head_content(artifact: Artifact, config: RepositoryConfig) -> _Content:
    file = artifact.manifest.head.file
    return _python_content(file) if config.encoder == "python" else _onnx_content(file)


def _onnx_content(graph: str) -> _Content:
    return _Content(graph, "model.onnx", {})


def _python_content(graph: str) -> _Content:
    ours = {"model.py": Path(triton_model.__file__), "engines.py": Path(mvfoul.engines.__file__)}
    return _Content(graph, graph, ours)


def _put_version(store: RepositoryStore, artifact: Artifact, model: str, wanted: Any, content: _Content) -> str:
    version = triton_version(artifact)
    if version in store.versions(model):
        _check_unchanged(store.root / model / str(version) / content.target, artifact, content.graph)
        state = "was there"
    else:
        store.add_version(model, version, wanted, lambda folder: _fill(folder, artifact, content))
        state = "added"
    if store.config(model) != wanted:
        store.replace_config(model, wanted)
        state += ", configuration changed"
    return f"  {model}: {state}"


def _fill(folder: Path, artifact: Artifact, content: _Content) -> None:
    shutil.copyfile(artifact.path(content.graph), folder / content.target)
    _check_unchanged(folder / content.target, artifact, content.graph)
    for name, source in content.ours.items():
        shutil.copyfile(source, folder / name)
    if content.ours:
        # Python would write its cache folder of this name; a polling Triton would take that for a new version and load
        # it again. A file in its place keeps it from that.
        (folder / "__pycache__").touch()
    write_record(folder, artifact)


def write_record(folder: Path, artifact: Artifact) -> None:
    """Write into a version folder which artifact it is and when it came."""
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    origin = artifact.manifest.origin
    write_json(
        folder / RECORD,
        {
            "artifact": artifact.version,
            "written_at": now,
            "created_at": artifact.manifest.created_at,
            "precision": artifact.manifest.precision,
            "backbone": origin.backbone,
            "checkpoint_sha256": origin.checkpoint_sha256,
        },
    )


def _check_unchanged(path: Path, artifact: Artifact, graph: str) -> None:
    """Refuse a file whose bytes are not those that the manifest promises."""
    if not path.is_file() or sha256_of(path) != artifact.manifest.files[graph]:
        raise ArtifactError(
            f"{path} is not the {graph} of artifact {artifact.version}: it was changed, or another --encoder wrote it. "
            f"Write it under another --name, or remove the version first: --prune {artifact.version}"
        )


def _put_ensemble(store: RepositoryStore, artifact: Artifact, model: str, wanted: Any) -> str:
    """Change over by renaming one file; until then the version before answers, and afterwards this one."""
    version, before = triton_version(artifact), store.versions(model)
    if version not in before:
        store.add_version(model, version, wanted, lambda folder: write_record(folder, artifact))
    if store.config(model) != wanted:
        store.replace_config(model, wanted)
    others = [other for other in before if other != version]
    for other in others:
        store.remove_version(model, other)
    replaced = f", in place of {', '.join(map(artifact_version, others))}" if others else ""
    return f"  {model}: answers with {artifact.version}{replaced}"


def next_steps(artifact: Artifact, config: RepositoryConfig) -> list[str]:
    """Return the commands that serve what was written."""
    names, root = ModelNames(config.name), config.output.absolute()
    cache = " --cache-config=local,size=1073741824" if config.response_cache else ""
    start = f"tritonserver --model-repository={root} --metrics-config=summary_latencies=true{cache}"
    load = " ".join(f"--load-model={name}" for name in (names.encoder, names.head, names.ensemble))
    requests = " ".join(f"/v2/repository/models/{name}/load" for name in (names.encoder, names.head, names.ensemble))
    lines = [
        "next, one of:",
        f"  {start} --model-control-mode=poll --repository-poll-secs=5",
        f"  {start} --model-control-mode=explicit {load}",
        "a running Triton in explicit mode takes the new version by three requests, in this order:",
        f"  for path in {requests}; do curl --fail --request POST 127.0.0.1:8000$path || break; done",
        "then, in front of it:",
        f"  python -m serving --artifact {artifact.directory} --triton 127.0.0.1:8001",
    ]
    if config.encoder == "tensorrt" and (plan := artifact.manifest.plan):
        runs_on = f"a GPU of {plan.gpu_architecture} and TensorRT {plan.tensorrt_version}"
        lines.insert(0, f"the plan needs {runs_on}: choose the Triton image that has it (docs/triton.md)")
    return lines


def _described(artifact: Artifact, config: RepositoryConfig, models: dict[str, Any]) -> list[str]:
    lines = [f"would write artifact {artifact.version} as version {triton_version(artifact)} into {config.output}:"]
    for name, model in models.items():
        lines += [f"--- {name}/config.pbtxt", config_text(model).rstrip()]
    return lines
