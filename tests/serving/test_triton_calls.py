"""What the transformer asks of Triton: repetitions, deadline, cancellation, priority, ids. Seen from Triton's side."""

from __future__ import annotations

import itertools
import re
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

import grpc
import httpx
import pytest
import tritonclient.grpc as triton_grpc

from mvfoul.artifact import VIEWS
from tests.serving.golden_triton import GoldenTriton, serving
from tests.serving.triton_requests import tensor

MAX_REQUEST_S = 4.0
ROUNDED_S = 0.1
"""gRPC sends a deadline in coarse steps: a little more may arrive than was sent."""
TRACE = "0af7651916cd43dd8448eb211c80319c"


@dataclass
class Seen:
    """One inference as it reached Triton."""

    model: str
    id: str
    parameters: dict[str, int]
    headers: dict[str, str]
    time_left_s: float
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set when the call ends, however it does."""


class WatchedTriton(GoldenTriton):
    """Notes every inference; `encode` decides what becomes of the encoder's, self-tests apart."""

    def __init__(self, artifact):
        super().__init__(artifact)
        self.before_answer = self._note
        self.seen = []
        self.encode = lambda _number, _call, _context: None

    def of(self, request_id, model="mvfoul_encoder"):
        return [call for call in tuple(self.seen) if (call.id, call.model) == (request_id, model)]

    def _note(self, method, model, request, context):
        if method != "ModelInfer":
            return
        parameters = {name: value.int64_param for name, value in request.parameters.items()}
        headers = dict(context.invocation_metadata())
        call = Seen(model, request.id, parameters, headers, context.time_remaining())
        context.add_callback(call.cancelled.set)
        self.seen.append(call)
        if request.id != "self-test" and model == "mvfoul_encoder":
            self.encode(len(self.of(request.id)), call, context)


@pytest.fixture(scope="module")
def watched(artifact):
    return WatchedTriton(artifact)


@pytest.fixture(scope="module")
def before_it(watched, start_server):
    """The transformer."""
    flags = ("--max-request-s", str(MAX_REQUEST_S), "--trace-endpoint", "http://127.0.0.1:9")
    with serving(watched) as target, start_server("--triton", target, *flags) as server:
        yield server


@pytest.fixture
def classify(watched, before_it, artifact):
    """`classify("an id", priority=2, ...)`: golden.npz's views; the status, and options of tritonclient's `infer`."""

    def ask(request_id, **options):
        views = tensor(VIEWS, artifact.golden()[VIEWS])
        try:
            client.infer("mvfoul", [views], request_id=request_id, **options)
        except triton_grpc.InferenceServerException as error:
            return str(error.status()).removeprefix("StatusCode.")
        return "OK"

    with triton_grpc.InferenceServerClient(before_it.grpc) as client:
        yield ask
    watched.encode = lambda _number, _call, _context: None


def retries(server):
    (line,) = re.findall(r"^mvfoul_triton_retries_total (\S+)$", httpx.get(f"{server.http}/metrics").text, re.MULTILINE)
    return float(line)


def failing(code, details, times=1000):
    """The first `times` calls of each request end so."""

    def encode(number, _call, context):
        if number <= times:
            context.abort(code, details)

    return encode


def test_a_call_that_found_nobody_is_repeated_with_growing_pauses_and_counted(watched, before_it, classify):
    arrived = []

    def encode(number, call, context):
        arrived.append(time.monotonic())
        failing(grpc.StatusCode.UNAVAILABLE, "Socket closed", times=3)(number, call, context)

    watched.encode, before = encode, retries(before_it)
    assert classify("three times nobody") == "OK"
    assert len(watched.of("three times nobody")) == 4
    assert len(watched.of("three times nobody", "mvfoul_head")) == 1
    assert retries(before_it) == before + 3
    # 50, 100 and 200 ms, each between half as long and so long: the least of the third is the most of the second.
    pauses = [later - earlier for earlier, later in itertools.pairwise(arrived)]
    assert all(pause >= least for pause, least in zip(pauses, (0.025, 0.05, 0.1), strict=True)), pauses


def test_the_repetitions_end(watched, before_it, classify):
    watched.encode, before = failing(grpc.StatusCode.UNAVAILABLE, "Socket closed"), retries(before_it)
    assert classify("nobody at all") == "UNAVAILABLE"
    assert len(watched.of("nobody at all")) == 5
    assert retries(before_it) == before + 4


@pytest.mark.parametrize(
    ("code", "details", "status"),
    [
        ("INVALID_ARGUMENT", "unexpected shape", "INTERNAL"),
        ("INTERNAL", "a bug", "INTERNAL"),
        ("NOT_FOUND", "Request for unknown model", "UNAVAILABLE"),
        ("UNAVAILABLE", "Exceeds maximum queue size", "RESOURCE_EXHAUSTED"),
        ("UNAVAILABLE", "Request timeout expired", "RESOURCE_EXHAUSTED"),
    ],
)
def test_whatever_else_triton_says_is_not_repeated(watched, before_it, classify, code, details, status):
    watched.encode, before = failing(getattr(grpc.StatusCode, code), details), retries(before_it)
    request_id = f"{code} {details}"
    assert classify(request_id) == status
    assert len(watched.of(request_id)) == 1
    assert retries(before_it) == before


def test_a_deadline_reaches_triton_as_deadline_and_as_the_queues_timeout(watched, classify):
    assert classify("two seconds", client_timeout=2.0) == "OK"
    (encode,), (head,) = watched.of("two seconds"), watched.of("two seconds", "mvfoul_head")
    assert 1.0 < encode.time_left_s <= 2.0 + ROUNDED_S
    assert 1.0 < head.time_left_s <= 2.0 + ROUNDED_S
    assert 1_000_000 < encode.parameters["timeout"] <= (2.0 + ROUNDED_S) * 1e6


def test_without_a_deadline_the_servers_own_reaches_triton(watched, classify):
    assert classify("patient") == "OK"
    (call,) = watched.of("patient")
    assert 2.0 < call.time_left_s <= MAX_REQUEST_S + ROUNDED_S
    assert 2_000_000 < call.parameters["timeout"] <= MAX_REQUEST_S * 1e6


def test_a_triton_that_hangs_keeps_a_patient_client_for_so_long_and_no_longer(watched, classify):
    watched.encode = lambda _number, call, _context: call.cancelled.wait(30)
    began = time.monotonic()
    assert classify("hung") == "DEADLINE_EXCEEDED"
    assert MAX_REQUEST_S - 0.5 <= time.monotonic() - began < MAX_REQUEST_S + 3
    (call,) = watched.of("hung")
    assert call.cancelled.wait(3), "nor does it wait for Triton"


@pytest.mark.parametrize("priority", [1, 2])
def test_a_requests_priority_reaches_triton(watched, classify, priority):
    request_id = f"priority {priority}"
    assert classify(request_id, priority=priority) == "OK"
    (call,) = watched.of(request_id)
    assert call.parameters["priority"] == priority


def test_the_self_test_has_the_priority_of_live_requests_in_triton(watched, classify):
    assert classify("any") == "OK"  # by then it has been tested
    assert {call.parameters["priority"] for call in watched.of("self-test")} == {1}, "0 is the model's default level"


def test_the_id_and_the_trace_of_a_request_reach_triton(watched, classify):
    assert classify("traced", headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}) == "OK"
    calls = watched.of("traced") + watched.of("traced", "mvfoul_head")
    assert [call.headers["traceparent"].split("-")[1] for call in calls] == [TRACE, TRACE]


def test_a_client_that_hangs_up_ends_the_call_to_triton(watched, before_it, artifact, classify, wait_until):
    assert classify("before") == "OK"
    watched.encode = lambda _number, call, _context: call.cancelled.wait(30)
    with triton_grpc.InferenceServerClient(before_it.grpc) as client:
        views = tensor(VIEWS, artifact.golden()[VIEWS])
        running = client.async_infer("mvfoul", [views], lambda **_: None, request_id="hung up")
        wait_until(lambda: watched.of("hung up"), "it has reached Triton")
        (call,) = watched.of("hung up")
        assert not call.cancelled.wait(0.3)
        running.cancel()
        assert call.cancelled.wait(1.5), f"long before {MAX_REQUEST_S} s"


@pytest.fixture
def two_tritons(artifact, start_server):
    """The two, and `classify(count)`, one request after another through a transformer before both; its retries."""
    tritons = WatchedTriton(artifact), WatchedTriton(artifact)
    with ExitStack() as stack:
        target = ",".join(stack.enter_context(serving(triton)) for triton in tritons)
        server = stack.enter_context(start_server("--triton", f"ipv4:{target}", "--self-test-interval-s", "60"))
        client = stack.enter_context(triton_grpc.InferenceServerClient(server.grpc))
        views = tensor(VIEWS, artifact.golden()[VIEWS])

        def classify(count):
            for number in range(count):
                client.infer("mvfoul", [views], request_id=f"request-{number}")
            return retries(server)

        yield *tritons, classify


def test_each_model_takes_its_turn_among_several_tritons(two_tritons):
    """A request has two calls: with one turn for both models, each Triton would get one model's calls only."""
    *tritons, classify = two_tritons
    assert classify(8) == 0
    for triton in tritons:
        assert {call.model for call in triton.seen if call.id != "self-test"} == {"mvfoul_encoder", "mvfoul_head"}


def test_of_several_tritons_one_that_has_not_loaded_the_version_yet_costs_no_request(two_tritons):
    """Each polls the repository by itself."""
    behind, ahead, classify = two_tritons
    behind.encode = failing(grpc.StatusCode.NOT_FOUND, "unknown model version")
    assert classify(6) >= 1
    assert any(behind.of(f"request-{number}") for number in range(6)), "some went to the one that was behind first"
    assert all(ahead.of(f"request-{number}") for number in range(6))
