"""The two ordered vocabularies, and their conversions from and to SoccerNet's spellings.

The order is the order of the logits. It is written into every checkpoint and manifest, and serving reads it from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from mvfoul.errors import LabelError

ACTION_CLASSES: Final = (
    "Tackling",
    "Standing tackling",
    "High leg",
    "Holding",
    "Pushing",
    "Elbowing",
    "Challenge",
    "Dive",
)
OFFENCE_SEVERITIES: Final = ("No offence", "Offence + No card", "Offence + Yellow card", "Offence + Red card")

Head = Literal["action", "offence_severity"]
VOCABULARIES: Final[Mapping[Head, tuple[str, ...]]] = {"action": ACTION_CLASSES, "offence_severity": OFFENCE_SEVERITIES}

# Index in OFFENCE_SEVERITIES, and the value of SoccerNet's field "Severity" that means it.
_SEVERITY_CODES: Final = {1: "1.0", 2: "3.0", 3: "5.0"}
_ACTION_BY_FOLDED: Final = {name.casefold(): i for i, name in enumerate(ACTION_CLASSES)}


@dataclass(frozen=True)
class FoulLabels:
    """The two answers for one action, as indices into the vocabularies."""

    action: int
    offence_severity: int

    def __post_init__(self) -> None:
        for head, index in (("action", self.action), ("offence_severity", self.offence_severity)):
            names = VOCABULARIES[head]  # type: ignore[index]
            if not 0 <= index < len(names):
                raise LabelError(
                    f"{head} index is {index}; it must be from 0 to {len(names) - 1} ({', '.join(names)})."
                )

    @property
    def action_class(self) -> str:
        """The action's name in `ACTION_CLASSES`."""
        return ACTION_CLASSES[self.action]

    @property
    def severity_name(self) -> str:
        """The severity's name in `OFFENCE_SEVERITIES`."""
        return OFFENCE_SEVERITIES[self.offence_severity]


def normalise_action_class(value: Any) -> str:
    """Return the annotation's action class in the vocabulary's spelling; `""` where it is unknown ("" or "Dont know").

    Raises:
        LabelError: Another string.
    """
    text = _text(value)
    if text.casefold() in ("", "dont know", "don't know"):
        return ""
    if (index := _ACTION_BY_FOLDED.get(text.casefold())) is None:
        raise LabelError(f"unknown action class {value!r}; known: {', '.join(ACTION_CLASSES)}.")
    return ACTION_CLASSES[index]


def normalise_offence(value: Any) -> Literal["Offence", "No offence", "Between", ""]:
    """Return the annotation's offence in one spelling ("No Offence" and "No offence" are the same).

    Raises:
        LabelError: Another string.
    """
    spellings: Mapping[str, Literal["Offence", "No offence", "Between", ""]] = {
        "offence": "Offence",
        "no offence": "No offence",
        "between": "Between",
        "": "",
    }
    if (known := spellings.get(_text(value).casefold())) is None:
        raise LabelError(f"unknown offence {value!r}; known: Offence, No offence, Between, or empty.")
    return known


def normalise_severity(value: Any) -> str:
    """Return the annotation's severity as "1.0" to "5.0", or `""`; numbers and strings mean the same.

    Raises:
        LabelError: Not a whole number from 1 to 5.
    """
    text = _text(value)
    if not text:
        return ""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if number not in (1.0, 2.0, 3.0, 4.0, 5.0):
        raise LabelError(f"unknown severity {value!r}; known: 1.0 to 5.0 (1.0 no card, 3.0 yellow, 5.0 red), or empty.")
    return f"{number:.1f}"


def offence_severity_index(offence: str, severity: str) -> int:
    """Return the index in `OFFENCE_SEVERITIES` of a normalised offence and severity.

    Raises:
        LabelError: The two do not name one of the four classes.
    """
    if offence == "No offence":
        return 0
    for index, code in _SEVERITY_CODES.items():
        if offence == "Offence" and severity == code:
            return index
    raise LabelError(f"offence {offence!r} with severity {severity!r} is none of {', '.join(OFFENCE_SEVERITIES)}.")


def soccernet_fields(labels: FoulLabels) -> dict[str, str]:
    """Return the three fields of SoccerNet's prediction JSON for one action."""
    if labels.offence_severity == 0:
        return {"Action class": labels.action_class, "Offence": "No offence", "Severity": ""}
    return {
        "Action class": labels.action_class,
        "Offence": "Offence",
        "Severity": _SEVERITY_CODES[labels.offence_severity],
    }


def labels_from_soccernet(fields: Mapping[str, Any]) -> FoulLabels:
    """Read the three fields of one predicted action.

    Raises:
        LabelError: A field is missing or outside the vocabularies.
    """
    if not isinstance(fields, Mapping):
        raise LabelError(f"predicted action is {fields!r}; it must be an object with Action class, Offence, Severity.")
    if missing := [key for key in ("Action class", "Offence", "Severity") if key not in fields]:
        raise LabelError(f"predicted action lacks {missing}; it needs Action class, Offence and Severity.")
    action = normalise_action_class(fields["Action class"])
    if not action:
        raise LabelError(f"predicted action class is {fields['Action class']!r}; known: {', '.join(ACTION_CLASSES)}.")
    offence, severity = normalise_offence(fields["Offence"]), normalise_severity(fields["Severity"])
    return FoulLabels(ACTION_CLASSES.index(action), offence_severity_index(offence, severity))


def to_soccernet_json(split: str, predictions: Mapping[str, FoulLabels]) -> dict[str, Any]:
    """Return SoccerNet's prediction file, `{"Set": ..., "Actions": {"0": {...}}}`, in order of action id."""
    ordered = sorted(predictions.items(), key=lambda item: (len(item[0]), item[0]))
    return {"Set": split, "Actions": {action_id: soccernet_fields(labels) for action_id, labels in ordered}}


def from_soccernet_json(document: Mapping[str, Any]) -> dict[str, FoulLabels]:
    """Read SoccerNet's prediction file.

    Raises:
        LabelError: There is no "Actions" object, or one of its actions is unreadable (named in the message).
    """
    actions = document.get("Actions")
    if not isinstance(actions, Mapping):
        raise LabelError('prediction file has no object "Actions"; see `to_soccernet_json` for the layout.')
    predictions = {}
    for action_id, fields in actions.items():
        try:
            predictions[str(action_id)] = labels_from_soccernet(fields)
        except LabelError as error:
            raise LabelError(f"action {action_id}: {error}") from error
    return predictions


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
