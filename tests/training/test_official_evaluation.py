"""Our score against the official evaluator itself (PyPI package `SoccerNet`), on the same files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from SoccerNet.Evaluation.MV_FoulRecognition import evaluate as official_evaluate

from mvfoul.labels import (
    ACTION_CLASSES,
    FoulLabels,
    normalise_action_class,
    normalise_offence,
    normalise_severity,
    offence_severity_index,
    to_soccernet_json,
)
from training.evaluate import EvaluateConfig
from training.evaluation.run import evaluate_checkpoint
from training.official import official_count

# The official evaluator never closes the files that it opens.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ANNOTATED_CLASSES = st.sampled_from([*ACTION_CLASSES, "Dive", "Dive", "", "Dont know"])
OFFENCES = st.sampled_from(["Offence", "Offence", "No offence", "No Offence", "Between", ""])
SEVERITIES = st.sampled_from(["1.0", "2.0", "3.0", "4.0", "5.0", "", "3", 1.0, 3.0, 2.0])
ACTIONS = st.lists(
    st.fixed_dictionaries({"Action class": ANNOTATED_CLASSES, "Offence": OFFENCES, "Severity": SEVERITIES}),
    max_size=40,
)
# One action of each class and of each severity, so that the official evaluator is defined.
EVERY_CLASS = [
    {"Action class": name, "Offence": "Offence", "Severity": severity}
    for name, severity in zip(ACTION_CLASSES, ["1.0", "3.0", "5.0", "1.0", "3.0", "5.0", "1.0", "1.0"], strict=True)
] + [{"Action class": "Tackling", "Offence": "No offence", "Severity": ""}]
PREDICTIONS = st.lists(
    st.one_of(st.none(), st.builds(FoulLabels, st.integers(0, 7), st.integers(0, 3))), min_size=60, max_size=60
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("official")


def _official(folder, annotations, predictions):
    (folder / "annotations.json").write_text(json.dumps(annotations))
    (folder / "predictions.json").write_text(json.dumps(predictions))
    with np.errstate(all="ignore"):
        return official_evaluate(folder / "annotations.json", folder / "predictions.json")


def _documents(fields, answers):
    annotations = {"Set": "test", "Actions": {str(index): action for index, action in enumerate(fields)}}
    given_answers = {str(index): answer for index, answer in enumerate(answers[: len(fields)]) if answer is not None}
    return annotations, to_soccernet_json("test", given_answers)


def _right_answer(fields):
    action, offence = normalise_action_class(fields["Action class"]), normalise_offence(fields["Offence"])
    severity = normalise_severity(fields["Severity"])
    severity = "1.0" if severity in ("", "2.0", "4.0") else severity
    offence = "No offence" if offence == "No offence" else "Offence"
    return FoulLabels(ACTION_CLASSES.index(action or "Dive"), offence_severity_index(offence, severity))


@settings(deadline=None)
@given(fields=ACTIONS, answers=PREDICTIONS)
def test_wherever_it_is_defined_the_official_evaluator_gives_our_figures(folder, fields, answers):
    annotations, predictions = _documents([*EVERY_CLASS, *fields], answers)
    theirs, ours = _official(folder, annotations, predictions), official_count(annotations, predictions)
    assert ours.leaderboard_value == pytest.approx(theirs["leaderboard_value"], abs=1e-9)
    for head in ("action", "offence_severity"):
        metrics = ours.metrics.heads[head]
        assert 100 * metrics.accuracy == pytest.approx(theirs[f"accuracy_{head}"], abs=1e-9)
        assert 100 * metrics.balanced_accuracy == pytest.approx(theirs[f"balanced_accuracy_{head}"], abs=1e-9)


@settings(deadline=None)
@given(fields=ACTIONS, answers=PREDICTIONS)
def test_where_a_class_is_absent_the_official_evaluator_says_nan_and_we_balance_over_the_others(
    folder, fields, answers
):
    annotations, predictions = _documents(fields, answers)
    theirs, ours = _official(folder, annotations, predictions), official_count(annotations, predictions)
    assert ours.leaderboard_value == pytest.approx(theirs["leaderboard_value"], abs=1e-9, nan_ok=True)
    if any(count.any() for count in ours.occurrences.values()):
        assert 0 <= ours.metrics.score <= 1
        assert 100 * ours.metrics.heads["action"].accuracy == pytest.approx(theirs["accuracy_action"], abs=1e-9)


@settings(deadline=None)
@given(fields=ACTIONS)
def test_the_right_labels_are_counted_as_right_except_for_the_actions_listed(fields):
    annotations, predictions = _documents(fields, [_right_answer(action) for action in fields])
    count = official_count(annotations, predictions)
    assert count.unanswered == ()
    assert (count.hits["action"] == count.occurrences["action"]).all()
    wrong = count.occurrences["offence_severity"].sum() - count.hits["offence_severity"].sum()
    assert wrong == len(count.never_right)


def test_what_no_prediction_can_get_right_is_listed():
    fields = [
        {"Action class": "Tackling", "Offence": "No Offence", "Severity": ""},
        {"Action class": "Dive", "Offence": "Between", "Severity": ""},
        {"Action class": "Dive", "Offence": "Offence", "Severity": "3.0"},
        {"Action class": "", "Offence": "", "Severity": ""},
    ]
    annotations, predictions = _documents(fields, [FoulLabels(0, 0), FoulLabels(7, 1), None])
    count = official_count(annotations, predictions)
    assert count.never_right == {
        "0": 'its offence is annotated as "No Offence"',
        "1": 'its offence is annotated as "Between"',
        "2": "it is a Dive annotated with severity 3.0",
    }
    assert count.unanswered == ("2",)
    assert count.hits["action"].sum() == 2
    assert count.hits["offence_severity"].sum() == 0
    assert count.occurrences["offence_severity"].tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("split", ["test", "valid"])
def test_the_score_of_a_checkpoint_is_the_official_one_on_the_same_files(tiny_run, tiny_dataset, tmp_path, split):
    config = EvaluateConfig(
        ckpt=tiny_run / "best.pth.tar", root=tiny_dataset, split=split, output=tmp_path, workers=0, device="cpu"
    )
    evaluate_checkpoint(config)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    theirs = official_evaluate(tiny_dataset / split / "annotations.json", tmp_path / f"predictions_{split}.json")
    assert math.isfinite(theirs["leaderboard_value"])
    assert 100 * metrics["score"] == pytest.approx(theirs["leaderboard_value"], abs=1e-9)
    assert metrics["official"]["leaderboard_value"] == pytest.approx(theirs["leaderboard_value"], abs=1e-9)
    for head in ("action", "offence_severity"):
        assert 100 * metrics[head]["accuracy"] == pytest.approx(theirs[f"accuracy_{head}"], abs=1e-9)
        assert 100 * metrics[head]["balanced_accuracy"] == pytest.approx(theirs[f"balanced_accuracy_{head}"], abs=1e-9)


def test_the_real_sample_is_counted_as_officially(sample_root: Path, folder):
    annotations = json.loads((sample_root / "test" / "annotations.json").read_text())
    labels = {action_id: FoulLabels(0, 2) for action_id in annotations["Actions"]}
    predictions = to_soccernet_json("test", labels)
    theirs, ours = _official(folder, annotations, predictions), official_count(annotations, predictions)
    assert math.isnan(theirs["leaderboard_value"])  # three actions do not have every class
    assert math.isnan(ours.leaderboard_value)
    assert 100 * ours.metrics.heads["action"].accuracy == pytest.approx(theirs["accuracy_action"])
    assert 100 * ours.metrics.heads["offence_severity"].accuracy == pytest.approx(theirs["accuracy_offence_severity"])
