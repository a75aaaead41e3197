"""How often an action is drawn under balanced sampling."""

from __future__ import annotations

from collections import Counter

import pytest

from training.annotations import load_annotations
from training.config import LossConfig
from training.sampling import balanced_weights, sampling_weights


def test_every_class_has_the_same_total_and_every_action_of_a_class_the_same_share():
    labels = [0] * 60 + [1] * 30 + [3] * 10
    weights = balanced_weights(labels)
    totals = Counter()
    for label, weight in zip(labels, weights, strict=True):
        totals[label] += weight
    assert totals == pytest.approx({0: 1 / 3, 1: 1 / 3, 3: 1 / 3})
    assert {label: {w for other, w in zip(labels, weights, strict=True) if other == label} for label in totals} == {
        0: {weights[0]},
        1: {weights[60]},
        3: {weights[90]},
    }


def test_actions_without_a_label_are_drawn_as_rarely_as_they_occur():
    assert balanced_weights([None, 0, 0, 1]) == pytest.approx((1 / 4, 3 / 16, 3 / 16, 3 / 8))
    assert balanced_weights([None, None]) == (0.5, 0.5)
    assert balanced_weights([]) == ()


def test_the_setting_names_the_head(tiny_dataset):
    records = load_annotations(tiny_dataset, "train").records
    assert sampling_weights(LossConfig(), records) is None
    by_action = sampling_weights(LossConfig(balanced_sampling="action"), records)
    assert by_action == pytest.approx([1 / 16] * 16)
    by_severity = sampling_weights(LossConfig(balanced_sampling="offence-severity"), records)
    counts = Counter(record.labels.offence_severity for record in records)
    assert by_severity == pytest.approx([1 / (4 * counts[record.labels.offence_severity]) for record in records])
    assert len(set(by_severity)) > 1
