"""The rungs of the ladder: what was collected, judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from export.config import Precision, Tolerance
from export.difference import Difference
from mvfoul.artifact import ACTION_LOGITS, FEATURES, OFFENCE_SEVERITY_LOGITS, GraphSpec, TensorSpec
from mvfoul.labels import VOCABULARIES, Head
from training.metrics import confusion_matrix, metrics_of

HEAD_ALONE: Final = " (head)"
"""Marks the figures of the head alone: both engines are given the reference's features."""
LOGITS: Final = (ACTION_LOGITS, OFFENCE_SEVERITY_LOGITS)
FEWEST_JUDGED: Final = 100
"""Labelled actions below which a change of the balanced accuracy says nothing: one of them would be a percent."""

_KINDS = {"max_abs": "absolute", "max_relative": "relative"}


@dataclass(frozen=True)
class Check:
    """One rung of the ladder."""

    name: str
    passed: bool
    measured: str
    limit: str
    where: str = ""
    """Where the largest error was."""
    failures: tuple[str, ...] = ()
    """One sentence each."""
    notes: tuple[str, ...] = ()
    """What was seen and not counted."""
    figures: Mapping[str, float | None] = field(default_factory=dict)
    """None where a figure is not finite."""


@dataclass
class Agreement:
    """Counts how often two engines give the same labels."""

    agreed: int = 0
    disagreed: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)

    def add(self, same: bool, margin: float, sentence: str, *, undecided_margin: float) -> None:
        """Count one action; a disagreement where the reference itself hardly decides is kept apart."""
        if same:
            self.agreed += 1
        elif margin < undecided_margin:
            self.undecided.append(f"{sentence}, undecided: margin {margin:.1e}")
        else:
            self.disagreed.append(f"{sentence}, margin {margin:.1e}")


@dataclass
class Answers:
    """First labels of both engines on labelled actions, by head: label, reference's, candidate's."""

    rows: dict[Head, list[tuple[int, int, int]]] = field(default_factory=lambda: {head: [] for head in VOCABULARIES})

    def balanced_accuracies(self) -> dict[str, tuple[float, float]]:
        """Return the reference's and the candidate's, by head and for the score; empty where nothing is labelled."""
        if not all(self.rows.values()):
            return {}
        columns = {head: np.array(rows).T for head, rows in self.rows.items()}
        reference, candidate = (
            metrics_of({h: confusion_matrix(c[0], c[side], len(VOCABULARIES[h])) for h, c in columns.items()})
            for side in (1, 2)
        )
        figures = {
            str(head): (reference.heads[head].balanced_accuracy, candidate.heads[head].balanced_accuracy)
            for head in VOCABULARIES
        }
        return {**figures, "score": (reference.score, candidate.score)}


def structure_checks(expected: GraphSpec, found: GraphSpec) -> Iterator[Check]:
    """Compare names, dtypes and axes of a graph's inputs and outputs."""
    for kind in ("inputs", "outputs"):
        failures = tuple(_mismatches(getattr(expected, kind), getattr(found, kind)))
        names = ", ".join(_spelled(t) for t in getattr(found, kind))
        yield Check(
            f"{expected.file} {kind}",
            not failures,
            names if len(names) < 60 else f"{len(getattr(found, kind))} tensors",
            "as promised",
            failures=failures,
        )


def value_check(name: str, difference: Difference, kind: str, limit: float) -> Check:
    """Judge one tensor by one of its figures: `max_abs`, `max_relative` or `min_cosine`."""
    figures = figures_of(difference)
    within = figures[kind] >= limit if kind == "min_cosine" else figures[kind] <= limit
    failures = list(difference.problems)
    if not difference.compared and not failures:
        failures.append("nothing could be compared")
    if not within:
        failures.append(
            f"{kind} is {figures[kind]:.3g}, beyond {limit:.3g}; the largest error is at {difference.worst}"
        )
    measured = f"{figures[kind]:.6f} cosine" if kind == "min_cosine" else f"{figures[kind]:.1e} {_KINDS[kind]}"
    return Check(
        name,
        not failures,
        measured,
        f"{limit:.3g}",
        where=difference.worst,
        failures=tuple(failures),
        figures={key: value if np.isfinite(value) else None for key, value in figures.items()},
    )


def limit_of(name: str, tolerance: Tolerance, precision: Precision) -> tuple[str, float]:
    """Return which figure of a tensor is judged, and its limit."""
    if precision != "fp32" and not name.endswith(HEAD_ALONE):
        return "min_cosine", tolerance.cosine(precision)
    if name == FEATURES:
        return "max_relative", tolerance.features
    logits = name.removesuffix(HEAD_ALONE) in LOGITS
    return "max_abs", tolerance.logits if logits else tolerance.probabilities


def decision_check(name: str, agreement: Agreement, required: float) -> Check:
    """Judge the share of equal labels."""
    decided = agreement.agreed + len(agreement.disagreed)
    share = agreement.agreed / decided if decided else None
    passed = share is not None and share >= required
    return Check(
        name,
        passed,
        f"{agreement.agreed} of {decided} agree",
        "all" if required == 1 else f"{required:.0%}",
        failures=() if passed else tuple(agreement.disagreed) or ("nothing could be compared",),
        notes=(*(agreement.disagreed if passed else ()), *agreement.undecided),
        figures={"agreement": share, "decided": decided},
    )


def score_checks(answers: Answers, tolerance: Tolerance) -> Iterator[Check]:
    """Judge how far the balanced accuracy falls; nothing where no action is labelled."""
    figures = answers.balanced_accuracies()
    labelled = len(answers.rows["action"])
    judged = labelled >= FEWEST_JUDGED
    for name, (reference, candidate) in figures.items():
        fall = reference - candidate
        failed = judged and fall > tolerance.score_change
        note = f"{labelled} labelled actions, fewer than {FEWEST_JUDGED}: reported, not judged"
        yield Check(
            f"{name} balanced accuracy" if name != "score" else name,
            not failed,
            f"{100 * reference:.1f} to {100 * candidate:.1f} %",
            f"-{100 * tolerance.score_change:.3g} points" if judged else "none",
            where=f"{labelled} actions",
            failures=(f"falls by {100 * fall:.2f} points on {labelled} actions",) if failed else (),
            notes=() if judged or name != "score" else (note,),
            figures={"reference": reference, "candidate": candidate, "change": candidate - reference},
        )


def figures_of(difference: Difference) -> dict[str, float]:
    """Return what is reported of a tensor."""
    return {
        "max_abs": difference.max_abs,
        "mean_abs": difference.mean_abs,
        "max_relative": difference.max_relative,
        "min_cosine": difference.min_cosine,
    }


def _mismatches(expected: Sequence[TensorSpec], found: Sequence[TensorSpec]) -> Iterator[str]:
    ours, theirs = ({t.name: t for t in tensors} for tensors in (found, expected))
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours:
            yield f"{name} is missing"
        elif name not in theirs:
            yield f"{name} is not promised"
        elif ours[name] != theirs[name]:
            yield f"{_spelled(ours[name])} instead of {_spelled(theirs[name])}"


def _spelled(tensor: TensorSpec) -> str:
    return f"{tensor.name} {tensor.dtype} [{','.join(map(str, tensor.shape))}]"
