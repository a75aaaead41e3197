"""Requests that no honest client sends, over both protocols, against one real server.

Whatever comes, it answers with a status of its contract, stays ready, keeps its memory, and its log has no traceback.
The cases come from seeds: `Cases(...).grpc(Random("grpc1234"))` is the 1235th request over gRPC.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from contextlib import ExitStack
from random import Random

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from serving.client import FoulClient
from tests.serving.fuzz_cases import Cases, forged_index, many_frames, vp8_of_claimed_size
from tests.serving.fuzz_runs import (
    GRPC_STATUSES,
    HTTP_STATUSES,
    PATH,
    fuzz_grpc,
    fuzz_rest,
    peak_bytes,
    refused,
    send_unreadable,
    status_of,
)

CASES = {"grpc": 2000, "unreadable": 800, "rest": 2100, "session": 150}
"""5,050 requests; the bombs and traps that have a name, and those of `test_fuzz_transformer.py`, come on top."""
MAX_GROWTH_BYTES = 128 << 20
"""Of the peak. measured: 42 MB over all cases; requests of 16 MiB lie in memory up to three times."""
HEAD_S = 10.0


def address(server):
    host, port = server.http.removeprefix("http://").rsplit(":", 1)
    return host, int(port)


@pytest.fixture(scope="module")
def target(start_server, clips):
    """A server of its own, warmed up, with limits that a test can reach."""
    flags = (
        "--max-request-bytes",
        str(16 << 20),
        "--max-decode-s",
        "0.4",
        "--max-sessions",
        "64",
        "--log-level",
        "debug",
    )
    with start_server(*flags) as server:
        with FoulClient(server.grpc) as client:
            for _ in range(3):
                client.classify(clips)
        yield server


@pytest.fixture(scope="module")
def at_start(target):
    return peak_bytes(target.process.pid)


@pytest.fixture(autouse=True)
def unharmed(target, at_start, clips):
    """After each test the server is what it was before it."""
    before = target.log.stat().st_size
    yield
    assert target.process.poll() is None
    assert httpx.get(f"{target.http}/v2/health/ready", timeout=30).status_code == 200
    with FoulClient(target.grpc) as client:
        assert client.classify(clips[:1]).view_weights == (1.0,)
    log = target.log.read_bytes()[before:].decode()
    assert "Traceback" not in log
    assert " ERROR " not in log
    assert 'mvfoul_errors_total{reason="internal"} 0.0' in httpx.get(f"{target.http}/metrics", timeout=30).text
    assert peak_bytes(target.process.pid) - at_start < MAX_GROWTH_BYTES


@pytest.fixture(scope="module")
def cases(clips, artifact):
    return Cases(clips[:3], artifact.manifest.clip.view_shape)


@pytest.fixture(scope="module")
def stub(target):
    with grpc.insecure_channel(target.grpc, [("grpc.max_send_message_length", -1)]) as channel:
        yield GRPCInferenceServiceStub(channel)


def test_requests_over_grpc(stub, cases):
    counts, examples = fuzz_grpc(stub, cases, range(CASES["grpc"]))
    assert refused(examples, GRPC_STATUSES) == {}
    assert min(counts["OK"], counts["INVALID_ARGUMENT"]) > 100  # deep enough: not all fail at the first check


def test_requests_over_rest(target, cases):
    with httpx.Client(base_url=target.http, timeout=60) as http:
        counts, examples = fuzz_rest(http, cases, range(CASES["rest"]))
    assert refused(examples, HTTP_STATUSES) == {}
    assert min(counts[200], counts[400]) > 100


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_more_requests(target, stub, cases):
    first, last = 1_000_000, 1_020_000
    with httpx.Client(base_url=target.http, timeout=60) as http:
        assert refused(fuzz_rest(http, cases, range(first, last))[1], HTTP_STATUSES) == {}
    assert refused(fuzz_grpc(stub, cases, range(first, last))[1], GRPC_STATUSES) == {}


def test_messages_that_are_no_requests(target, cases):
    with grpc.insecure_channel(target.grpc) as channel:
        examples = {}
        for seed in range(CASES["unreadable"]):
            status, text = send_unreadable(channel, cases, seed)
            examples.setdefault(status, (seed, text[:300]))
    assert refused(examples, GRPC_STATUSES) == {}


def test_there_are_as_many_cases_as_were_asked_for():
    assert sum(CASES.values()) >= 5000


def test_sessions_at_random(stub, artifact):
    """Views come, are dropped, come again, in more sessions than there is room for."""
    rng, shape = Random("session"), artifact.manifest.clip.view_shape
    views = np.random.default_rng(0).integers(0, 256, (8, *shape), np.uint8)
    counts = Counter()
    for _ in range(CASES["session"]):
        chosen = rng.sample(range(8), rng.randrange(4))
        request = pb.ModelInferRequest(model_name="mvfoul", raw_input_contents=[views[chosen].tobytes()])
        request.inputs.add(name="VIEWS", datatype="UINT8", shape=(len(chosen), *shape))
        request.parameters["action_id"].string_param = f"action-{rng.randrange(100)}"
        request.parameters["drop_views"].string_param = rng.choice(("", "", "0", "0,1", "4", "0,0", "99", "1,-1"))
        request.parameters["priority"].int64_param = rng.choice((1, 2))
        counts[status_of(lambda request=request: stub.ModelInfer(request, timeout=60))[0]] += 1
    assert set(counts) <= GRPC_STATUSES
    assert min(counts["OK"], counts["INVALID_ARGUMENT"]) > 10


def infer(stub, *clips):
    raw = b"".join(struct.pack("<I", len(clip)) + clip for clip in clips)
    request = pb.ModelInferRequest(model_name="mvfoul", raw_input_contents=[raw])
    request.inputs.add(name="CLIPS", datatype="BYTES", shape=[len(clips)])
    return status_of(lambda: stub.ModelInfer(request, timeout=60))


BOMBS = {
    "an index of 50 million samples": (
        lambda clip: forged_index(forged_index(clip, b"stsz", 4, 1, 50_000_000), b"stsc", 12, 50_000_000),
        "index claims",
    ),
    "an index of 100,000 frames that are not there": (
        lambda clip: forged_index(forged_index(clip, b"stsz", 4, 1, 100_000), b"stsc", 12, 100_000),
        "more than 2000 frames",
    ),
    "100,000 frames in four seconds": (lambda _: many_frames(100_000, (32, 32), fps=25_000), "more than 2000 frames"),
    "pictures over the limit": (lambda _: many_frames(100, (4112, 2320)), "4112x2320; the limit is 9437184 pixels"),
    "pictures that say 16383x16383": (
        lambda _: vp8_of_claimed_size(16383, 16383),
        "larger than the limit, 9437184 pixels",
    ),
    "pictures that say a little too much": (
        lambda _: vp8_of_claimed_size(3073, 3072),
        "larger than the limit, 9437184",
    ),
}


@pytest.mark.parametrize(("forge", "sentence"), BOMBS.values(), ids=BOMBS.keys())
def test_a_clip_that_is_a_bomb_is_refused_soon_and_in_bounded_memory(stub, target, at_start, clips, forge, sentence):
    bomb = forge(clips[0])
    assert len(bomb) < 16 << 20
    began = time.monotonic()
    status, message = infer(stub, bomb, clips[1])
    assert (status, "CLIPS[0]" in message, "CLIPS[1]" in message) == ("INVALID_ARGUMENT", True, False)
    assert sentence in message
    assert time.monotonic() - began < 20
    assert peak_bytes(target.process.pid) - at_start < MAX_GROWTH_BYTES


def test_a_thousand_tiny_clips_are_refused_by_their_number(stub):
    assert infer(stub, *[b"x"] * 1000) == ("INVALID_ARGUMENT", "CLIPS has 1000 views; send from 1 to 5.")


DOCUMENTS = {
    "a million lists": b"[" * 1_000_000,
    "lists in objects": b'{"inputs":[' * 100_000,
    "a number of a million digits": b'{"inputs":[],"id":' + b"1" * 1_000_000 + b"}",
    "a number beyond floating point": b'{"inputs":[{"name":"VIEWS","datatype":"UINT8","shape":[1e999],"data":[1]}]}',
    "not a number": b'{"inputs":[{"name":"VIEWS","datatype":"UINT8","shape":[NaN],"data":[NaN]}]}',
    "another encoding": '{"inputs":[]}'.encode("utf-16"),
    "half a surrogate": b'{"inputs":[],"id":"\\ud800"}',
    "nothing": b"",
    "zeros": bytes(100_000),
    "a name of a megabyte": b'{"inputs":[{"name":"' + b"x" * 1_000_000 + b'","shape":[1],"data":[1]}]}',
}


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_a_document_that_is_a_trap_is_refused_with_a_short_sentence(target, document):
    answer = httpx.post(f"{target.http}{PATH}", content=document, timeout=60)
    assert answer.status_code == 400
    assert len(answer.text) < 2000


HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\n".encode()
HTTP_GARBAGE = {
    "bytes": Random(1).randbytes(5000),
    "no HTTP": b"\0" * 1000 + b"\r\n\r\n",
    "a TLS hello": bytes.fromhex("16030100c8010000c40303") + bytes(180),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64),
    "a negative length": HEAD + b"Content-Length: -5\r\n\r\nhello",
    "a length of 100 digits": HEAD + b"Content-Length: " + b"9" * 100 + b"\r\n\r\nhello",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 7\r\n\r\n{}{}{}{}",
    "a length and chunks": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}\r\n",
    "a chunk that lies": HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n",
    "less than announced": HEAD + b"Content-Length: 500\r\n\r\n{}",
    "more than announced": HEAD + b"Content-Length: 2\r\n\r\n{}" + b"x" * 5000,
    "a head of a megabyte": HEAD + b"".join(b"X-%d: %s\r\n" % (k, b"y" * 1000) for k in range(1000)) + b"\r\n",
    "a path of a megabyte": b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
    "a path with zeros": b"GET /v2/\0/%00/..%2f..%2fetc HTTP/1.1\r\nHost: x\r\n\r\n",
    "another method": b"BREW " + PATH.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "an upgrade": HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n",
}


@pytest.mark.parametrize("data", HTTP_GARBAGE.values(), ids=HTTP_GARBAGE.keys())
def test_what_is_no_http_gets_an_error_or_a_closed_connection(target, data):
    answer = told(address(target), data)
    assert b" 500 " not in answer[:20]
    assert not answer or answer.startswith(b"HTTP/1.1 4"), answer[:200]


def told(place, data):
    """Send bytes, say that there is no more, and return what comes back until the other side closes."""
    with socket.create_connection(place, timeout=30) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError:  # the server has hung up
            return b""


def test_garbage_on_the_port_of_grpc_ends_its_own_connection_only(target, stub):
    rng = Random("http2")
    host, port = target.grpc.rsplit(":", 1)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for number in range(60):
        frames = b"".join(_frame(rng) for _ in range(rng.randrange(1, 20)))
        told((host, int(port)), rng.choice((b"", preface, preface + _frame(rng, kind=4, size=0))) + frames)
        if number % 20 == 0:
            assert status_of(lambda: stub.ServerLive(pb.ServerLiveRequest(), timeout=30))[0] == "OK"


def _frame(rng, kind=None, size=None):
    """An HTTP/2 frame whose length may lie."""
    size = rng.randrange(100) if size is None else size
    claimed = rng.choice((size, size, 0, 2**24 - 1))
    kind = rng.randrange(12) if kind is None else kind
    stream = rng.choice((0, 1, 2, 2**31 - 1))
    return (
        claimed.to_bytes(3, "big") + bytes([kind, rng.randrange(256)]) + stream.to_bytes(4, "big") + rng.randbytes(size)
    )


def test_slow_clients_are_let_go_and_hold_up_nobody(target, clips):
    """Connections that say nothing, half a head, or half a body, more of them than there is room for."""
    place, began = address(target), time.monotonic()
    with ExitStack() as stack, FoulClient(target.grpc) as client:
        slow = [stack.enter_context(socket.create_connection(place, timeout=30)) for _ in range(560)]
        for number, connection in enumerate(slow[:300]):
            connection.sendall((b"", b"POST", HEAD)[number % 3])
        for connection in slow[300:305]:
            connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
        while any(_is_open(connection) for connection in slow[-10:]):
            assert time.monotonic() - began < HEAD_S, "connections over the limit are closed at once"
        assert client.classify(clips[:1]).view_weights == (1.0,)
        while any(_is_open(connection) for connection in slow[:300]):
            assert time.monotonic() - began < 4 * HEAD_S, "half a head is not waited for"
            time.sleep(0.2)
        assert httpx.get(f"{target.http}/v2/health/ready", timeout=30).status_code == 200
        assert all(_is_open(connection) for connection in slow[300:305])  # a body has a minute


def _is_open(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
