"""What `python -m serving.repository` writes, in the genuine Triton, on the CPU."""

from __future__ import annotations

import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from mvfoul.artifact import FEATURES, VIEWS
from serving.graphs import OnnxGraphs
from tests.serving.altered_artifact import with_plan
from tests.serving.triton_requests import ask, differences, encoder_counts, noise, status_of, tensor

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def triton_client(triton):
    with triton_grpc.InferenceServerClient(triton.grpc) as opened:
        yield opened


@pytest.fixture(scope="module")
def graphs(artifact):
    return OnnxGraphs(artifact, threads=1)


@pytest.fixture(scope="module")
def tight(start_triton, write_repository, tmp_path_factory):
    """A Triton whose live queue holds two requests and whose encoder takes one action at a time, with a cache."""
    output = tmp_path_factory.mktemp("tight") / "models"
    write_repository(
        output, max_batch=5, max_queue=2, bulk_max_queue=32, queue_delay_us=0, no_warm_up=True, response_cache=True
    )
    with start_triton(output, response_cache_mib=16) as running:
        yield running


def at_once(triton, actions, ask_one):
    """Send each action from a client of its own, all at the same time; return what `ask_one(client, views)` gave."""

    def send(views):
        with triton_grpc.InferenceServerClient(triton.grpc) as client:
            return ask_one(client, views)

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(send, actions))


def assert_answers(result, scores):
    assert max(differences(result, scores).values()) < TOLERANCE, differences(result, scores)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_ensemble_answers_as_the_embedded_graphs(triton_client, graphs, artifact, count):
    views = noise(artifact, count)
    result = ask(triton_client, "mvfoul", VIEWS, views)
    assert_answers(result, graphs.classify(graphs.encode(views)))
    assert result.get_response().model_version == str(artifact.model_version)


def test_encoder_and_head_apart_answer_the_same(triton_client, graphs, artifact):
    views, version = noise(artifact, 3), str(artifact.model_version)
    features = ask(triton_client, "mvfoul_encoder", VIEWS, views, model_version=version).as_numpy(FEATURES)
    np.testing.assert_allclose(features, graphs.encode(views), atol=TOLERANCE)
    result = ask(triton_client, "mvfoul_head", FEATURES, features, model_version=version)
    assert_answers(result, graphs.classify(features))


def test_requests_of_different_clients_share_encoder_batches_without_padding(triton, triton_client, graphs, artifact):
    """By Triton's own statistics: fewer calls than requests, and as many views computed as were sent."""
    actions = [noise(artifact, 1 + k % 3, seed=k) for k in range(8)]
    version = artifact.model_version
    views_before, calls_before, batches_before = encoder_counts(triton_client, version)
    results = at_once(triton, actions, lambda client, views: ask(client, "mvfoul", VIEWS, views))
    views_after, calls_after, batches_after = encoder_counts(triton_client, version)
    for views, result in zip(actions, results, strict=True):
        assert_answers(result, graphs.classify(graphs.encode(views)))
    calls = {size: count - batches_before.get(size, 0) for size, count in batches_after.items()}
    sent = sum(map(len, actions))
    assert views_after - views_before == sent
    assert sum(size * count for size, count in calls.items()) == sent
    assert calls_after - calls_before < len(actions)


@pytest.mark.parametrize(
    ("model", "name", "values", "status"),
    [
        ("mvfoul", VIEWS, lambda a: noise(a, 9), "INVALID_ARGUMENT"),
        ("mvfoul", VIEWS, lambda a: noise(a, 6), "INVALID_ARGUMENT"),
        ("mvfoul", VIEWS, lambda a: noise(a, 0), "INVALID_ARGUMENT"),
        ("mvfoul", VIEWS, lambda a: noise(a, 1)[:, :, :4], "INVALID_ARGUMENT"),
        ("mvfoul", VIEWS, lambda a: noise(a, 1).astype(np.float32), "INVALID_ARGUMENT"),
        ("mvfoul", "CLIPS", lambda a: noise(a, 1), "INVALID_ARGUMENT"),
        ("mvfoul_encoder", VIEWS, lambda a: noise(a, 1)[:, :, :, 1:], "INVALID_ARGUMENT"),
        ("mvfoul_head", FEATURES, lambda _: np.zeros((6, 512), np.float32), "INVALID_ARGUMENT"),
        ("mvfoul_head", FEATURES, lambda _: np.zeros((0, 512), np.float32), "INVALID_ARGUMENT"),
        ("mvfoul_head", FEATURES, lambda _: np.zeros((1, 511), np.float32), "INVALID_ARGUMENT"),
        ("unknown", VIEWS, lambda a: noise(a, 1), "NOT_FOUND"),
    ],
)
def test_a_bad_request_is_told_so_and_the_next_one_is_answered(triton_client, artifact, model, name, values, status):
    assert status_of(triton_client, model, name, values(artifact)) == status
    assert status_of(triton_client, "mvfoul", VIEWS, noise(artifact, 1)) == "OK"


def test_a_buffer_shorter_than_its_shape_is_an_invalid_argument(triton_client, artifact):
    short = tensor(VIEWS, noise(artifact, 1))
    short._raw_content = short._raw_content[:-1]
    for model in ("mvfoul", "mvfoul_encoder"):
        with pytest.raises(triton_grpc.InferenceServerException) as refused:
            triton_client.infer(model, [short])
        assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_version_that_is_not_there_is_not_found(triton_client, artifact):
    assert status_of(triton_client, "mvfoul_encoder", VIEWS, noise(artifact, 1), model_version="7") == "NOT_FOUND"


@pytest.mark.parametrize("model", ["mvfoul", "mvfoul_encoder"])
def test_a_full_queue_refuses_live_requests_at_once_while_bulk_ones_wait(tight, artifact, model):
    """One computes, at most one is on its way, two wait: of ten live requests some are refused. Bulk has a queue of its
    own, and the ensemble passes priorities on."""
    actions = [noise(artifact, 5, seed=k) for k in range(10)]
    live = Counter(at_once(tight, actions, lambda client, views: status_of(client, model, VIEWS, views)))
    assert set(live) == {"OK", "UNAVAILABLE"}, live
    fresh = [noise(artifact, 3, seed=100 + k) for k in range(6)]
    bulk = at_once(tight, fresh, lambda client, views: status_of(client, model, VIEWS, views, priority=2))
    assert set(bulk) == {"OK"}


def test_live_requests_overtake_bulk_ones(tight, artifact):
    finished = []

    def send(name, priority, seed):
        with triton_grpc.InferenceServerClient(tight.grpc) as client:
            views = noise(artifact, 3, seed=seed)
            finished.append((name, status_of(client, "mvfoul_encoder", VIEWS, views, priority=priority)))

    with ThreadPoolExecutor(13) as pool:
        for k in range(12):
            pool.submit(send, "bulk", 2, 200 + k)
        time.sleep(0.05)
        pool.submit(send, "live", 1, 300)
    assert {status for _, status in finished} == {"OK"}
    assert [name for name, _ in finished].index("live") < 9


def test_a_request_may_ask_for_a_shorter_wait_than_the_queue_allows(tight, artifact):
    actions = [noise(artifact, 5, seed=400 + k) for k in range(5)]
    statuses = at_once(
        tight,
        actions,
        lambda client, views: status_of(client, "mvfoul_encoder", VIEWS, views, timeout=1000, priority=2),
    )
    assert set(statuses) == {"OK", "UNAVAILABLE"}


def test_a_request_that_was_cancelled_while_it_waited_costs_no_encoder_call(tight, artifact, wait_until):
    version = artifact.model_version
    with triton_grpc.InferenceServerClient(tight.grpc) as client:
        before, *_ = encoder_counts(client, version)
        ended = []
        calls = [
            client.async_infer(
                "mvfoul_encoder",
                [tensor(VIEWS, noise(artifact, 5, seed=500 + k))],
                callback=lambda result, error: ended.append(error),  # noqa: ARG005
                priority=2,
            )
            for k in range(6)
        ]
        for call in calls[1:]:
            call.cancel()
        wait_until(lambda: len(ended) == len(calls), "every call has ended")
        assert status_of(client, "mvfoul_encoder", VIEWS, noise(artifact, 1, seed=510)) == "OK"
        computed = encoder_counts(client, version)[0] - before
    assert computed <= 5 * 3 + 1


def test_repeated_views_come_from_the_response_cache_where_it_is_on(tight, artifact):
    version = artifact.model_version
    views = noise(artifact, 2, seed=600)
    with triton_grpc.InferenceServerClient(tight.grpc) as client:
        first = ask(client, "mvfoul", VIEWS, views)
        _, calls, _ = encoder_counts(client, version)
        again = ask(client, "mvfoul", VIEWS, views)
        assert encoder_counts(client, version)[1] == calls
    np.testing.assert_array_equal(first.as_numpy("ACTION_PROBABILITIES"), again.as_numpy("ACTION_PROBABILITIES"))


@pytest.mark.parametrize("encoder", ["onnxruntime", "tensorrt"])
def test_the_server_accepts_a_configuration_for_a_backend_that_it_lacks(
    start_triton, write_repository, tmp_path, tiny_artifact, encoder
):
    """It reads and checks the whole configuration before it looks for the backend, which is not here."""
    planned = with_plan(tiny_artifact, tmp_path / "artifact")
    write_repository(tmp_path / "models", artifact=planned, encoder=encoder, threads=0, no_self_test=True)
    with (
        start_triton(tmp_path / "models", control="explicit") as running,
        triton_grpc.InferenceServerClient(running.grpc) as client,
    ):
        for model, backend in (("mvfoul_encoder", encoder), ("mvfoul_head", "onnxruntime")):
            with pytest.raises(triton_grpc.InferenceServerException, match=f"find backend library for .*'{backend}'"):
                client.load_model(model)


def test_triton_tells_its_latencies_as_summaries(triton, artifact):
    with urllib.request.urlopen(f"http://{triton.metrics}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    label = f'model="mvfoul_encoder",version="{artifact.model_version}"'
    assert f'nv_inference_request_summary_us{{{label},quantile="0.99"}}' in text
    assert f"nv_inference_pending_request_count{{{label}}}" in text
