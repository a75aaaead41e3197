"""From probabilities to an answer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvfoul.errors import LabelError
from mvfoul.labels import ACTION_CLASSES, OFFENCE_SEVERITIES, FoulLabels
from mvfoul.prediction import DEFAULT_ABSTAIN_BELOW, make_prediction, softmax

ACTION = [0.05, 0.6, 0.05, 0.05, 0.05, 0.05, 0.15, 0.0]
SEVERITY = [0.1, 0.4, 0.45, 0.05]


def logits(count):
    return st.lists(st.floats(-1e4, 1e4), min_size=count, max_size=count)


def test_each_head_answers_with_its_two_best_labels():
    prediction = make_prediction(ACTION, SEVERITY, [1.0])
    assert prediction.labels == FoulLabels(1, 2)
    assert [(c.label, c.probability) for c in prediction.action.top2] == [
        ("Standing tackling", 0.6),
        ("Challenge", 0.15),
    ]
    assert [c.label for c in prediction.offence_severity.top2] == ["Offence + Yellow card", "Offence + No card"]
    assert prediction.offence_severity.confidence == 0.45


def test_a_head_abstains_below_the_threshold_and_still_names_its_best_label():
    prediction = make_prediction(ACTION, SEVERITY, [1.0])
    assert DEFAULT_ABSTAIN_BELOW == 0.5
    assert (prediction.action.abstains, prediction.offence_severity.abstains) == (False, True)
    assert prediction.offence_severity.label == "Offence + Yellow card"


@pytest.mark.parametrize(("threshold", "abstains"), [(0, False), (0.45, False), (0.4500001, True), (1, True)])
def test_a_confidence_equal_to_the_threshold_is_enough(threshold, abstains):
    assert make_prediction(ACTION, SEVERITY, [1], abstain_below=threshold).offence_severity.abstains is abstains


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_thresholds_that_are_no_probability_are_refused(threshold):
    with pytest.raises(LabelError, match=f"abstain_below is {threshold}; it must be from 0 to 1"):
        make_prediction(ACTION, SEVERITY, [1], abstain_below=threshold)


def test_equal_probabilities_rank_in_the_order_of_the_vocabulary():
    prediction = make_prediction([0.125] * 8, [0, 0.5, 0, 0.5], [1])
    assert prediction.action.ranking == tuple(range(8))
    assert prediction.offence_severity.ranking == (1, 3, 0, 2)


@given(logits(8), logits(4), logits(3))
def test_the_answer_is_the_argmax_of_the_logits(action, severity, views):
    prediction = make_prediction(softmax(action), softmax(severity), softmax(views))
    assert action[prediction.action.index] == pytest.approx(max(action), abs=1e-6)
    assert prediction.action.label == ACTION_CLASSES[prediction.labels.action]
    assert prediction.offence_severity.label == OFFENCE_SEVERITIES[prediction.labels.offence_severity]
    first, second = prediction.action.top2
    assert first.probability >= second.probability
    assert first.label != second.label
    assert len(prediction.view_weights) == 3


def test_the_decision_is_json():
    document = json.loads(json.dumps(make_prediction(ACTION, SEVERITY, [0.25, 0.75]).to_json(), allow_nan=False))
    assert document == {
        "action": {
            "label": "Standing tackling",
            "confidence": 0.6,
            "abstain": False,
            "top2": [
                {"label": "Standing tackling", "probability": 0.6},
                {"label": "Challenge", "probability": 0.15},
            ],
        },
        "offence_severity": {
            "label": "Offence + Yellow card",
            "confidence": 0.45,
            "abstain": True,
            "top2": [
                {"label": "Offence + Yellow card", "probability": 0.45},
                {"label": "Offence + No card", "probability": 0.4},
            ],
        },
        "view_weights": [0.25, 0.75],
    }


NO_DISTRIBUTIONS = [
    [float("nan"), 0.5, 0.25, 0.25],
    [0.5, 0.5, 0.5, -0.5],
    [float("inf"), 0, 0, 0],
    [0.3, 0.3, 0.3, 0.3],
]


@pytest.mark.parametrize("values", NO_DISTRIBUTIONS)
def test_what_is_no_distribution_is_refused_in_either_head_and_in_the_weights(values):
    with pytest.raises(LabelError, match=r"offence_severity probabilities .* not a distribution"):
        make_prediction(ACTION, values, [1.0])
    with pytest.raises(LabelError, match=r"action probabilities .* not a distribution"):
        make_prediction([*values, 0, 0, 0, 0], SEVERITY, [1.0])
    with pytest.raises(LabelError, match=r"view weights .* not a distribution"):
        make_prediction(ACTION, SEVERITY, values)


@pytest.mark.parametrize(
    ("action", "severity", "weights", "message"),
    [
        (ACTION[:7], SEVERITY, [1], r"action probabilities have shape \(7,\); expected \(8,\)"),
        ([ACTION], SEVERITY, [1], r"action probabilities have shape \(1, 8\)"),
        (ACTION, [*SEVERITY, 0], [1], r"offence_severity probabilities have shape \(5,\); expected \(4,\)"),
        (ACTION, SEVERITY, [], r"view weights have shape \(0,\)"),
        (ACTION, SEVERITY, 1.0, r"view weights have shape \(\)"),
    ],
)
def test_vectors_of_the_wrong_shape_are_refused(action, severity, weights, message):
    with pytest.raises(LabelError, match=message):
        make_prediction(action, severity, weights)


def test_probabilities_of_a_half_precision_engine_are_accepted():
    assert make_prediction(np.float16(ACTION), np.float16(SEVERITY), np.float16([0.3, 0.7])).action.index == 1


@given(logits(6), st.floats(0.1, 10), st.floats(-1e4, 1e4))
def test_softmax_is_a_distribution_that_no_common_shift_changes(values, temperature, shift):
    probabilities = softmax(values, temperature=temperature)
    assert probabilities.dtype == np.float32
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert softmax(np.add(values, shift), temperature=temperature) == pytest.approx(probabilities, abs=1e-5)


def test_softmax_works_on_the_last_axis_and_temperature_flattens_it():
    rows = softmax([[0, np.log(3)], [1000, -1000]])
    assert rows == pytest.approx(np.array([[0.25, 0.75], [1, 0]]))
    assert softmax([0, 4], temperature=4) == pytest.approx(softmax([0, 1]))
