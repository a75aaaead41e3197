"""Which actions a data set has: their labels, and how the annotations put them.

Labels are balanced: 8 actions at a time, before they are shuffled, have each action class once and each severity twice.
A Dive is never a card: whatever is annotated, the official evaluator counts it as "no card". Some actions are annotated
in the ways that the official filter is for (`FILTER_CASES`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mvfoul.labels import ACTION_CLASSES, FoulLabels, soccernet_fields
from training.synthetic.config import SplitName, SyntheticConfig

SPLIT_NAMES: Final[tuple[SplitName, ...]] = ("train", "valid", "test")

_DIVE: Final = ACTION_CLASSES.index("Dive")
_NO_CARD: Final = 1


@dataclass(frozen=True)
class FilterCase:
    """One odd way to annotate an action."""

    name: str
    fields: Mapping[str, Any]
    """Replaces fields of the action; a callable takes the field's ordinary value."""
    dropped: bool
    """Whether the official filter drops the action."""
    action: int | None = None
    """The action class that the case needs; None: any but Dive."""
    severities: tuple[int, ...] = (0, 1, 2, 3)
    """The offence severities that the case needs."""
    clip_gap: bool = False


_OFFENCES = (1, 2, 3)
FILTER_CASES: Final = (
    FilterCase('class ""', {"Action class": ""}, dropped=True),
    FilterCase("Dive, offence Between, no severity", {"Offence": "Between", "Severity": ""}, False, _DIVE, (_NO_CARD,)),
    FilterCase('class "Dont know"', {"Action class": "Dont know"}, dropped=True),
    FilterCase("severity as a number", {"Severity": float}, False, severities=_OFFENCES),
    FilterCase('offence ""', {"Offence": ""}, dropped=True, severities=_OFFENCES),
    FilterCase("No Offence", {"Offence": "No Offence"}, False, severities=(0,)),
    FilterCase("offence Between", {"Offence": "Between"}, dropped=True, severities=_OFFENCES),
    FilterCase('Dive, offence ""', {"Offence": "", "Severity": "2.0"}, False, _DIVE, (_NO_CARD,)),
    FilterCase('severity ""', {"Severity": ""}, dropped=True, severities=_OFFENCES),
    FilterCase("No offence, severity 2.0", {"Severity": "2.0"}, False, severities=(0,)),
    FilterCase("severity 2.0", {"Severity": "2.0"}, dropped=True, severities=_OFFENCES),
    FilterCase("gap in the clip numbers", {}, False, clip_gap=True),
    FilterCase("severity 4.0", {"Severity": "4.0"}, dropped=True, severities=_OFFENCES),
)


@dataclass(frozen=True)
class PlannedAction:
    """One action before its cameras are drawn."""

    split: SplitName
    action_id: int
    labels: FoulLabels
    """What the motion shows."""
    case: FilterCase | None

    @property
    def dropped(self) -> bool:
        """Whether the official filter drops it."""
        return self.case is not None and self.case.dropped

    @property
    def folder(self) -> str:
        """Its folder within the split's."""
        return f"action_{self.action_id}"

    def rng(self, seed: int) -> np.random.Generator:
        """Return the action's own generator: it depends on no other action and on no worker."""
        return np.random.default_rng([seed, SPLIT_NAMES.index(self.split), self.action_id])

    def clip_numbers(self, views: int) -> tuple[int, ...]:
        """Return the number of each clip: 0, 1, 2, or with a gap."""
        return tuple(k + (self.case is not None and self.case.clip_gap and k > 0) for k in range(views))


def plan_actions(config: SyntheticConfig) -> tuple[PlannedAction, ...]:
    """Plan all splits, split after split, in order of action id."""
    planned: list[PlannedAction] = []
    for index, (split, count) in enumerate(config.splits.counts(config.actions).items()):
        rng = np.random.default_rng([config.seed, index])
        odd = round(config.filtered_fraction * count)
        # Splits start at different cases, so that small ones do not all have the same.
        cases = [FILTER_CASES[(k + 5 * index) % len(FILTER_CASES)] for k in range(odd)]
        rows: list[tuple[FoulLabels, FilterCase | None]] = [(labels, None) for labels in _balanced(count - odd, rng)]
        rows += [(_labels_for(case, rng), case) for case in cases]
        planned += [PlannedAction(split, i, *rows[row]) for i, row in enumerate(rng.permutation(count))]
    return tuple(planned)


def annotation_fields(action: PlannedAction, rng: np.random.Generator) -> dict[str, Any]:
    """Return the official fields of an action but its clips, in the official order."""
    labels = soccernet_fields(action.labels)
    upper = labels["Action class"] in ("Holding", "Pushing", "Elbowing")
    dive = labels["Action class"] == "Dive"
    tried = str(rng.choice(["Yes", "No", ""])) if not upper else ""
    fields: dict[str, Any] = {
        "UrlLocal": f"synthetic_league\\2026-2027\\2026-08-{rng.integers(1, 29):02} - 20-45 North 1 - 0 South",
        "Offence": labels["Offence"],
        "Contact": "Without contact" if dive else "With contact",
        "Bodypart": "" if dive else "Upper body" if upper else "Under body",
        "Upper body part": "Use of arms" if upper else "",
        "Action class": labels["Action class"],
        "Severity": labels["Severity"],
        "Multiple fouls": "No",
        "Try to play": tried,
        "Touch ball": "No" if tried else "",
        "Handball": "No handball",
        "Handball offence": "",
    }
    for key, value in (action.case.fields if action.case else {}).items():
        fields[key] = value(fields[key]) if callable(value) else value
    return fields


def _balanced(count: int, rng: np.random.Generator) -> list[FoulLabels]:
    labels: list[FoulLabels] = []
    while len(labels) < count:
        severities = rng.permutation([0, 0, 1, 1, 2, 2, 3, 3])
        if severities[_DIVE] > _NO_CARD:
            others = np.flatnonzero(severities == severities[_DIVE] - 2)
            other = others[rng.integers(len(others))]
            severities[[_DIVE, other]] = severities[[other, _DIVE]]
        labels += [FoulLabels(action, int(severity)) for action, severity in enumerate(severities)]
    return labels[:count]


def _labels_for(case: FilterCase, rng: np.random.Generator) -> FoulLabels:
    # Any class but Dive, which is the last: the filter treats it differently, and it is never a card.
    action = int(rng.integers(_DIVE)) if case.action is None else case.action
    return FoulLabels(action, case.severities[int(rng.integers(len(case.severities)))])
