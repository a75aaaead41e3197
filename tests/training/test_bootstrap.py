"""Intervals of the score."""

from __future__ import annotations

import numpy as np
import pytest

from mvfoul.labels import VOCABULARIES
from training.bootstrap import bootstrap
from training.metrics import confusion_matrix, head_metrics


def _answers(actions, *, accuracy, seed=0):
    rng = np.random.default_rng(seed)
    labels = {head: rng.integers(0, len(names), actions) for head, names in VOCABULARIES.items()}
    return labels, {head: rng.random(actions) < accuracy for head in VOCABULARIES}


def test_an_interval_is_that_of_resamples_drawn_one_by_one():
    labels, right = _answers(60, accuracy=0.6)
    found = bootstrap(labels, right, resamples=4000, seed=1)
    rng = np.random.default_rng(7)
    scores, accuracies, lacking = [], [], 0
    for _ in range(4000):
        drawn = rng.integers(0, 60, 60)
        heads, classes = [], 0
        for head, names in VOCABULARIES.items():
            answers = np.where(right[head], labels[head], (labels[head] + 1) % len(names))[drawn]
            heads.append(head_metrics(confusion_matrix(labels[head][drawn], answers, len(names))))
            classes += len(set(labels[head][drawn].tolist()))
        scores.append(np.mean([head.balanced_accuracy for head in heads]))
        accuracies.append(heads[0].accuracy)
        lacking += classes < 12
    assert (found.score.low, found.score.high) == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.01)
    interval = found.accuracy["action"]
    assert (interval.low, interval.high) == pytest.approx(np.quantile(accuracies, [0.025, 0.975]), abs=0.02)
    assert found.lacking == pytest.approx(lacking, abs=60)


def test_the_interval_of_an_accuracy_is_as_wide_as_the_binomial_says():
    labels, right = _answers(400, accuracy=0.5)
    found = bootstrap(labels, right, resamples=2000, seed=0).accuracy["action"]
    share = right["action"].mean()
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 400), rel=0.1)


def test_the_same_seed_gives_the_same_interval():
    labels, right = _answers(50, accuracy=0.5)
    one = bootstrap(labels, right, resamples=500, seed=3)
    assert one == bootstrap(labels, right, resamples=500, seed=3)
    assert one != bootstrap(labels, right, resamples=500, seed=4)


def test_a_class_that_does_not_come_up_is_left_out_and_counted():
    labels = {"action": [0] * 9 + [1], "offence_severity": [0] * 10}
    right = {"action": [True] * 9 + [False], "offence_severity": [True] * 10}
    found = bootstrap(labels, right, resamples=5000, seed=0)
    assert found.lacking / 5000 == pytest.approx(0.9**10, abs=0.03)
    assert found.balanced_accuracy["action"].low == 0.5
    assert found.balanced_accuracy["action"].high == 1.0
    assert found.balanced_accuracy["offence_severity"].low == 1.0


def test_resamples_that_do_not_fit_into_one_piece_of_memory_are_all_counted():
    labels, right = _answers(9000, accuracy=0.5)
    found = bootstrap(labels, right, resamples=1000, seed=0)
    assert found.resamples == 1000
    assert found.score.high - found.score.low == pytest.approx(0.02, abs=0.01)


def test_without_an_action_there_is_nothing_to_draw_from():
    with pytest.raises(ValueError, match="no labelled action"):
        bootstrap({"action": [], "offence_severity": []}, {"action": [], "offence_severity": []}, resamples=100, seed=0)
