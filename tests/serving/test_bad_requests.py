"""Every bad request gets the right status and a sentence that helps, over both protocols, and the server goes on.

The tensors are the raw bytes of the protocol, so that a client library cannot refuse them first.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

pytestmark = pytest.mark.usefixtures("still_answers")


@dataclass(frozen=True)
class Raw:
    """One input as it goes over the wire; `ACTION` in a shape stands for the artifact's [3,T,H,W]."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class Call:
    """One request."""

    inputs: tuple[Raw, ...]
    model: str = "mvfoul"
    version: str = ""
    outputs: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    request_id: str = ""


def element(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def clip_input(*clips: bytes) -> Raw:
    return Raw("CLIPS", "BYTES", (len(clips),), b"".join(map(element, clips)))


@pytest.fixture(params=["grpc", "rest"])
def ask(request, server, rest):
    """Send a call; return (status, message)."""
    with grpc.insecure_channel(server.grpc, [("grpc.max_send_message_length", -1)]) as channel:
        stub = GRPCInferenceServiceStub(channel)
        yield lambda call: _ask_rest(rest, call) if request.param == "rest" else _ask_grpc(stub, call)


def _ask_grpc(stub: GRPCInferenceServiceStub, call: Call) -> tuple[str, str]:
    message = pb.ModelInferRequest(
        model_name=call.model,
        model_version=call.version,
        id=call.request_id,
        inputs=[{"name": i.name, "datatype": i.datatype, "shape": i.shape} for i in call.inputs],
        outputs=[{"name": name} for name in call.outputs],
        parameters={name: {"int64_param": 1} for name in call.parameters},
        raw_input_contents=[i.data for i in call.inputs],
    )
    try:
        stub.ModelInfer(message, timeout=60)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


_HTTP = {200: "OK", 400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 413: "RESOURCE_EXHAUSTED"}


def _ask_rest(rest: httpx.Client, call: Call) -> tuple[str, str]:
    document = {
        "id": call.request_id,
        "inputs": [
            {"name": i.name, "datatype": i.datatype, "shape": i.shape, "parameters": {"binary_data_size": len(i.data)}}
            for i in call.inputs
        ],
        "parameters": dict.fromkeys(call.parameters, 1),
    }
    if call.outputs:
        document["outputs"] = [{"name": name} for name in call.outputs]
    header = json.dumps(document).encode()
    version = f"/versions/{call.version}" if call.version else ""
    response = rest.post(
        f"/v2/models/{call.model}{version}/infer",
        content=header + b"".join(i.data for i in call.inputs),
        headers={"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"},
    )
    return _HTTP.get(response.status_code, str(response.status_code)), response.json().get("error", "")


def test_a_good_request_is_answered(ask, clips):
    assert ask(Call((clip_input(*clips),))) == ("OK", "")


BAD_INPUTS = {
    "no input": ((), "no input; send either CLIPS"),
    "unknown input": ((Raw("VIDEO", "BYTES", (1,), element(b"x")),), "unknown inputs ['VIDEO']"),
    "no clip": ((Raw("CLIPS", "BYTES", (0,), b""),), "CLIPS has 0 views; send from 1 to 5"),
    "six clips": ((clip_input(*[b"x"] * 6),), "CLIPS has 6 views; send from 1 to 5"),
    "clips not one axis": ((Raw("CLIPS", "BYTES", (1, 1), element(b"x")),), "shape [1, 1]; it must be [V]"),
    "clips of wrong datatype": ((Raw("CLIPS", "UINT8", (1,), b"x"),), "datatype 'UINT8'; it must be BYTES"),
    "unknown datatype": ((Raw("CLIPS", "VIDEO", (1,), b"x"),), "datatype 'VIDEO'"),
    "an empty clip": ((clip_input(b"x", b""),), "CLIPS elements [1] are empty"),
    "fewer clips than declared": ((replace(clip_input(b"x"), shape=(2,)),), "shape [2] but 1 elements"),
    "clip longer than the buffer": (
        (Raw("CLIPS", "BYTES", (1,), struct.pack("<I", 1000) + b"x" * 20),),
        "CLIPS[0] announces 1000 bytes, 20 follow",
    ),
    "length cut short": ((Raw("CLIPS", "BYTES", (2,), element(b"x") + b"\1\0"),), "CLIPS[1] announces"),
    "views of wrong datatype": ((Raw("VIEWS", "FP32", (1, 3, 4, 32, 32), b""),), "datatype 'FP32'; it must be UINT8"),
    "views without an axis": ((Raw("VIEWS", "UINT8", (3, 4, 32, 32), b"x"),), "it must be [V, 3,"),
    "views of wrong size": ((Raw("VIEWS", "UINT8", (1, 3, 1, 7, 7), b"x" * 147),), "it must be [V, 3,"),
    "negative shape": ((Raw("CLIPS", "BYTES", (-1,), element(b"x")),), "CLIPS has -1 views"),
    "twice the same input": ((clip_input(b"x"), clip_input(b"x")), "CLIPS and CLIPS; send either"),
}


@pytest.mark.parametrize(("inputs", "sentence"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_a_bad_input_is_refused_with_its_reason(ask, inputs, sentence):
    status, message = ask(Call(inputs))
    assert status == "INVALID_ARGUMENT"
    assert sentence in message


def test_clips_and_views_together_are_refused(ask, artifact, clips):
    shape = (1, *artifact.manifest.clip.view_shape)
    status, message = ask(Call((clip_input(clips[0]), Raw("VIEWS", "UINT8", shape, b"x"))))
    assert (status, "CLIPS and VIEWS; send either" in message) == ("INVALID_ARGUMENT", True)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_buffer_that_is_not_of_the_declared_shape_is_refused(ask, views, change):
    data = (views.tobytes() + b"x")[: views.size + change]
    status, message = ask(Call((Raw("VIEWS", "UINT8", views.shape, data),)))
    assert status == "INVALID_ARGUMENT"
    assert f"VIEWS has {views.size + change} bytes of data" in message
    assert f"needs {views.size}" in message


def test_six_views_are_refused(ask, artifact):
    shape = (6, *artifact.manifest.clip.view_shape)
    status, message = ask(Call((Raw("VIEWS", "UINT8", shape, b""),)))
    assert (status, message) == ("INVALID_ARGUMENT", "VIEWS has 6 views; send from 1 to 5.")


def test_every_corrupt_clip_is_named_by_its_number(ask, clips):
    status, message = ask(Call((clip_input(clips[0], b"not a video", clips[1], clips[2][:3000]),)))
    assert status == "INVALID_ARGUMENT"
    assert "CLIPS[1]: " in message
    assert "CLIPS[3]: " in message
    assert "CLIPS[0]" not in message


def test_an_unknown_model_is_not_found_and_the_known_one_is_named(ask, clips):
    status, message = ask(Call((clip_input(clips[0]),), model="resnet"))
    assert (status, message) == ("NOT_FOUND", "model 'resnet' is not served here; this server has 'mvfoul'.")


def test_an_unknown_version_is_not_found_and_the_served_one_is_named(ask, artifact, clips):
    status, message = ask(Call((clip_input(clips[0]),), version="7"))
    assert status == "NOT_FOUND"
    assert artifact.version in message


def test_the_served_version_may_be_asked_for(ask, artifact, clips):
    assert ask(Call((clip_input(clips[0]),), version=artifact.version)) == ("OK", "")


def test_unknown_outputs_are_refused(ask, clips):
    status, message = ask(Call((clip_input(clips[0]),), outputs=("DECISION", "LOGITS")))
    assert (status, "unknown outputs ['LOGITS']" in message) == ("INVALID_ARGUMENT", True)


def test_unknown_parameters_are_refused_rather_than_ignored(ask, clips):
    status, message = ask(Call((clip_input(clips[0]),), parameters=("sequence_id",)))
    assert (status, "unknown parameters ['sequence_id']" in message) == ("INVALID_ARGUMENT", True)


def test_shared_memory_is_refused_by_name(server):
    """Its tensors carry no data, so without this the message would speak of missing bytes."""
    parameters = {"shared_memory_region": {"string_param": "region"}}
    tensor = {"name": "VIEWS", "datatype": "UINT8", "shape": [1], "parameters": parameters}
    with grpc.insecure_channel(server.grpc) as channel:
        request = pb.ModelInferRequest(model_name="mvfoul", inputs=[tensor])
        with pytest.raises(grpc.RpcError, match="unknown parameters") as refused:
            GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_endless_request_id_is_refused(ask, clips):
    status, message = ask(Call((clip_input(clips[0]),), request_id="x" * 300))
    assert (status, "300 characters" in message) == ("INVALID_ARGUMENT", True)


def test_a_request_of_200_mb_is_refused_for_its_size(ask):
    status, message = ask(Call((clip_input(bytes(200 * 10**6)),)))
    assert status == "RESOURCE_EXHAUSTED"
    assert str(16 << 20) in message  # the limit; the message names it


def test_one_raw_buffer_for_two_inputs_is_refused_over_grpc(server):
    with grpc.insecure_channel(server.grpc) as channel:
        tensors = [{"name": name, "datatype": "BYTES", "shape": [1]} for name in ("CLIPS", "CLIPS")]
        request = pb.ModelInferRequest(model_name="mvfoul", inputs=tensors, raw_input_contents=[b""])
        with pytest.raises(grpc.RpcError, match="2 inputs but 1 raw buffers") as refused:
            GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_contents_beside_raw_buffers_are_refused_over_grpc(server):
    with grpc.insecure_channel(server.grpc) as channel:
        tensor = {"name": "CLIPS", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"x"]}}
        request = pb.ModelInferRequest(model_name="mvfoul", inputs=[tensor], raw_input_contents=[element(b"x")])
        with pytest.raises(grpc.RpcError, match="send one of the two") as refused:
            GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("call", ["RepositoryModelUnload", "RepositoryModelLoad"])
def test_nobody_unloads_or_loads_the_model_by_request(server, rest, call):
    verb = call.removeprefix("RepositoryModel").lower()
    assert rest.post(f"/v2/repository/models/mvfoul/{verb}").status_code == 400
    with grpc.insecure_channel(server.grpc) as channel:
        request = getattr(pb, f"{call}Request")(model_name="mvfoul")
        with pytest.raises(grpc.RpcError, match="by request is off") as refused:
            getattr(GRPCInferenceServiceStub(channel), call)(request, timeout=60)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
