"""How the official evaluator counts: `SoccerNet.Evaluation.MV_FoulRecognition.evaluate` (PyPI `SoccerNet` 0.2.0).

It compares a prediction file with annotations.json as that stands on disk, so it differs from plain counting:

- The offence must be spelled as annotated. Where that is "No Offence", or "Between" or "" of a Dive, no prediction in
  SoccerNet's own spelling is ever right.
- No offence must come with severity "", and a Dive that is an offence with "1.0", whatever was annotated.
- An action without a prediction, such as one whose clips are all damaged, is wrong.
- A severity that is not a string, or not spelled "1.0" to "5.0", takes the action out, unless it is no offence.

It answers NaN where a class does not occur. The balanced accuracies here are then over the classes that do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mvfoul.labels import ACTION_CLASSES, VOCABULARIES, FoulLabels, Head, normalise_action_class, soccernet_fields
from training.metrics import HeadMetrics, Metrics, metrics_from_counts

_NO_OFFENCE: Final = ("No offence", "No Offence")
_UNDECIDED_OFFENCE: Final = ("", "Between")
_UNDECIDED_SEVERITY: Final = ("", "2.0", "4.0")
_SEVERITIES: Final = {"1.0": 1, "3.0": 2, "5.0": 3}


@dataclass(frozen=True)
class OfficialCount:
    """Which of the M actions that count are answered right."""

    labels: Mapping[Head, NDArray[np.int64]]
    """int64 `[M]` per head."""
    right: Mapping[Head, NDArray[np.bool_]]
    """bool `[M]` per head."""
    unanswered: tuple[str, ...]
    """Ids of the actions that count and have no prediction."""
    never_right: Mapping[str, str]
    """Actions whose offence severity counts as wrong even if the right class is predicted: id, and why."""

    @property
    def occurrences(self) -> Mapping[Head, NDArray[np.int64]]:
        """Actions per class, int64 `[C]` per head."""
        return {head: np.bincount(self.labels[head], minlength=len(names)) for head, names in VOCABULARIES.items()}

    @property
    def hits(self) -> Mapping[Head, NDArray[np.int64]]:
        """Right answers per class, int64 `[C]` per head."""
        return {
            head: np.bincount(self.labels[head][self.right[head]], minlength=len(names))
            for head, names in VOCABULARIES.items()
        }

    @property
    def metrics(self) -> Metrics:
        """Accuracies and the score.

        Raises:
            ValueError: No action counts.
        """
        return Metrics({head: self._head(head) for head in VOCABULARIES})

    @property
    def leaderboard_value(self) -> float:
        """What the official evaluator answers, from 0 to 100; NaN where a class does not occur."""
        if any((occurring == 0).any() for occurring in self.occurrences.values()):
            return float("nan")
        return 100 * self.metrics.score

    def _head(self, head: Head) -> HeadMetrics:
        return metrics_from_counts(self.hits[head], self.occurrences[head])


def official_count(annotations: Mapping[str, Any], predictions: Mapping[str, Any]) -> OfficialCount:
    """Count a prediction file against an annotation file, both as JSON documents with "Actions".

    Raises:
        LabelError: An action class is not in the vocabulary.
    """
    labels: dict[Head, list[int]] = {head: [] for head in VOCABULARIES}
    right: dict[Head, list[bool]] = {head: [] for head in VOCABULARIES}
    unanswered: list[str] = []
    never_right: dict[str, str] = {}
    for action_id, fields in annotations["Actions"].items():
        if (wanted := _wanted(fields)) is None:
            continue
        action, severity, severity_text = wanted
        labels["action"].append(action)
        labels["offence_severity"].append(severity)
        right_fields = soccernet_fields(FoulLabels(action, severity))
        if fields.get("Offence") != right_fields["Offence"]:
            never_right[action_id] = f'its offence is annotated as "{fields.get("Offence")}"'
        elif severity_text != right_fields["Severity"]:
            never_right[action_id] = f"it is a Dive annotated with severity {fields['Severity']}"
        if (answer := predictions["Actions"].get(action_id)) is None:
            unanswered.append(action_id)
            answer = {"Action class": None, "Offence": None, "Severity": None}
        right["action"].append(answer["Action class"] == fields["Action class"])
        both = (answer["Offence"], answer["Severity"])
        right["offence_severity"].append((fields.get("Offence"), severity_text) == both)
    return OfficialCount(
        {head: np.asarray(column, np.int64) for head, column in labels.items()},
        {head: np.asarray(column, np.bool_) for head, column in right.items()},
        tuple(unanswered),
        never_right,
    )


def _wanted(fields: Mapping[str, Any]) -> tuple[int, int, str] | None:
    """Return both labels of an action and the severity its prediction must have; None if it does not count."""
    action_class, offence, severity = (fields.get(key, "") for key in ("Action class", "Offence", "Severity"))
    if not normalise_action_class(action_class):
        return None
    action, dive = ACTION_CLASSES.index(normalise_action_class(action_class)), action_class == "Dive"
    if offence in _NO_OFFENCE:
        return action, 0, ""
    if not dive and (offence in _UNDECIDED_OFFENCE or severity in _UNDECIDED_SEVERITY):
        return None
    decided = "1.0" if severity in _UNDECIDED_SEVERITY else severity
    if offence not in ("Offence", *_UNDECIDED_OFFENCE) or not isinstance(decided, str) or decided not in _SEVERITIES:
        return None
    return action, _SEVERITIES[decided], "1.0" if dive else decided
