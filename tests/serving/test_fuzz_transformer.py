"""A share of the fuzz test's cases against the transformer in front of the genuine Triton.

What never reaches Triton is the same code as in the embedded server, and `test_fuzz.py` is about that. Here the same
requests go to both: their statuses and their words are the same, and Triton is unharmed.
"""

from __future__ import annotations

from collections import Counter

import grpc
import httpx
import pytest
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from serving.client import FoulClient
from tests.serving.fuzz_cases import Cases
from tests.serving.fuzz_runs import GRPC_STATUSES, HTTP_STATUSES, peak_bytes, send_grpc, send_rest, send_unreadable

CASES = {"grpc": 400, "unreadable": 100, "rest": 300}
"""800 requests, besides the 5,050 that `test_fuzz.py` counts; each goes to both servers."""
MAX_GROWTH_BYTES = 128 << 20
"""Of the transformer's peak, as in `test_fuzz.py`."""
LATE = {"DEADLINE_EXCEEDED", 504}
"""Where a request asks for an answer within a millisecond, chance decides."""
WITHOUT_WORDS = {"OK", 200, *LATE}
"""Answers and their milliseconds differ."""


@pytest.fixture(scope="module")
def transformer(start_server, triton, clips):
    with start_server("--triton", triton.grpc, "--max-request-bytes", str(16 << 20)) as server:
        with FoulClient(server.grpc) as client:
            client.classify(clips)
        yield server


@pytest.fixture(scope="module")
def embedded(start_server):
    """One that has seen as many sessions as the transformer."""
    with start_server("--max-request-bytes", str(16 << 20)) as server:
        yield server


@pytest.fixture(scope="module")
def cases(clips, artifact):
    return Cases(clips[:3], artifact.manifest.clip.view_shape)


@pytest.fixture(autouse=True)
def unharmed(transformer, triton, clips):
    """After each test both servers are what they were before it."""
    peak, before = peak_bytes(transformer.process.pid), transformer.log.stat().st_size
    yield
    assert httpx.get(f"{transformer.http}/v2/health/ready", timeout=30).status_code == 200
    assert triton.is_ready()
    with FoulClient(transformer.grpc) as client:
        assert client.classify(clips[:1]).view_weights == (1.0,)
    log = transformer.log.read_bytes()[before:].decode()
    assert "Traceback" not in log
    assert " ERROR " not in log
    assert 'mvfoul_errors_total{reason="internal"} 0.0' in httpx.get(f"{transformer.http}/metrics", timeout=30).text
    assert peak_bytes(transformer.process.pid) - peak < MAX_GROWTH_BYTES


def compared(send, to_both, count, allowed):
    """Send each case to both; return how often each status came from the transformer, and the cases that differ."""
    counts, differing = Counter(), {}
    for seed in range(count):
        (status, text), (expected, words) = (send(each, seed) for each in to_both)
        counts[status] += 1
        same = status == expected and (status in WITHOUT_WORDS or text == words)
        if status not in allowed or not (same or LATE & {status, expected}):
            differing[seed] = status, expected, text[:200], words[:200]
    return counts, differing


def test_requests_over_grpc(transformer, embedded, cases):
    with grpc.insecure_channel(transformer.grpc) as one, grpc.insecure_channel(embedded.grpc) as other:
        stubs = GRPCInferenceServiceStub(one), GRPCInferenceServiceStub(other)
        counts, differing = compared(
            lambda stub, seed: send_grpc(stub, cases, seed), stubs, CASES["grpc"], GRPC_STATUSES
        )
    assert differing == {}
    assert min(counts["OK"], counts["INVALID_ARGUMENT"]) > 10


def test_messages_that_are_no_requests(transformer, embedded, cases):
    with grpc.insecure_channel(transformer.grpc) as one, grpc.insecure_channel(embedded.grpc) as other:
        _, differing = compared(
            lambda channel, seed: send_unreadable(channel, cases, seed),
            (one, other),
            CASES["unreadable"],
            GRPC_STATUSES,
        )
    assert differing == {}


def test_requests_over_rest(transformer, embedded, cases):
    with (
        httpx.Client(base_url=transformer.http, timeout=60) as one,
        httpx.Client(base_url=embedded.http, timeout=60) as other,
    ):
        counts, differing = compared(
            lambda http, seed: send_rest(http, cases, seed), (one, other), CASES["rest"], HTTP_STATUSES
        )
    assert differing == {}
    assert min(counts[200], counts[400]) > 10
