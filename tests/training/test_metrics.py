"""Accuracies from confusion matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.metrics import confusion_matrix, empty_confusions, head_metrics, metrics_of

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


def test_rows_are_labels_and_columns_are_predictions():
    matrix = confusion_matrix([0, 0, 1], [0, 2, 1], 3)
    assert matrix.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_unlabelled_actions_do_not_count():
    assert confusion_matrix([-1, 2, -1], [0, 2, 1], 3).sum() == 1


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_occur():
    metrics = head_metrics(confusion_matrix([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0], 3))
    assert metrics.accuracy == pytest.approx(4 / 6)
    assert metrics.balanced_accuracy == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert math.isnan(metrics.recalls[2])
    assert metrics.to_json()["recalls"] == [0.75, 0.5, None]


@given(pairs)
def test_accuracy_is_the_share_of_equal_pairs(answers):
    labels, predictions = zip(*answers, strict=True)
    metrics = head_metrics(confusion_matrix(labels, predictions, 4))
    assert metrics.accuracy == pytest.approx(np.mean(np.equal(labels, predictions)))
    recalls = [np.mean([p == c for label, p in answers if label == c]) for c in set(labels)]
    assert metrics.balanced_accuracy == pytest.approx(np.mean(recalls))


@given(pairs, st.integers(0, 40))
def test_matrices_of_parts_add_up_to_the_matrix_of_the_whole(answers, cut):
    labels, predictions = (list(column) for column in zip(*answers, strict=True))
    parts = confusion_matrix(labels[:cut], predictions[:cut], 4) + confusion_matrix(labels[cut:], predictions[cut:], 4)
    assert (parts == confusion_matrix(labels, predictions, 4)).all()


def test_the_score_is_the_mean_of_both_balanced_accuracies():
    confusions = empty_confusions()
    confusions["action"] += confusion_matrix([0, 0, 7], [0, 0, 1], 8)
    confusions["offence_severity"] += confusion_matrix([1, 1, 3], [1, 2, 3], 4)
    metrics = metrics_of(confusions)
    assert metrics.score == pytest.approx((0.5 + 0.75) / 2)
    assert metrics.accuracy == pytest.approx(2 / 3)
    assert metrics.to_json()["score"] == metrics.score


def test_without_a_label_there_is_no_accuracy():
    with pytest.raises(ValueError, match="no labelled action"):
        metrics_of(empty_confusions())
