"""A Triton that dies, hangs or refuses in the middle of taking a version: the repository is as it was before.

The server is a real one of Triton's protocol that answers as golden.npz says, and fails where a test wants it to. What
the genuine Triton does is in `test_repository_hot_swap.py`.
"""

from __future__ import annotations

import socket
import time

import grpc
import pytest

from mvfoul.artifact import load_artifact
from mvfoul.errors import ArtifactError, UnavailableError
from serving.addresses import addresses_of
from tests.serving.golden_triton import GoldenTriton, serving

TIMEOUT_S = 1.0


def failing(artifact, method, model, fail):
    """A Triton of which one call about one model goes wrong."""
    servicer = GoldenTriton(artifact)

    def before_answer(called, about, _request, context):
        if (called, about) == (method, model):
            fail(context)

    servicer.before_answer = before_answer
    return servicer


def dies(context):
    context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


def hangs(_context):
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
        servicer = failing(load_artifact(second_artifact), method, model, fail)
        before = contents(models)
        changed = {**fields, "queue_delay_us": 7_000, "triton_timeout_s": TIMEOUT_S}
        with serving(servicer) as target, pytest.raises(error, match=message) as raised:
            write_repository(models, artifact=second_artifact, triton=target, **changed)
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
    servicer = failing(load_artifact(tiny_artifact), "RepositoryModelLoad", "mvfoul", refuses)
    with serving(servicer) as target, pytest.raises(ArtifactError):
        write_repository(models, triton=target, triton_timeout_s=TIMEOUT_S, no_warm_up=True, no_self_test=True)
    assert list(models.iterdir()) == []


def test_a_version_that_answered_before_and_fails_now_stays_and_so_does_the_one_that_answers(
    write_repository, tmp_path, artifact, second_artifact
):
    models = tmp_path / "models"
    fields = {"no_warm_up": True, "no_self_test": True}
    write_repository(models, **fields)
    write_repository(models, artifact=second_artifact, **fields)
    before = contents(models)
    servicer = failing(artifact, "RepositoryModelLoad", "mvfoul", refuses)
    with serving(servicer) as target, pytest.raises(ArtifactError, match="no such luck"):
        write_repository(models, triton=target, triton_timeout_s=TIMEOUT_S, queue_delay_us=7_000, **fields)
    assert contents(models) == before


@pytest.fixture
def name_of_two(monkeypatch):
    """`name_of_two(a, b)`: a name that stands for both servers, as that of a headless Service does."""

    def name(*targets):
        monkeypatch.setattr("serving.repository.rollout.addresses_of", lambda _target: list(targets))
        return "tritons:8001"

    return name


def test_every_triton_behind_a_name_takes_the_version(write_repository, tmp_path, artifact, name_of_two):
    both = GoldenTriton(artifact), GoldenTriton(artifact)
    with serving(both[0]) as one, serving(both[1]) as other:
        write_repository(tmp_path / "models", triton=name_of_two(one, other), no_warm_up=True, no_self_test=True)
    assert [set(each.loaded) for each in both] == [{"mvfoul_encoder", "mvfoul_head", "mvfoul"}] * 2


def test_one_that_refuses_keeps_the_version_from_all(write_repository, tmp_path, second_artifact, name_of_two):
    models, fields = tmp_path / "models", {"no_warm_up": True, "no_self_test": True}
    write_repository(models, **fields)
    before = contents(models)
    good = GoldenTriton(load_artifact(second_artifact))
    bad = failing(load_artifact(second_artifact), "RepositoryModelLoad", "mvfoul_head", refuses)
    with serving(good) as one, serving(bad) as other, pytest.raises(ArtifactError, match="no such luck"):
        write_repository(models, artifact=second_artifact, triton=name_of_two(one, other), **fields)
    assert contents(models) == before


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["10.0.0.1"], ["tritons:8001"]),
        (["10.0.0.1", "10.0.0.2", "10.0.0.1"], ["10.0.0.1:8001", "10.0.0.2:8001"]),
        (["::1", "127.0.0.1"], ["tritons:8001"]),
        (["fd00::1", "fd00::2", "10.0.0.1"], ["[fd00::1]:8001", "[fd00::2]:8001"]),
    ],
)
def test_a_name_stands_for_the_servers_of_its_addresses(monkeypatch, found, expected):
    def resolve(host, port, **_):
        assert (host, port) == ("tritons", 8001)
        return [(socket.AF_INET6 if ":" in a else socket.AF_INET, None, 0, "", (a, port)) for a in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert addresses_of("tritons:8001") == expected


def test_a_name_that_nobody_knows_is_unavailable():
    with pytest.raises(UnavailableError, match=r"--triton nobody\.invalid:8001: no address for nobody\.invalid"):
        addresses_of("nobody.invalid:8001")
