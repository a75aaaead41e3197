"""The server over REST, driven by httpx."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

URL = "/v2/models/mvfoul/infer"


def clips_body(clips):
    data = [base64.b64encode(clip).decode() for clip in clips]
    return {"inputs": [{"name": "CLIPS", "datatype": "BYTES", "shape": [len(clips)], "data": data}]}


def outputs_of(response):
    assert response.status_code == 200, response.text
    return {output["name"]: output for output in response.json()["outputs"]}


def test_base64_clips_get_the_same_decision_as_over_grpc(rest, client, clips):
    outputs = outputs_of(rest.post(URL, json=clips_body(clips[:3])))
    over_rest = json.loads(outputs["DECISION"]["data"][0])
    over_grpc = client.classify(clips[:3]).document
    for key in ("action", "offence_severity", "view_weights", "artifact", "model"):
        assert over_rest[key] == over_grpc[key], key
    assert outputs["ACTION_PROBABILITIES"]["shape"] == [8]
    assert outputs["VIEW_WEIGHTS"]["data"] == over_grpc["view_weights"]


def test_the_content_type_does_not_matter(rest, clips):
    """curl says "form" when it is not told."""
    body = json.dumps(clips_body(clips[:1]))
    for kind in ("application/json", "application/x-www-form-urlencoded", "text/plain"):
        outputs_of(rest.post(URL, content=body, headers={"Content-Type": kind}))


def test_nested_numbers_are_views(rest, client, views):
    body = {"inputs": [{"name": "VIEWS", "datatype": "UINT8", "shape": list(views.shape), "data": views.tolist()}]}
    outputs = outputs_of(rest.post(URL, json=body))
    assert json.loads(outputs["DECISION"]["data"][0])["action"] == client.classify_views(views).document["action"]


def test_raw_views_after_the_json_get_a_raw_answer(rest, client, views):
    """The protocol's binary extension, both ways."""
    size = {"binary_data_size": views.size}
    header = json.dumps(
        {
            "inputs": [{"name": "VIEWS", "datatype": "UINT8", "shape": list(views.shape), "parameters": size}],
            "outputs": [{"name": "VIEW_WEIGHTS", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}
    response = rest.post(URL, content=header + views.tobytes(), headers=headers)
    assert response.status_code == 200
    raw = response.content[int(response.headers["Inference-Header-Content-Length"]) :]
    assert tuple(np.frombuffer(raw, np.float32).tolist()) == client.classify_views(views).view_weights


def test_all_outputs_can_be_raw(rest, clips):
    response = rest.post(URL, json={**clips_body(clips[:2]), "parameters": {"binary_data_output": True}})
    length = int(response.headers["Inference-Header-Content-Length"])
    outputs, raw = json.loads(response.content[:length])["outputs"], response.content[length:]
    sizes = {output["name"]: output["parameters"]["binary_data_size"] for output in outputs}
    assert sizes == {**sizes, "ACTION_PROBABILITIES": 32, "OFFENCE_SEVERITY_PROBABILITIES": 16, "VIEW_WEIGHTS": 8}
    assert sum(sizes.values()) == len(raw)
    decision = json.loads(raw[-sizes["DECISION"] :][4:])  # after its length
    assert np.frombuffer(raw[48:56], np.float32).tolist() == decision["view_weights"]


def test_the_request_id_comes_back(rest, clips):
    response = rest.post(URL, json={**clips_body(clips[:1]), "id": "replay 7"})
    assert response.json()["id"] == "replay 7"


BAD_BODIES = {
    "empty": (b"", "the body is not JSON"),
    "not JSON": (b"clips please", "the body is not JSON"),
    "not an object": (b"[]", "the body is a list; it must be a JSON object"),
    "no inputs": (b"{}", '"inputs" is missing'),
    "inputs no list": (b'{"inputs": {}}', '"inputs" is dict; it must be a JSON list'),
    "input no object": (b'{"inputs": [1]}', "an input is a int"),
    "input without name": (b'{"inputs": [{}]}', "name of an input is None"),
    "shape no list": (b'{"inputs": [{"name": "CLIPS", "shape": 1}]}', "it must be a list of integers"),
    "shape of text": (b'{"inputs": [{"name": "CLIPS", "shape": ["1"]}]}', "it must be a list of integers"),
    "no data": (b'{"inputs": [{"name": "CLIPS", "datatype": "BYTES", "shape": [1]}]}', "must have either data"),
    "empty data": (
        b'{"inputs": [{"name": "CLIPS", "datatype": "BYTES", "shape": [1], "data": []}]}',
        "shape [1] but 0 elements",
    ),
    "not base64": (
        b'{"inputs": [{"name": "CLIPS", "datatype": "BYTES", "shape": [1], "data": ["\xc3\xa4"]}]}',
        "CLIPS[0] is not base64",
    ),
    "numbers for clips": (
        b'{"inputs": [{"name": "CLIPS", "datatype": "BYTES", "shape": [1], "data": [1]}]}',
        "CLIPS[0] is a int; in JSON, data is a flat list of base64 strings",
    ),
    "raw tensor that is not there": (
        b'{"inputs": [{"name": "CLIPS", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 9}}]}',
        "binary_data_size 9; 0 bytes are left",
    ),
    "deep nesting": (b'{"inputs": ' + b"[" * 100_000, "the body is not JSON"),
    "two million lists": (b'{"inputs": [' + b"[]," * 2_000_000 + b"0]}", "send raw tensors"),
}


@pytest.mark.usefixtures("still_answers")
@pytest.mark.parametrize(("body", "sentence"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_bad_body_is_refused_with_its_reason(rest, body, sentence):
    response = rest.post(URL, content=body)
    assert response.status_code == 400
    assert sentence in response.json()["error"]


@pytest.mark.usefixtures("still_answers")
@pytest.mark.parametrize("length", ["-1", "x", "100", "1e9"])
def test_a_wrong_json_length_is_refused(rest, length):
    response = rest.post(URL, content=b"{}", headers={"Inference-Header-Content-Length": length})
    assert response.status_code == 400
    assert "the body has 2 bytes" in response.json()["error"]


@pytest.mark.usefixtures("still_answers")
def test_a_large_body_without_an_announced_length_is_refused_too(rest):
    response = rest.post(URL, content=(bytes(1 << 20) for _ in range(40)))
    assert response.status_code == 413
    assert str(16 << 20) in response.json()["error"]


@pytest.mark.usefixtures("still_answers")
@pytest.mark.parametrize("values", [[256], [-1], [1.5], ["x"], [[1], [1, 2]]], ids=str)
def test_views_that_are_not_bytes_are_refused(rest, artifact, values):
    shape = [1, *artifact.manifest.clip.view_shape]
    tensor = {"name": "VIEWS", "datatype": "UINT8", "shape": shape, "data": values}
    response = rest.post(URL, json={"inputs": [tensor]})
    assert response.status_code == 400
    assert "integers from 0 to 255" in response.json()["error"]


def test_health_and_metadata(rest, artifact):
    assert rest.get("/v2/health/live").json() == {"live": True}
    assert rest.get("/v2/health/ready").json() == {"ready": True}
    assert rest.get("/v2/models/mvfoul/ready").status_code == 200
    metadata = rest.get("/v2/models/mvfoul").json()
    assert metadata["versions"] == [artifact.version]
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["CLIPS", "VIEWS"]
    assert metadata["inputs"][1]["shape"] == [-1, *artifact.manifest.clip.view_shape]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", URL, 405), ("GET", "/v2/models/x", 404), ("GET", "/v2/models/x/ready", 404)],
)
def test_what_is_not_served_is_refused_in_the_form_of_the_protocol(rest, method, path, status):
    response = rest.request(method, path)
    assert response.status_code == status
    assert "is not served here" in response.json()["error"]
