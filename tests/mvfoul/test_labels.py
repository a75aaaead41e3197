"""The vocabularies and SoccerNet's spellings of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvfoul.errors import LabelError
from mvfoul.labels import (
    ACTION_CLASSES,
    OFFENCE_SEVERITIES,
    VOCABULARIES,
    FoulLabels,
    from_soccernet_json,
    labels_from_soccernet,
    normalise_action_class,
    normalise_offence,
    normalise_severity,
    offence_severity_index,
    soccernet_fields,
    to_soccernet_json,
)

LABELS = st.builds(FoulLabels, st.integers(0, 7), st.integers(0, 3))


def test_the_order_of_the_logits_never_changes():
    assert ", ".join(VOCABULARIES["action"]) == (
        "Tackling, Standing tackling, High leg, Holding, Pushing, Elbowing, Challenge, Dive"
    )
    assert ", ".join(VOCABULARIES["offence_severity"]) == (
        "No offence, Offence + No card, Offence + Yellow card, Offence + Red card"
    )
    assert list(VOCABULARIES) == ["action", "offence_severity"]


@given(st.dictionaries(st.integers(0, 10_000).map(str), LABELS, max_size=12))
def test_predictions_survive_soccernets_json(predictions):
    document = json.loads(json.dumps(to_soccernet_json("test", predictions)))
    assert document["Set"] == "test"
    assert from_soccernet_json(document) == predictions


@given(st.sets(st.integers(0, 3000), max_size=30))
def test_actions_are_written_in_order_of_their_number(numbers):
    written = to_soccernet_json("valid", {str(n): FoulLabels(0, 0) for n in numbers})["Actions"]
    assert [int(action_id) for action_id in written] == sorted(numbers)


def test_soccernets_fields_are_those_of_the_official_files():
    assert soccernet_fields(FoulLabels(2, 2)) == {"Action class": "High leg", "Offence": "Offence", "Severity": "3.0"}
    assert soccernet_fields(FoulLabels(7, 0)) == {"Action class": "Dive", "Offence": "No offence", "Severity": ""}
    assert [soccernet_fields(FoulLabels(0, s))["Severity"] for s in range(4)] == ["", "1.0", "3.0", "5.0"]


@given(st.sampled_from(ACTION_CLASSES), st.sampled_from([str, str.upper, str.lower, lambda s: f" {s}\n"]))
def test_action_classes_are_known_in_any_case_and_with_blanks_around(name, spelt):
    assert normalise_action_class(spelt(name)) == name


@pytest.mark.parametrize("value", ["", None, "Dont know", "dont know", "Don't know", "  "])
def test_an_unknown_action_class_is_empty(value):
    assert normalise_action_class(value) == ""


@pytest.mark.parametrize(
    ("value", "offence"),
    [
        ("Offence", "Offence"),
        ("offence", "Offence"),
        ("No offence", "No offence"),
        ("No Offence", "No offence"),
        ("Between", "Between"),
        ("", ""),
        (None, ""),
    ],
)
def test_offences_are_known_in_every_spelling_of_the_data_set(value, offence):
    assert normalise_offence(value) == offence


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_severities_may_be_numbers_or_strings(severity):
    for value in (severity, float(severity), str(severity), f"{severity}.0", f" {severity}.00 "):
        assert normalise_severity(value) == f"{severity}.0"


def test_an_unknown_severity_is_empty():
    assert [normalise_severity(value) for value in ("", None, " ")] == ["", "", ""]


@pytest.mark.parametrize("value", ["6.0", "0", "1.5", "nan", "inf", "yellow", -1, True])
def test_a_severity_off_the_scale_is_refused_with_its_value(value):
    with pytest.raises(LabelError, match=rf"unknown severity {value!r}; known: 1.0 to 5.0"):
        normalise_severity(value)


@pytest.mark.parametrize(
    ("normalise", "value", "message"),
    [
        (normalise_action_class, "Kicking", "unknown action class 'Kicking'; known: Tackling, "),
        (normalise_action_class, 3, "unknown action class 3; known: "),
        (normalise_offence, "Maybe", "unknown offence 'Maybe'; known: Offence, No offence, Between"),
    ],
)
def test_other_spellings_are_refused_with_their_value_and_the_known_ones(normalise, value, message):
    with pytest.raises(LabelError, match=message):
        normalise(value)


def test_offence_and_severity_make_one_of_four_classes():
    assert offence_severity_index("No offence", "") == 0
    assert offence_severity_index("No offence", "5.0") == 0
    assert [offence_severity_index("Offence", s) for s in ("1.0", "3.0", "5.0")] == [1, 2, 3]


@pytest.mark.parametrize(("offence", "severity"), [("Offence", "2.0"), ("Offence", ""), ("Between", "1.0"), ("", "")])
def test_what_makes_none_of_the_four_classes_is_refused(offence, severity):
    with pytest.raises(LabelError, match=f"offence '{offence}' with severity '{severity}' is none of No offence, "):
        offence_severity_index(offence, severity)


@given(LABELS)
def test_labels_say_their_names(labels):
    assert labels.action_class == ACTION_CLASSES[labels.action]
    assert labels.severity_name == OFFENCE_SEVERITIES[labels.offence_severity]


@pytest.mark.parametrize(
    ("action", "severity", "head"), [(8, 0, "action"), (-1, 0, "action"), (0, 4, "offence_severity")]
)
def test_indices_outside_the_vocabulary_are_refused(action, severity, head):
    with pytest.raises(LabelError, match=rf"{head} index is -?\d; it must be from 0 to"):
        FoulLabels(action, severity)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"Action class": "Dive", "Offence": "Offence"}, r"lacks \['Severity'\]"),
        ({"Action class": "", "Offence": "Offence", "Severity": "1.0"}, "predicted action class is ''"),
        ({"Action class": "Dive", "Offence": "Between", "Severity": ""}, "is none of"),
    ],
)
def test_an_unreadable_prediction_is_named_with_its_action(fields, message):
    with pytest.raises(LabelError, match=message):
        labels_from_soccernet(fields)
    with pytest.raises(LabelError, match=rf"action 17: .*{message}"):
        from_soccernet_json({"Set": "test", "Actions": {"17": fields}})


@pytest.mark.parametrize("document", [{}, {"Actions": None}, {"Actions": []}, {"actions": {}}])
def test_a_file_without_actions_is_refused(document):
    with pytest.raises(LabelError, match='no object "Actions"'):
        from_soccernet_json(document)


@pytest.mark.parametrize("fields", [None, "High leg", ["High leg"], 3])
def test_an_action_that_is_no_object_is_refused_by_name(fields):
    with pytest.raises(LabelError, match="action 4: predicted action "):
        from_soccernet_json({"Actions": {"4": fields}})
