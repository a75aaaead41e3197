"""The server over gRPC, driven by tritonclient."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from mvfoul.artifact import (
    ACTION_PROBABILITIES,
    ENCODER,
    FEATURES,
    GOLDEN_TENSORS,
    HEAD,
    OFFENCE_SEVERITY_PROBABILITIES,
    VIEW_WEIGHTS,
    VIEWS,
)
from mvfoul.prediction import make_prediction

OUTPUTS = (ACTION_PROBABILITIES, OFFENCE_SEVERITY_PROBABILITIES, VIEW_WEIGHTS)


@pytest.fixture(scope="module")
def connection(server):
    with triton.InferenceServerClient(server.grpc) as opened:
        yield opened


@pytest.fixture(scope="module")
def direct(artifact):
    """The two graphs in ONNX Runtime, without the server."""
    encoder = onnxruntime.InferenceSession(artifact.path(ENCODER))
    head = onnxruntime.InferenceSession(artifact.path(HEAD))

    def run(views):
        (features,) = encoder.run([FEATURES], {VIEWS: views})
        return dict(zip(OUTPUTS, head.run(list(OUTPUTS), {FEATURES: features}), strict=True))

    return run


def clips_input(clips):
    tensor = triton.InferInput("CLIPS", [len(clips)], "BYTES")
    tensor.set_data_from_numpy(np.array(clips, dtype=np.object_))
    return tensor


def views_input(views):
    tensor = triton.InferInput("VIEWS", list(views.shape), "UINT8")
    tensor.set_data_from_numpy(views)
    return tensor


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_answer_to_clips_is_what_onnx_runtime_computes_from_them(connection, direct, clips, views, count):
    result = connection.infer("mvfoul", [clips_input(clips[:count])])
    for name, expected in direct(views[:count]).items():
        np.testing.assert_allclose(result.as_numpy(name), expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("count", [1, 5])
def test_views_get_the_same_answer_as_their_clips(connection, clips, views, count):
    from_clips = connection.infer("mvfoul", [clips_input(clips[:count])])
    from_views = connection.infer("mvfoul", [views_input(views[:count])])
    for name in OUTPUTS:
        np.testing.assert_array_equal(from_views.as_numpy(name), from_clips.as_numpy(name), err_msg=name)


def test_real_clips_are_classified_as_onnx_runtime_does(connection, direct, artifact, sample_root):
    from mvfoul.video import decode_clip

    files = sorted((sample_root / "test" / "action_0").glob("*.mp4"))
    result = connection.infer("mvfoul", [clips_input([file.read_bytes() for file in files])])
    views = np.stack([decode_clip(file, artifact.manifest.clip) for file in files])
    for name, expected in direct(views).items():
        np.testing.assert_allclose(result.as_numpy(name), expected, atol=1e-6, err_msg=name)


def test_the_decision_says_in_words_what_the_probabilities_say(connection, artifact, clips):
    result = connection.infer("mvfoul", [clips_input(clips[:3])], request_id="replay 7")
    decision = json.loads(result.as_numpy("DECISION")[0])
    timings_ms = decision.pop("timings_ms")
    prediction = make_prediction(*(result.as_numpy(name) for name in OUTPUTS))
    engine = f"ONNX Runtime {onnxruntime.__version__}"
    origin = {"id": "replay 7", "model": "mvfoul", "artifact": artifact.version, "engine": engine}
    assert decision == {**origin, **prediction.to_json()}
    assert list(timings_ms) == ["decode", "queue", "encode", "head", "total"]
    assert sum(timings_ms.values()) - timings_ms["total"] <= timings_ms["total"]


def test_views_have_no_decode_stage(connection, views):
    decision = json.loads(connection.infer("mvfoul", [views_input(views)]).as_numpy("DECISION")[0])
    assert list(decision["timings_ms"]) == ["queue", "encode", "head", "total"]


def test_a_request_without_an_id_gets_one(connection, clips):
    ids = [connection.infer("mvfoul", [clips_input(clips[:1])]).get_response().id for _ in range(2)]
    assert len(set(ids)) == 2
    assert all(ids)


def test_only_the_outputs_that_were_asked_for_are_sent(connection, clips):
    wanted = [triton.InferRequestedOutput("VIEW_WEIGHTS")]
    response = connection.infer("mvfoul", [clips_input(clips)], outputs=wanted).get_response()
    assert [output.name for output in response.outputs] == ["VIEW_WEIGHTS"]


def test_typed_contents_get_typed_contents_back(server, clips):
    """As a client without raw buffers sends them, such as grpcurl."""
    tensor = {"name": "CLIPS", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [clips[0]]}}
    with grpc.insecure_channel(server.grpc) as channel:
        request = pb.ModelInferRequest(model_name="mvfoul", inputs=[tensor])
        response = GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
    contents = {output.name: output.contents for output in response.outputs}
    assert sum(contents[ACTION_PROBABILITIES].fp32_contents) == pytest.approx(1, abs=1e-5)
    assert json.loads(contents["DECISION"].bytes_contents[0])["view_weights"] == [1.0]


def test_many_clients_at_once_each_get_their_own_answer(client, clips):
    """One clip each; the answer to a clip is the same every time and differs between clips."""
    alone = [client.classify([clip]).document["action"] for clip in clips]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda v: client.classify([clips[v]]).document["action"], [0, 1, 2, 3, 4] * 4))
    assert together == alone * 4
    assert len({json.dumps(action) for action in alone}) > 1


def test_the_server_is_live_and_ready(connection):
    assert connection.is_server_live()
    assert connection.is_server_ready()
    assert connection.is_model_ready("mvfoul")


def test_an_unknown_model_has_no_readiness_and_no_metadata(connection):
    for ask in (connection.is_model_ready, connection.get_model_metadata):
        with pytest.raises(triton.InferenceServerException, match="'x' is not served here") as refused:
            ask("x")
        assert refused.value.status() == "StatusCode.NOT_FOUND"


def test_metadata_names_inputs_and_outputs_with_datatypes_and_shapes(connection, artifact):
    metadata = connection.get_model_metadata("mvfoul")
    described = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in (*metadata.inputs, *metadata.outputs)}
    assert described == {
        "CLIPS": ("BYTES", [-1]),
        "VIEWS": ("UINT8", [-1, *artifact.manifest.clip.view_shape]),
        "ACTION_PROBABILITIES": ("FP32", [8]),
        "OFFENCE_SEVERITY_PROBABILITIES": ("FP32", [4]),
        "VIEW_WEIGHTS": ("FP32", [-1]),
        "DECISION": ("BYTES", [1]),
    }
    assert list(metadata.versions) == [artifact.version]


def test_the_golden_views_get_the_golden_answer(connection, artifact):
    golden = artifact.golden()
    assert set(golden) == set(GOLDEN_TENSORS)
    result = connection.infer("mvfoul", [views_input(golden[VIEWS])])
    for name in OUTPUTS:
        np.testing.assert_allclose(result.as_numpy(name), golden[name], atol=1e-4, err_msg=name)
