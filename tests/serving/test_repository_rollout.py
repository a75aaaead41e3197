"""A Triton that dies, hangs or refuses in the middle of taking a version: the repository is as it was before.

The server is a real one of Triton's protocol that answers as golden.npz says, and fails where a test wants it to. What
the genuine Triton does is in `test_repository_hot_swap.py`.
"""
# ruff: noqa: N802, ARG001, ARG002  # the names and arguments are gRPC's

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from mvfoul.artifact import load_artifact
from mvfoul.errors import ArtifactError, UnavailableError
from tests.serving.triton_requests import ANSWERS

TIMEOUT_S = 1.0


class Golden(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Knows every version of every model, and answers with one artifact's golden.npz."""

    def __init__(self, artifact, method, model, fail):
        self._golden, self._fail = artifact.golden(), (method, model, fail)
        self.loaded = []

    def _maybe_fail(self, method, model, context):
        if (method, model) == self._fail[:2]:
            self._fail[2](context)

    def RepositoryIndex(self, request, context):
        self._maybe_fail("RepositoryIndex", "", context)
        return pb.RepositoryIndexResponse()

    def RepositoryModelLoad(self, request, context):
        self.loaded.append(request.model_name)
        self._maybe_fail("RepositoryModelLoad", request.model_name, context)
        return pb.RepositoryModelLoadResponse()

    def ModelReady(self, request, context):
        self._maybe_fail("ModelReady", request.name, context)
        return pb.ModelReadyResponse(ready=True)

    def ModelInfer(self, request, context):
        self._maybe_fail("ModelInfer", request.model_name, context)
        encoder = request.model_name.endswith("_encoder")
        found = {"FEATURES": np.zeros((1, 4), np.float32)} if encoder else {n: self._golden[n] for n in ANSWERS}
        return pb.ModelInferResponse(
            model_name=request.model_name,
            outputs=[
                pb.ModelInferResponse.InferOutputTensor(name=name, datatype="FP32", shape=values.shape)
                for name, values in found.items()
            ],
            raw_output_contents=[np.ascontiguousarray(values, "<f4").tobytes() for values in found.values()],
        )


@contextmanager
def serving(servicer):
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=[("grpc.max_receive_message_length", -1)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait()


def dies(context):
    context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


def hangs(context):
    time.sleep(TIMEOUT_S + 0.5)


def refuses(context):
    context.abort(grpc.StatusCode.INTERNAL, "no such luck")


def contents(folder):
    """Every file of a repository, by its path."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def attempt(write_repository, tmp_path, second_artifact):
    """`attempt(method, model, fail, error, message)`: the second artifact fails there; the repository must not show."""
    models = tmp_path / "models"
    fields = {"no_warm_up": True, "no_self_test": True}

    def rollout(method, model, fail, error, message):
        servicer = Golden(load_artifact(second_artifact), method, model, fail)
        before = contents(models)
        with serving(servicer) as target, pytest.raises(error, match=message) as raised:
            write_repository(models, artifact=second_artifact, triton=target, triton_timeout_s=TIMEOUT_S, **fields)
        assert contents(models) == before
        return servicer, raised.value

    write_repository(models, **fields)
    return rollout


@pytest.mark.parametrize("fail", [dies, hangs])
@pytest.mark.parametrize(
    ("method", "model"),
    [
        ("RepositoryIndex", ""),
        ("RepositoryModelLoad", "mvfoul_encoder"),
        ("ModelReady", "mvfoul_head"),
        ("ModelInfer", "mvfoul_encoder"),
        ("RepositoryModelLoad", "mvfoul"),
        ("ModelReady", "mvfoul"),
    ],
)
def test_a_triton_that_dies_or_hangs_is_unavailable_and_the_version_is_removed_again(attempt, method, model, fail):
    _, error = attempt(method, model, fail, UnavailableError, r"--triton 127\.0\.0\.1:\d+ does not answer")
    assert error.exit_code == 3


def test_a_triton_that_does_not_load_the_ensemble_is_told_to_read_the_old_one_again(attempt):
    servicer, error = attempt(
        "RepositoryModelLoad", "mvfoul", refuses, ArtifactError, "cannot load mvfoul: no such luck"
    )
    assert error.exit_code == 2
    assert servicer.loaded == ["mvfoul_encoder", "mvfoul_head", "mvfoul", "mvfoul", "mvfoul_encoder", "mvfoul_head"]


def test_a_first_version_that_fails_leaves_no_ensemble(write_repository, tmp_path, tiny_artifact):
    models = tmp_path / "models"
    servicer = Golden(load_artifact(tiny_artifact), "RepositoryModelLoad", "mvfoul", refuses)
    with serving(servicer) as target, pytest.raises(ArtifactError):
        write_repository(models, triton=target, triton_timeout_s=TIMEOUT_S, no_warm_up=True, no_self_test=True)
    assert not (models / "mvfoul").exists()
    assert not [path for path in models.rglob("*") if path.is_dir() and path.name.isdecimal()]
