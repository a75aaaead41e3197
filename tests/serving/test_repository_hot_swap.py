"""A new artifact goes live in a running Triton under load: no failed request, no mixed answer."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from mvfoul.artifact import ENCODER, FEATURES, GOLDEN, VIEWS, load_artifact, write_manifest
from mvfoul.errors import ArtifactError, UnavailableError
from serving.graphs import OnnxGraphs
from tests.serving.triton_requests import ask, differences, noise

MODELS = ("mvfoul_encoder", "mvfoul_head", "mvfoul")


class Load:
    """Clients that ask without a pause; counts what they saw: (who, which artifact's answer, its own version said)."""

    def __init__(self, triton, artifacts):
        self._triton, self._artifacts = triton, artifacts
        self._views = noise(artifacts[0], 1)
        self._scores = []
        for artifact in artifacts:
            graphs = OnnxGraphs(artifact, threads=1)
            self._scores.append(graphs.classify(graphs.encode(self._views)))
        self._end = threading.Event()
        self.seen = Counter()
        self._threads = [
            threading.Thread(target=self._run, args=("ensemble", self._ask_ensemble)),
            threading.Thread(target=self._run, args=("ensemble", self._ask_ensemble)),
            threading.Thread(target=self._run, args=("pinned", self._ask_pinned)),
            threading.Thread(target=self._run, args=("ready", self._ask_ready)),
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _run(self, who, ask_once):
        with triton_grpc.InferenceServerClient(self._triton.grpc) as client:
            while not self._end.is_set():
                try:
                    self.seen[who, *ask_once(client)] += 1
                except triton_grpc.InferenceServerException as error:
                    self.seen[who, str(error)] += 1

    def _ask_ensemble(self, client):
        result = ask(client, "mvfoul", VIEWS, self._views)
        which = self._which(result)
        versions = [str(artifact.model_version) for artifact in self._artifacts]
        return which, result.get_response().model_version in [versions[k] for k in which]

    def _ask_pinned(self, client):
        """The first artifact by its version, encoder and head apart, whatever the ensemble does."""
        version = str(self._artifacts[0].model_version)
        features = ask(client, "mvfoul_encoder", VIEWS, self._views, model_version=version).as_numpy(FEATURES)
        return (self._which(ask(client, "mvfoul_head", FEATURES, features, model_version=version)),)

    def _ask_ready(self, client):
        """Of the ensemble: the server as a whole calls itself not ready while any version is loading."""
        time.sleep(0.05)
        return (client.is_model_ready("mvfoul"),)

    def _which(self, result):
        return tuple(k for k, scores in enumerate(self._scores) if max(differences(result, scores).values()) < 1e-5)


def spoil_encoder(source, target):
    """A copy whose encoder is no graph, with hashes that fit."""
    shutil.copytree(source, target)
    (target / ENCODER).write_bytes(b"no graph")
    write_manifest(target, load_artifact(source).manifest)
    return target


def spoil_golden(source, target):
    """A copy that computes something else than its golden.npz says, with hashes that fit."""
    shutil.copytree(source, target)
    with np.load(target / GOLDEN) as archive:
        arrays = dict(archive)
    np.savez(target / GOLDEN, **{**arrays, "ACTION_PROBABILITIES": arrays["ACTION_PROBABILITIES"][::-1]})
    write_manifest(target, load_artifact(source).manifest)
    return target


@pytest.mark.parametrize("control", ["poll", "explicit"])
def test_an_artifact_goes_live_and_comes_back_under_load(
    start_triton, write_repository, wait_until, tmp_path, tiny_artifact, second_artifact, control
):
    models = tmp_path / "models"
    artifacts = [load_artifact(tiny_artifact), load_artifact(second_artifact)]

    def write(artifact):
        write_repository(models, artifact=artifact, no_warm_up=True, no_self_test=True)
        if control == "explicit":
            with triton_grpc.InferenceServerClient(triton.grpc) as client:
                for name in MODELS:
                    client.load_model(name)

    write_repository(models, no_warm_up=True, no_self_test=True)
    loaded = {"load": MODELS} if control == "explicit" else {}
    with start_triton(models, control=control, **loaded) as triton, Load(triton, artifacts) as load:
        wait_until(lambda: load.seen["ensemble", (0,), True] > 2, "the first artifact answers")
        write(second_artifact)
        wait_until(lambda: load.seen["ensemble", (1,), True] > 2, "the second artifact answers")
        before = load.seen["ensemble", (0,), True]
        write(tiny_artifact)
        wait_until(lambda: load.seen["ensemble", (0,), True] > before + 4, "the first artifact answers again")
    allowed = {("ensemble", (0,), True), ("ensemble", (1,), True), ("pinned", (0,)), ("ready", True)}
    assert set(load.seen) == allowed, load.seen


@pytest.mark.parametrize("control", ["poll", "explicit"])
def test_a_version_that_does_not_load_or_errs_is_removed_and_the_old_one_stays(
    start_triton, write_repository, wait_until, tmp_path, tiny_artifact, second_artifact, control
):
    """`--triton`: the ensemble changes over only after the running Triton has proven the version."""
    models = tmp_path / "models"
    first, second = (load_artifact(path) for path in (tiny_artifact, second_artifact))
    fields = {"no_warm_up": True, "no_self_test": True}
    write_repository(models, **fields)
    loaded = {"load": MODELS} if control == "explicit" else {}
    with start_triton(models, control=control, **loaded) as triton, Load(triton, [first, second]) as load:
        for name, spoil, message in (
            ("no_graph", spoil_encoder, "cannot load mvfoul_encoder.*ONNXRuntimeError"),
            ("other_answers", spoil_golden, "fails its self-test in Triton at .*ACTION_PROBABILITIES by"),
        ):
            bad = spoil(tiny_artifact, tmp_path / name)
            with pytest.raises(ArtifactError, match=message):
                write_repository(models, artifact=bad, triton=triton.grpc, triton_timeout_s=60.0, **fields)
            assert [path.name for path in (models / "mvfoul_encoder").iterdir() if path.is_dir()] == [
                str(first.model_version)
            ]
        assert set(load.seen) == {("ensemble", (0,), True), ("pinned", (0,)), ("ready", True)}, load.seen
        write_repository(models, artifact=second_artifact, triton=triton.grpc, triton_timeout_s=60.0, **fields)
        assert load.seen["pinned", (0,)]
        load.stop()
        write_repository(models, artifact=None, keep=1, triton=triton.grpc)
        with triton_grpc.InferenceServerClient(triton.grpc) as client:
            result = ask(client, "mvfoul", VIEWS, noise(first, 1))
            assert result.get_response().model_version == str(second.model_version)
            wait_until(lambda: not client.is_model_ready("mvfoul_encoder", str(first.model_version)), "it is unloaded")
    assert set(load.seen) <= {("ensemble", (0,), True), ("ensemble", (1,), True), ("pinned", (0,)), ("ready", True)}


def test_a_triton_that_is_not_there_is_told_before_anything_is_written(write_repository, tmp_path):
    models = tmp_path / "models"
    with pytest.raises(UnavailableError, match=r"--triton 127\.0\.0\.1:9 does not answer"):
        write_repository(models, triton="127.0.0.1:9", triton_timeout_s=2.0, no_self_test=True)
    assert not models.exists()
