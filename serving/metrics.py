"""The Prometheus metrics of a server, in base units. Every series known in advance exists from the start, at zero.

A request over gRPC's size limit never reaches this process's code (the gRPC library refuses it while reading), so it is
not counted; over REST it is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Info

from mvfoul.artifact import Artifact
from mvfoul.labels import VOCABULARIES
from mvfoul.prediction import Prediction
from serving.engine import STAGES, Answer
from serving.status import INTERNAL, REASONS, status_of

PROTOCOLS = ("grpc", "rest")
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

log = logging.getLogger("mvfoul.serving")


class Metrics:
    """All metrics of one server."""

    def __init__(self, artifact: Artifact, *, registry: CollectorRegistry = REGISTRY) -> None:
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
            "mvfoul_views_per_request",
            "Views of answered requests",
            buckets=range(1, artifact.manifest.clip.max_views + 1),
            registry=registry,
        )
        self._predictions = Counter(
            "mvfoul_predictions", "Most probable label, abstained ones included", ("head", "label"), registry=registry
        )
        self._abstentions = Counter("mvfoul_abstentions", "Answers below the threshold", ("head",), registry=registry)
        self._in_flight = Gauge("mvfoul_requests_in_flight", "Requests admitted, not yet answered", registry=registry)
        self._ready = Gauge("mvfoul_ready", "1 if the server is ready, 0 while it stops", registry=registry)
        info = Info("mvfoul_artifact", "The artifact that is served", registry=registry)
        info.info(_artifact_labels(artifact))
        self._initialise()

    def watch(self, *, in_flight: Callable[[], float], ready: Callable[[], bool]) -> None:
        """Read the gauges from their owners at each scrape."""
        self._in_flight.set_function(in_flight)
        self._ready.set_function(lambda: float(ready()))

    @contextmanager
    def request(self, protocol: str) -> Iterator[None]:
        """Time, count and log one request; errors pass through."""
        start = time.perf_counter()
        outcome = "ok"
        try:
            yield
        except BaseException as error:
            outcome = status_of(error).reason
            self._errors.labels(outcome).inc()
            _log_failure(protocol, outcome, error)
            raise
        finally:
            self._request_s.labels(protocol, outcome).observe(time.perf_counter() - start)

    def answered(self, answer: Answer) -> None:
        """Count one answer."""
        for stage, seconds in answer.stages_s.items():
            self._stage_s.labels(stage).observe(seconds)
        self._views.observe(len(answer.prediction.view_weights))
        self._count_labels(answer.prediction)

    def _count_labels(self, prediction: Prediction) -> None:
        for head in (prediction.action, prediction.offence_severity):
            self._predictions.labels(head.head, head.label).inc()
            if head.abstains:
                self._abstentions.labels(head.head).inc()

    def _initialise(self) -> None:
        for protocol in PROTOCOLS:
            for outcome in ("ok", *REASONS):
                self._request_s.labels(protocol, outcome)
        _touch(self._stage_s, STAGES)
        _touch(self._errors, REASONS)
        for head, labels in VOCABULARIES.items():
            self._abstentions.labels(head)
            for label in labels:
                self._predictions.labels(head, label)


def _touch(metric: Histogram | Counter, labels: Sequence[str]) -> None:
    for label in labels:
        metric.labels(label)


def _artifact_labels(artifact: Artifact) -> dict[str, str]:
    manifest = artifact.manifest
    return {
        "version": artifact.version,
        "backbone": manifest.origin.backbone,
        "aggregation": manifest.origin.aggregation,
        "precision": manifest.precision,
        "checkpoint": manifest.origin.checkpoint_sha256[:12],
        "created_at": manifest.created_at,
    }


def _log_failure(protocol: str, outcome: str, error: BaseException) -> None:
    # One line. Where a bug happened is logged by the server that ends the request, for every kind of call.
    if outcome == INTERNAL.reason:
        log.error("%s request failed: %r", protocol, error)
    else:
        log.warning("%s request refused: %s: %s", protocol, outcome, error)
