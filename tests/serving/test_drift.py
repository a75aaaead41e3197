"""Drift: the window, its reference in the manifest, and the two metrics."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from mvfoul.artifact import Artifact
from mvfoul.labels import VOCABULARIES
from mvfoul.population import count_answers
from mvfoul.prediction import make_prediction
from serving.drift import Drift
from serving.engine import Answer
from serving.graphs import Scores
from serving.metrics import Metrics


def probabilities(label, confidence, size):
    rest = np.full(size, (1 - confidence) / (size - 1))
    rest[label] = confidence
    return rest


def prediction(action, severity, confidence=0.85):
    return make_prediction(probabilities(action, confidence, 8), probabilities(severity, confidence, 4), [1.0])


def with_reference(artifact, *, answers=400, temperature=None, version="a"):
    """The artifact with an evaluation in which all labels are equally frequent and all confidences 0.85."""
    populations = {}
    for head, names in VOCABULARIES.items():
        scale = artifact.manifest.temperatures[head] if temperature is None else temperature
        labels = np.arange(answers) % len(names)
        populations[head] = count_answers(labels, np.full(answers, 0.85), len(names), scale).to_json()
    evaluation = {"score": 0.4, "answers": populations}
    files = {**artifact.manifest.files, "version": version}  # what makes the version another one
    return Artifact(artifact.directory, replace(artifact.manifest, evaluation=evaluation, files=files))


def test_answers_like_those_of_the_evaluation_do_not_drift_and_others_do(artifact):
    drift, known = Drift(window=200, at_least=200), with_reference(artifact)
    drift.watch(known)
    for number in range(200):
        drift.add(prediction(number % 8, number % 4), known)
    assert max(drift.index(head, of) for head in VOCABULARIES for of in ("label", "confidence")) < 0.01
    for _ in range(200):
        drift.add(prediction(0, 3, confidence=0.45), known)
    assert min(drift.index(head, of) for head in VOCABULARIES for of in ("label", "confidence")) > 1
    assert drift.answers == 200
    for number in range(200):  # and it passes: the window slides
        drift.add(prediction(number % 8, number % 4), known)
    assert drift.index("action", "label") < 0.01


def test_it_is_not_told_before_there_are_enough_answers_nor_without_a_reference(artifact):
    drift, known = Drift(window=10, at_least=5), with_reference(artifact)
    drift.watch(known)
    for number in range(4):
        drift.add(prediction(number, 0), known)
    assert math.isnan(drift.index("action", "label"))
    drift.add(prediction(4, 0), known)
    assert drift.index("action", "label") > 0
    for other in (artifact, with_reference(artifact, answers=80, version="b")):
        drift.watch(other)
        for number in range(10):
            drift.add(prediction(number % 8, 0), other)
        assert drift.answers == 10
        assert math.isnan(drift.index("action", "label"))


def test_another_artifact_starts_anew_and_late_answers_of_the_old_one_do_not_count(artifact):
    drift, old, new = Drift(window=10, at_least=1), with_reference(artifact), with_reference(artifact, version="b")
    drift.watch(old)
    drift.add(prediction(0, 0), old)
    drift.watch(old)  # a swap of the canary
    assert drift.answers == 1
    drift.watch(new)
    drift.add(prediction(0, 0), old)
    assert drift.answers == 0
    drift.add(prediction(0, 0), new)
    assert drift.answers == 1


def test_confidences_of_another_temperature_are_no_reference(artifact):
    drift, known = Drift(window=10, at_least=1), with_reference(artifact, temperature=7.0)
    drift.watch(known)
    drift.add(prediction(0, 0), known)
    assert drift.index("action", "label") > 0
    assert math.isnan(drift.index("action", "confidence"))


@pytest.fixture
def registry():
    return CollectorRegistry()


def answer(artifact, role, action=0):
    made = prediction(action, 0)
    scores = Scores(np.zeros(8, np.float32), np.zeros(4, np.float32), np.ones(1, np.float32))
    return Answer(scores, made, {}, artifact, role, engine="an engine", new_views=1)


def test_the_metrics_show_it_for_the_primary_only(artifact, registry):
    metrics, known = Metrics(registry=registry, drift=Drift(window=10, at_least=2)), with_reference(artifact)
    metrics.show_artifacts({"primary": known})
    labels = {"head": "action", "of": "label"}
    assert math.isnan(registry.get_sample_value("mvfoul_drift_psi", labels))
    for role in ("primary", "canary", "primary"):
        metrics.answered(answer(known, role))
    assert registry.get_sample_value("mvfoul_drift_answers") == 2
    assert registry.get_sample_value("mvfoul_drift_psi", labels) > 0.25
    for head in VOCABULARIES:
        for of in ("label", "confidence"):
            assert registry.get_sample_value("mvfoul_drift_psi", {"head": head, "of": of}) is not None


PROMISED = {
    "mvfoul_request_duration_seconds",
    "mvfoul_stage_duration_seconds",
    "mvfoul_errors",
    "mvfoul_views_per_request",
    "mvfoul_encoder_batch_views",
    "mvfoul_predictions",
    "mvfoul_abstentions",
    "mvfoul_confidence",
    "mvfoul_requests_in_flight",
    "mvfoul_max_in_flight",
    "mvfoul_queue_depth",
    "mvfoul_ready",
    "mvfoul_artifact_info",
    "mvfoul_drift_psi",
    "mvfoul_drift_answers",
    "mvfoul_sessions",
    "mvfoul_session_ends",
    "mvfoul_self_tests",
    "mvfoul_self_test_duration_seconds",
    "mvfoul_triton_retries",
    "mvfoul_artifact_swaps",
    "mvfoul_routed_requests",
    "mvfoul_shadow_answers",
    "mvfoul_shadow_agreements",
    "process_resident_memory_bytes",
    "process_cpu_seconds",
    "process_open_fds",
}


def test_a_server_exposes_every_metric_that_alerts_and_dashboards_rely_on(rest):
    families = {
        line.split()[2].removesuffix("_total") for line in rest.get("/metrics").text.splitlines() if "# TYPE" in line
    }
    assert set(PROMISED) - families == set()
