"""From an artifact to versions in a model repository, in the order in which a running Triton must see them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from mvfoul.artifact import Artifact, load_artifact
from mvfoul.errors import MVFoulError
from serving.repository.compatibility import check_fits
from serving.repository.config import RepositoryConfig
from serving.repository.model_config import ModelNames, artifact_version, build_configs
from serving.repository.pruning import prune
from serving.repository.rollout import Rollouts
from serving.repository.store import RepositoryReader, RepositoryStore, config_text, open_store
from serving.repository.version_folder import (
    VersionContent,
    check_unchanged,
    encoder_content,
    fill_version,
    head_content,
    write_record,
)


def publish(config: RepositoryConfig) -> list[str]:
    """Write, prune or show what would be written; return the lines to print.

    Raises:
        ArtifactError: The artifact is damaged, computes something else here than at export, or lacks what was asked.
        ConfigError: A flag does not fit the artifact, or the repository holds something that does not go with it.
    """
    if config.artifact is None:
        with _running_triton(config) as triton:
            return _pruned(config, triton)
    artifact = load_artifact(config.artifact)
    models = build_configs(artifact, config)
    check_fits(RepositoryReader(config.output), artifact, config, models)
    if not config.no_self_test:
        _self_test(artifact)
    if config.dry_run:
        return _described(artifact, config, models)
    with _running_triton(config) as triton:
        with open_store(config.output) as store:
            check_fits(store, artifact, config, models)
            lines = _write(store, artifact, config, models, triton)
        if config.prune or config.keep:
            lines += _pruned(config, triton)
    return [*lines, *next_steps(artifact, config)]


def _self_test(artifact: Artifact) -> None:
    from serving.graphs import OnnxGraphs

    OnnxGraphs(artifact, threads=0).self_test(artifact)


def _running_triton(config: RepositoryConfig) -> AbstractContextManager[Rollouts | None]:
    if not config.triton:
        return nullcontext()
    return Rollouts(config.triton, ModelNames(config.name), timeout_s=config.triton_timeout_s)


def _pruned(config: RepositoryConfig, triton: Rollouts | None) -> list[str]:
    lines = prune(config)
    if triton and not config.dry_run:
        triton.forget_removed()
    return lines


def _write(
    store: RepositoryStore,
    artifact: Artifact,
    config: RepositoryConfig,
    models: dict[str, Any],
    triton: Rollouts | None,
) -> list[str]:
    """Encoder and head first: an ensemble without them would not load. Until the last step the one before answers."""
    names, version = ModelNames(config.name), artifact.model_version
    undo = _Undo(store, names, version)
    lines = [
        f"artifact {artifact.version} is version {version} in {store.root}:",
        _put_version(store, artifact, names.encoder, models, encoder_content(artifact, config)),
        _put_version(store, artifact, names.head, models, head_content(artifact, config)),
    ]
    if triton:
        with undo.on_failure(triton):
            triton.try_version(artifact)
        lines.append(f"  Triton at {config.triton} has loaded it and computes golden.npz as PyTorch did")
    lines.append(_put_ensemble(store, artifact, names.ensemble, models[names.ensemble]))
    if triton:
        with undo.on_failure(triton):
            triton.change_over(artifact)
    return lines


class _Undo:
    """What the models were before a version was written: configurations, and whether the version was there."""

    def __init__(self, store: RepositoryStore, names: ModelNames, version: int) -> None:
        self._store, self._names, self._version = store, names, version
        self._configs = {model: store.config(model) for model in (names.ensemble, names.head, names.encoder)}
        self._is_new = {model: version not in store.versions(model) for model in self._configs}

    @contextmanager
    def on_failure(self, triton: Rollouts) -> Iterator[None]:
        """Put everything back if Triton refuses: a version that does not load also keeps later ones from loading."""
        try:
            yield
        except BaseException:  # Ctrl-C, too
            ensemble = self._names.ensemble
            # In explicit mode Triton may have taken the new one.
            take_back = self._configs[ensemble] is not None and self._store.config(ensemble) != self._configs[ensemble]
            # The ensemble first: nothing may ask for the version while it goes.
            for model in self._configs:
                self._put_back(model)
            # Why it failed is worth more than that Triton, perhaps gone, could not be told.
            with suppress(MVFoulError):
                if take_back:
                    triton.take_back()
            with suppress(MVFoulError):
                triton.forget_removed()
            raise

    def _put_back(self, model: str) -> None:
        store, before = self._store, self._configs[model]
        if before is None:
            store.remove_model(model)
            return
        if store.config(model) != before:
            store.replace_config(model, before)
        if self._is_new[model]:
            store.remove_version(model, self._version)


def _put_version(
    store: RepositoryStore, artifact: Artifact, model: str, models: dict[str, Any], content: VersionContent
) -> str:
    version, wanted = artifact.model_version, models[model]
    if version in store.versions(model):
        check_unchanged(store.root / model / str(version) / content.target, artifact, content.graph)
        state = "was there"
    else:
        store.add_version(model, version, wanted, lambda folder: fill_version(folder, artifact, content))
        state = "added"
    if store.config(model) != wanted:
        store.replace_config(model, wanted)
        state += ", configuration changed"
    return f"  {model}: {state}"


def _put_ensemble(store: RepositoryStore, artifact: Artifact, model: str, wanted: Any) -> str:
    """Change over by renaming one file; until then the version before answers, and afterwards this one.

    The folder of the version before stays: a Triton that is told to load the encoder loads the ensemble again as it
    knows it, and calls itself not ready where that fails.
    """
    version, before = artifact.model_version, store.answering_version(model)
    if version not in store.versions(model):
        store.add_version(model, version, wanted, lambda folder: write_record(folder, artifact))
    if store.config(model) != wanted:
        store.replace_config(model, wanted)
    replaced = f", in place of {artifact_version(before)}" if before not in (None, version) else ""
    return f"  {model}: answers with {artifact.version}{replaced}"


def next_steps(artifact: Artifact, config: RepositoryConfig) -> list[str]:
    """Return the commands that serve what was written."""
    names, root = ModelNames(config.name), config.output.absolute()
    cache = " --cache-config=local,size=1073741824" if config.response_cache else ""
    start = f"tritonserver --model-repository={root} --metrics-config=summary_latencies=true{cache}"
    order = (names.encoder, names.head, names.ensemble)
    load = " ".join(f"--load-model={name}" for name in order)
    requests = " ".join(f"/v2/repository/models/{name}/load" for name in order)
    lines = [
        "next, one of:",
        f"  {start} --model-control-mode=poll --repository-poll-secs=5",
        f"  {start} --model-control-mode=explicit {load}",
        f"it is ready when /v2/models/{names.ensemble}/ready says so; then, in front of it:",
        f"  python -m serving --artifact {artifact.directory} --triton 127.0.0.1:8001",
    ]
    if not config.triton:
        lines += [
            "a Triton that runs already takes a version safely by this command with --triton HOST:8001,",
            "or in explicit mode by these requests, stopping at the first that fails:",
            f"  for path in {requests}; do curl --fail --request POST 127.0.0.1:8000$path || break; done",
        ]
    if config.encoder == "tensorrt" and (plan := artifact.manifest.plan):
        runs_on = f"a GPU of {plan.gpu_architecture} and TensorRT {plan.tensorrt_version}"
        lines.insert(0, f"the plan needs {runs_on}: choose the Triton image that has it (docs/triton.md)")
    return lines


def _described(artifact: Artifact, config: RepositoryConfig, models: dict[str, Any]) -> list[str]:
    lines = [f"would write artifact {artifact.version} as version {artifact.model_version} into {config.output}:"]
    for name, model in models.items():
        lines += [f"--- {name}/config.pbtxt", config_text(model).rstrip()]
    return lines
