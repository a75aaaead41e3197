"""What `python -m serving.repository` writes, in the genuine Triton, on the CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from mvfoul.artifact import ACTION_PROBABILITIES, FEATURES, OFFENCE_SEVERITY_PROBABILITIES, VIEW_WEIGHTS, VIEWS
from serving.graphs import OnnxGraphs
from serving.repository.model_config import triton_version

ANSWERS = (ACTION_PROBABILITIES, OFFENCE_SEVERITY_PROBABILITIES, VIEW_WEIGHTS)


@pytest.fixture(scope="module")
def triton_client(triton):
    with triton_grpc.InferenceServerClient(triton.grpc) as opened:
        yield opened


@pytest.fixture(scope="module")
def graphs(artifact):
    return OnnxGraphs(artifact, threads=1)


def ask(client, model, name, values, **options):
    datatype = {"uint8": "UINT8", "float32": "FP32"}[values.dtype.name]
    tensor = triton_grpc.InferInput(name, values.shape, datatype)
    tensor.set_data_from_numpy(values)
    return client.infer(model, [tensor], **options)


def noise(artifact, count, seed=0):
    shape = (count, *artifact.manifest.clip.view_shape)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoder_counts(client, version):
    """Requests' views, calls of the model, and calls by their batch size."""
    (found,) = client.get_inference_statistics("mvfoul_encoder", str(version)).model_stats
    batches = {entry.batch_size: entry.compute_infer.count for entry in found.batch_stats}
    return found.inference_count, found.execution_count, batches


def assert_answers(result, scores):
    expected = (scores.action_probabilities, scores.offence_severity_probabilities, scores.view_weights)
    for name, values in zip(ANSWERS, expected, strict=True):
        np.testing.assert_allclose(result.as_numpy(name), values, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_ensemble_answers_as_the_embedded_graphs(triton_client, graphs, artifact, count):
    views = noise(artifact, count)
    result = ask(triton_client, "mvfoul", VIEWS, views)
    assert_answers(result, graphs.classify(graphs.encode(views)))
    assert result.get_response().model_version == str(triton_version(artifact))


def test_encoder_and_head_apart_answer_the_same(triton_client, graphs, artifact):
    views, version = noise(artifact, 3), str(triton_version(artifact))
    features = ask(triton_client, "mvfoul_encoder", VIEWS, views, model_version=version).as_numpy(FEATURES)
    np.testing.assert_allclose(features, graphs.encode(views), atol=1e-5)
    assert_answers(
        ask(triton_client, "mvfoul_head", FEATURES, features, model_version=version), graphs.classify(features)
    )


def test_requests_of_different_clients_share_encoder_batches_without_padding(triton, graphs, artifact):
    """By Triton's own statistics: fewer calls than requests, and as many views computed as were sent."""
    actions = [noise(artifact, 1 + k % 3, seed=k) for k in range(8)]

    def classify(views):
        with triton_grpc.InferenceServerClient(triton.grpc) as client:
            return ask(client, "mvfoul", VIEWS, views)

    with triton_grpc.InferenceServerClient(triton.grpc) as client:
        views_before, calls_before, batches_before = encoder_counts(client, triton_version(artifact))
        with ThreadPoolExecutor(len(actions)) as pool:
            results = list(pool.map(classify, actions))
        views_after, calls_after, batches_after = encoder_counts(client, triton_version(artifact))
    for views, result in zip(actions, results, strict=True):
        assert_answers(result, graphs.classify(graphs.encode(views)))
    calls = {size: count - batches_before.get(size, 0) for size, count in batches_after.items()}
    sent = sum(map(len, actions))
    assert views_after - views_before == sent
    assert sum(size * count for size, count in calls.items()) == sent
    assert calls_after - calls_before < len(actions)
