"""The Prometheus metrics of a server, in base units. Every series known in advance exists from the start, at zero.

A request over gRPC's size limit never reaches this process's code (the gRPC library refuses it while reading), so it is
not counted; over REST it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from mvfoul.artifact import Artifact
from mvfoul.labels import VOCABULARIES
from mvfoul.prediction import HeadPrediction, Prediction
from serving.call import STAGES
from serving.drift import DRIFT_OF, Drift
from serving.engine import Answer, Engine
from serving.generation import ROLES
from serving.sessions import END_REASONS
from serving.shadow import SHADOW_OUTCOMES
from serving.status import REASONS, status_of

PROTOCOLS = ("grpc", "rest")
QUEUES = ("decode", "encode")
SELF_TEST_OUTCOMES = ("ok", "failed", "unavailable")
SWAP_OUTCOMES = ("ok", "refused")
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_VIEW_BUCKETS = (0, 1, 2, 3, 4, 5, 6, 8, 16)
_CONFIDENCE_BUCKETS = tuple(round(0.1 * step, 1) for step in range(1, 11))


class Metrics:
    """All metrics of one server."""

    def __init__(self, *, registry: CollectorRegistry = REGISTRY, drift: Drift | None = None) -> None:
        self._drift = drift or Drift()
        self._make_request_metrics(registry)
        self._make_state_metrics(registry)
        self._make_artifact_metrics(registry)
        self._make_drift_metrics(registry)
        self._initialise()

    def _make_request_metrics(self, registry: CollectorRegistry) -> None:
        self._request_s = Histogram(
            "mvfoul_request_duration_seconds",
            "From the request's arrival to its answer; outcome is ok or an error's reason",
            ("protocol", "outcome"),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._stage_s = Histogram(
            "mvfoul_stage_duration_seconds",
            "Stages of answered requests",
            ("stage",),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._errors = Counter("mvfoul_errors", "Requests not answered", ("reason",), registry=registry)
        self._views = Histogram(
            "mvfoul_views_per_request", "Views of answered requests", buckets=_VIEW_BUCKETS, registry=registry
        )
        self._batch = Histogram(
            "mvfoul_encoder_batch_views",
            "Views that one call of the encoder got from this process; Triton batches further",
            buckets=_VIEW_BUCKETS,
            registry=registry,
        )
        self._predictions = Counter(
            "mvfoul_predictions", "Most probable label, abstained ones included", ("head", "label"), registry=registry
        )
        self._confidence = Histogram(
            "mvfoul_confidence",
            "Probability of the most probable label",
            ("head",),
            buckets=_CONFIDENCE_BUCKETS,
            registry=registry,
        )
        self._abstentions = Counter("mvfoul_abstentions", "Answers below the threshold", ("head",), registry=registry)
        self._routed = Counter("mvfoul_routed_requests", "Answers by who gave them", ("role",), registry=registry)

    def _make_state_metrics(self, registry: CollectorRegistry) -> None:
        self._gauges = {
            name: Gauge(f"mvfoul_{name}", text, registry=registry)
            for name, text in {
                "requests_in_flight": "Requests admitted, not yet answered",
                "max_in_flight": "Requests admitted at most; one more is refused",
                "ready": "1 if the last self-test passed and the server is not stopping",
                "sessions": "Open sessions",
            }.items()
        }
        self._queue_depth = Gauge(
            "mvfoul_queue_depth",
            "decode: clips that wait or are decoded; encode: actions that wait for the graphs or are in them",
            ("queue",),
            registry=registry,
        )
        self._session_ends = Counter("mvfoul_session_ends", "Sessions ended", ("reason",), registry=registry)
        self._self_tests = Counter("mvfoul_self_tests", "Inferences of golden.npz", ("outcome",), registry=registry)
        self._self_test_s = Histogram(
            "mvfoul_self_test_duration_seconds", "Inferences of golden.npz", buckets=_BUCKETS_S, registry=registry
        )
        self._retries = Counter("mvfoul_triton_retries", "Calls to Triton that were repeated", registry=registry)

    def _make_artifact_metrics(self, registry: CollectorRegistry) -> None:
        self._swaps = Counter("mvfoul_artifact_swaps", "Changes of the artifact", ("outcome",), registry=registry)
        self._shadow_answers = Counter(
            "mvfoul_shadow_answers", "Requests offered to the shadow artifact", ("outcome",), registry=registry
        )
        self._shadow_agreements = Counter(
            "mvfoul_shadow_agreements",
            "Compared answers by agreement of the label",
            ("head", "agrees"),
            registry=registry,
        )
        self._artifact = Gauge(
            "mvfoul_artifact_info",
            "The artifacts on duty; always 1",
            (*_artifact_labels(None), "role"),
            registry=registry,
        )

    def _make_drift_metrics(self, registry: CollectorRegistry) -> None:
        psi = Gauge(
            "mvfoul_drift_psi",
            "Population stability index of the last answers against the evaluation in the manifest; NaN: not known",
            ("head", "of"),
            registry=registry,
        )
        for head in VOCABULARIES:
            for of in DRIFT_OF:
                psi.labels(head, of).set_function(partial(self._drift.index, head, of))
        answers = Gauge("mvfoul_drift_answers", "Answers that mvfoul_drift_psi looks at", registry=registry)
        answers.set_function(lambda: self._drift.answers)

    def watch(self, engine: Engine, *, ready: Callable[[], bool]) -> None:
        """Read the gauges from their owners at each scrape."""
        self._gauges["requests_in_flight"].set_function(lambda: engine.in_flight)
        self._gauges["max_in_flight"].set(engine.settings.max_in_flight)
        self._gauges["ready"].set_function(lambda: float(ready()))
        self._gauges["sessions"].set_function(lambda: len(engine.sessions))
        self._queue_depth.labels("decode").set_function(lambda: engine.decoder.depth)
        self._queue_depth.labels("encode").set_function(lambda: engine.router.primary.backend.depth)
        engine.sessions.on_end = lambda reason: self._session_ends.labels(reason).inc()

    def show_artifacts(self, artifacts: Mapping[str, Artifact]) -> None:
        """Replace what is shown as on duty; artifacts by role."""
        self._drift.watch(artifacts["primary"])
        self._artifact.clear()
        for role, artifact in artifacts.items():
            self._artifact.labels(**_artifact_labels(artifact), role=role).set(1)

    @contextmanager
    def request(self, protocol: str) -> Iterator[None]:
        """Time and count one request; errors pass through."""
        start = time.perf_counter()
        outcome = "ok"
        try:
            yield
        except BaseException as error:
            outcome = status_of(error).reason
            self._errors.labels(outcome).inc()
            raise
        finally:
            self._request_s.labels(protocol, outcome).observe(time.perf_counter() - start)

    def answered(self, answer: Answer) -> None:
        """Count one answer."""
        for stage, seconds in answer.stages_s.items():
            self._stage_s.labels(stage).observe(seconds)
        self._views.observe(len(answer.prediction.view_weights))
        if answer.new_views:
            self._batch.observe(answer.new_views)
        self._routed.labels(answer.role).inc()
        if answer.role == "primary":
            self._drift.add(answer.prediction, answer.artifact)
        self._count_labels(answer.prediction)

    def self_tested(self, outcome: str, seconds: float) -> None:
        """Count one self-test."""
        self._self_tests.labels(outcome).inc()
        self._self_test_s.observe(seconds)

    def retried(self) -> None:
        """Count one repeated call to Triton."""
        self._retries.inc()

    def swapped(self, outcome: str) -> None:
        """Count one change of the artifact."""
        self._swaps.labels(outcome).inc()

    def shadowed(self, outcome: str, shadow: Prediction | None, answered: Prediction) -> None:
        """Count one request that was offered to the shadow."""
        self._shadow_answers.labels(outcome).inc()
        if shadow is not None:
            for ours, theirs in zip(_heads(answered), _heads(shadow), strict=True):
                self._shadow_agreements.labels(ours.head, str(ours.label == theirs.label).lower()).inc()

    def _count_labels(self, prediction: Prediction) -> None:
        for head in _heads(prediction):
            self._predictions.labels(head.head, head.label).inc()
            self._confidence.labels(head.head).observe(head.confidence)
            if head.abstains:
                self._abstentions.labels(head.head).inc()

    def _initialise(self) -> None:
        for protocol in PROTOCOLS:
            for outcome in ("ok", *REASONS):
                self._request_s.labels(protocol, outcome)
        for metric, labels in (
            (self._stage_s, STAGES),
            (self._errors, REASONS),
            (self._routed, ROLES[:2]),
            (self._session_ends, END_REASONS),
            (self._self_tests, SELF_TEST_OUTCOMES),
            (self._swaps, SWAP_OUTCOMES),
            (self._shadow_answers, SHADOW_OUTCOMES),
        ):
            _touch(metric, labels)
        for head, labels in VOCABULARIES.items():
            self._abstentions.labels(head)
            self._confidence.labels(head)
            for label in labels:
                self._predictions.labels(head, label)
            for agrees in ("true", "false"):
                self._shadow_agreements.labels(head, agrees)


def _heads(prediction: Prediction) -> tuple[HeadPrediction, HeadPrediction]:
    return prediction.action, prediction.offence_severity


def _touch(metric: Histogram | Counter, labels: Sequence[str]) -> None:
    for label in labels:
        metric.labels(label)


def _artifact_labels(artifact: Artifact | None) -> dict[str, str]:
    """Return the labels of an artifact; for None the same names."""
    manifest = artifact.manifest if artifact else None
    origin = manifest.origin if manifest else None
    return {
        "version": artifact.version if artifact else "",
        "backbone": origin.backbone if origin else "",
        "aggregation": origin.aggregation if origin else "",
        "precision": manifest.precision if manifest else "",
        "checkpoint": origin.checkpoint_sha256[:12] if origin else "",
        "created_at": manifest.created_at if manifest else "",
    }
