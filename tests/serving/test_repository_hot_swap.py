"""A new artifact goes live in a running Triton under load: no failed request, no mixed answer."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
import tritonclient.grpc as triton_grpc

from mvfoul.artifact import FEATURES, VIEWS, load_artifact
from serving.graphs import OnnxGraphs
from serving.repository.model_config import triton_version
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
        versions = [str(triton_version(artifact)) for artifact in self._artifacts]
        return which, result.get_response().model_version in [versions[k] for k in which]

    def _ask_pinned(self, client):
        """The first artifact by its version, encoder and head apart, whatever the ensemble does."""
        version = str(triton_version(self._artifacts[0]))
        features = ask(client, "mvfoul_encoder", VIEWS, self._views, model_version=version).as_numpy(FEATURES)
        return (self._which(ask(client, "mvfoul_head", FEATURES, features, model_version=version)),)

    def _ask_ready(self, client):
        """Of the ensemble: the server as a whole calls itself not ready while any version is loading."""
        time.sleep(0.05)
        return (client.is_model_ready("mvfoul"),)

    def _which(self, result):
        return tuple(k for k, scores in enumerate(self._scores) if max(differences(result, scores).values()) < 1e-5)


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
