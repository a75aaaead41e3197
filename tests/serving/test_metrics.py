"""Metrics: complete from the start, and moved by what happens, over both protocols."""

from __future__ import annotations

import base64
import math

import grpc
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from mvfoul.errors import OverloadedError, RequestError
from mvfoul.labels import VOCABULARIES
from serving.metrics import Metrics
from serving.status import REASONS


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def metrics(registry):
    return Metrics(registry=registry)


def scrape(rest):
    """All samples of the server: {(name, labels): value}."""
    text = rest.get("/metrics").text
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def moved(before, after, name, **labels):
    key = (name, frozenset(labels.items()))
    return after[key] - before[key]


@pytest.mark.usefixtures("metrics")
def test_every_series_known_in_advance_starts_at_zero(registry):
    for head, labels in VOCABULARIES.items():
        for label in labels:
            assert registry.get_sample_value("mvfoul_predictions_total", {"head": head, "label": label}) == 0
    for reason in REASONS:
        assert registry.get_sample_value("mvfoul_errors_total", {"reason": reason}) == 0
    for stage in ("decode", "queue", "encode", "head", "total"):
        assert registry.get_sample_value("mvfoul_stage_duration_seconds_count", {"stage": stage}) == 0


@pytest.mark.usefixtures("metrics")
def test_the_smallest_bucket_is_one_millisecond(registry):
    labels = {"stage": "total", "le": "0.001"}
    assert registry.get_sample_value("mvfoul_stage_duration_seconds_bucket", labels) == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RequestError("x"), "invalid_request"), (OverloadedError("x"), "overloaded"), (ZeroDivisionError(), "internal")],
)
def test_an_error_is_counted_by_reason_and_passes_through(metrics, registry, error, reason):
    with pytest.raises(type(error)), metrics.request("rest"):
        raise error
    assert registry.get_sample_value("mvfoul_errors_total", {"reason": reason}) == 1
    labels = {"protocol": "rest", "outcome": reason}
    assert registry.get_sample_value("mvfoul_request_duration_seconds_count", labels) == 1


def test_a_grpc_request_moves_the_scraped_metrics(rest, client, clips):
    before = scrape(rest)
    decision = client.classify(clips[:3])
    after = scrape(rest)
    assert moved(before, after, "mvfoul_request_duration_seconds_count", protocol="grpc", outcome="ok") == 1
    for stage in ("decode", "queue", "encode", "head", "total"):
        assert moved(before, after, "mvfoul_stage_duration_seconds_count", stage=stage) == 1
    assert moved(before, after, "mvfoul_views_per_request_sum") == 3
    assert encoded(before, after) == (1, 3)
    answers = {"action": decision.action, "offence_severity": decision.offence_severity}
    for head, answer in answers.items():
        assert moved(before, after, "mvfoul_predictions_total", head=head, label=answer.label) == 1
        assert moved(before, after, "mvfoul_abstentions_total", head=head) == answer.abstain
        assert confidences(before, after, head) == (1, pytest.approx(answer.confidence, abs=1e-3))


def encoded(before, after):
    """Calls of the encoder, and the views in them."""
    return tuple(moved(before, after, f"mvfoul_encoder_batch_views_{part}") for part in ("count", "sum"))


def confidences(before, after, head):
    """How many, and their sum."""
    return tuple(moved(before, after, f"mvfoul_confidence_{part}", head=head) for part in ("count", "sum"))


def test_views_are_counted_where_they_are_encoded_and_confidences_with_each_answer(rest, client, clips):
    """In a session: two views, a third, one that is known, and one that goes."""
    before = scrape(rest)
    questions = ((clips[:2], ()), (clips[2:3], ()), (clips[:1], ()), ([], [0]))
    answers = [client.classify(sent, action_id="counted", drop_views=dropped) for sent, dropped in questions]
    after = scrape(rest)
    assert encoded(before, after) == (2, 3)
    assert moved(before, after, "mvfoul_encoder_batch_views_bucket", le="1.0") == 1
    assert moved(before, after, "mvfoul_encoder_batch_views_bucket", le="2.0") == 2
    assert moved(before, after, "mvfoul_views_per_request_sum") == 2 + 3 + 3 + 2
    for head in VOCABULARIES:
        shown = [getattr(answer, head).confidence for answer in answers]
        assert confidences(before, after, head) == (4, pytest.approx(sum(shown), abs=1e-2))
        below = sum(confidence <= 0.5 for confidence in shown)
        assert moved(before, after, "mvfoul_confidence_bucket", head=head, le="0.5") == below


def test_a_rest_request_moves_the_scraped_metrics(rest, clips):
    data = [base64.b64encode(clips[0]).decode()]
    body = {"inputs": [{"name": "CLIPS", "datatype": "BYTES", "shape": [1], "data": data}]}
    before = scrape(rest)
    assert rest.post("/v2/models/mvfoul/infer", json=body).status_code == 200
    assert rest.post("/v2/models/mvfoul/infer", content=b"?").status_code == 400
    after = scrape(rest)
    assert moved(before, after, "mvfoul_request_duration_seconds_count", protocol="rest", outcome="ok") == 1
    assert moved(before, after, "mvfoul_errors_total", reason="invalid_request") == 1
    assert moved(before, after, "mvfoul_views_per_request_count") == 1


def test_a_cancelled_request_is_counted_as_such(server, rest, artifact, wait_until):
    """Cancelled while it is in flight; should it be answered before that, the next one is tried."""
    shape = (5, *artifact.manifest.clip.view_shape)
    tensor = {"name": "VIEWS", "datatype": "UINT8", "shape": shape}
    request = pb.ModelInferRequest(model_name="mvfoul", inputs=[tensor], raw_input_contents=[bytes(math.prod(shape))])
    before = scrape(rest)

    def cancelled():
        return moved(before, scrape(rest), "mvfoul_errors_total", reason="cancelled") > 0

    def cancel_one():
        pending = stub.ModelInfer.future(request)
        while not (pending.done() or scrape(rest)["mvfoul_requests_in_flight", frozenset()]):
            pass
        pending.cancel()
        return cancelled()

    with grpc.insecure_channel(server.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        wait_until(cancel_one, "a cancelled request")
    wait_until(lambda: scrape(rest)["mvfoul_requests_in_flight", frozenset()] == 0, "nothing in flight")
    assert "Traceback" not in server.log.read_text()


def test_the_scrape_says_which_artifact_is_served_and_that_it_is_ready(rest, artifact):
    samples = scrape(rest)
    (labels,) = [dict(labels) for name, labels in samples if name == "mvfoul_artifact_info"]
    assert labels["version"] == artifact.version
    assert labels["backbone"] == artifact.manifest.origin.backbone
    assert samples["mvfoul_ready", frozenset()] == 1
    assert samples["mvfoul_requests_in_flight", frozenset()] == 0
