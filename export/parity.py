"""Whether an engine answers as the reference does: a ladder of checks that is always climbed to the end.

    structure   names, dtypes, dynamic axes of inputs and outputs
    values      every tensor, at several N through the encoder and several V through the head
    decisions   the first label, and the first two as a set, of every action and both heads

In float32, features are compared with respect to their largest value, since their scale is the backbone's; logits and
probabilities absolutely. What depends on an encoder in float16 is compared by direction (cosine) and by decisions.

View weights are judged from the same features: under `max` they count which view supplied a feature, so two nearly
equal features can swap a whole share however small the error is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from export.batches import ViewBatch
from export.config import Precision, Tolerance
from export.difference import Difference
from export.runners import Runner, Tensors
from mvfoul.artifact import (
    ACTION_LOGITS,
    ACTION_PROBABILITIES,
    FEATURES,
    OFFENCE_SEVERITY_LOGITS,
    OFFENCE_SEVERITY_PROBABILITIES,
    VIEW_WEIGHTS,
    TensorSpec,
)
from mvfoul.labels import VOCABULARIES, Head

HEAD_ALONE: Final = " (head)"
"""Marks the figures of the head alone: both engines are given the reference's features."""

_PROBABILITIES: Final[Mapping[Head, str]] = {
    "action": ACTION_PROBABILITIES,
    "offence_severity": OFFENCE_SEVERITY_PROBABILITIES,
}
_LOGITS = (ACTION_LOGITS, OFFENCE_SEVERITY_LOGITS)
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


@dataclass(frozen=True)
class ParityReport:
    """All checks of one engine against the reference."""

    reference: str
    candidate: str
    tolerance: Tolerance
    batches: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and view counts of what was compared."""
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check did."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not."""
        return tuple(check for check in self.checks if not check.passed)

    def check(self, name: str) -> Check:
        """Return a check by its name; KeyError where there is none."""
        return {check.name: check for check in self.checks}[name]

    def to_json(self) -> dict[str, Any]:
        """Return what parity.json holds. Nothing in it depends on time, so the same export gives the same file."""
        return {
            "passed": self.passed,
            "reference": self.reference,
            "candidate": self.candidate,
            "tolerance": asdict(self.tolerance),
            "batches": [{"name": name, "view_counts": list(counts)} for name, counts in self.batches],
            "checks": [asdict(check) for check in self.checks],
        }

    def summary(self) -> dict[str, Any]:
        """Return the figures for the manifest."""
        logits = [self.check(name).figures for name in _LOGITS]
        return {
            "passed": self.passed,
            "candidate": self.candidate,
            "actions": sum(len(counts) for _, counts in self.batches),
            "logits_max_abs_error": _extreme(max, [figures["max_abs"] for figures in logits]),
            "logits_min_cosine": _extreme(min, [figures["min_cosine"] for figures in logits]),
            "features_max_relative_error": self.check(FEATURES).figures["max_relative"],
            "features_min_cosine": self.check(FEATURES).figures["min_cosine"],
            "top1_agreement": {head: self.check(f"{head} top-1").figures["agreement"] for head in VOCABULARIES},
        }


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
class _Ladder:
    """What one comparison has collected so far."""

    differences: dict[str, Difference]
    agreements: dict[str, Agreement]
    features: list[NDArray[np.float32]] = field(default_factory=list)
    """Of the reference, `[N, D]` each."""
    crashes: list[str] = field(default_factory=list)


def check_parity(
    reference: Runner,
    candidate: Runner,
    batches: Iterable[ViewBatch],
    tolerance: Tolerance,
    *,
    max_views: int,
    precision: Precision = "fp32",
) -> ParityReport:
    """Compare two runners: names, shapes, values, decisions. Finishes every check; never raises on a mismatch.

    Args:
        reference: Right by definition.
        candidate: Judged.
        batches: What the encoders get, a call per batch; the views then go to the heads, action by action.
        tolerance: Limits.
        max_views: The heads are also compared at every V from 1 to this, on the reference's features.
        precision: Of the candidate's encoder; decides which limits hold for what depends on it.
    """
    ladder = _Ladder(
        differences={name: Difference() for name in _judged_tensors()},
        agreements={f"{head} {rank}": Agreement() for head in VOCABULARIES for rank in ("top-1", "top-2 set")},
    )
    seen = []
    for batch in batches:
        seen.append((batch.name, batch.view_counts))
        _compare_batch(ladder, reference, candidate, batch, tolerance)
    _compare_heads(ladder, reference, candidate, max_views)
    required = tolerance.fp16_agreement if precision == "fp16" else 1.0
    checks = (
        *_structure_checks(reference, candidate),
        *(_value_check(name, difference, tolerance, precision) for name, difference in ladder.differences.items()),
        *(_decision_check(name, agreement, required) for name, agreement in ladder.agreements.items()),
        Check(
            "every call answered",
            not ladder.crashes,
            _count(ladder.crashes, "crash"),
            "none",
            failures=tuple(ladder.crashes),
        ),
    )
    return ParityReport(reference.name, candidate.name, tolerance, tuple(seen), checks)


def _judged_tensors() -> Iterator[str]:
    yield FEATURES
    yield from _LOGITS
    yield from _PROBABILITIES.values()
    yield from (name + HEAD_ALONE for name in (*_LOGITS, *_PROBABILITIES.values(), VIEW_WEIGHTS))


def _compare_batch(
    ladder: _Ladder, reference: Runner, candidate: Runner, batch: ViewBatch, tolerance: Tolerance
) -> None:
    """Compare the encoders on one batch, and both engines from pixels to labels on its actions."""
    expected = reference.encode(batch.views)[FEATURES]
    ladder.features.append(expected)
    where = f"{batch.name}, N={len(batch.views)}"
    found = _call(candidate.encode, batch.views, where=where, crashes=ladder.crashes).get(FEATURES)
    ladder.differences[FEATURES].add(found, expected, where)
    if found is None or found.shape != expected.shape:
        return
    offsets = np.cumsum((0, *batch.view_counts))
    for start, stop in pairwise(offsets):
        where_action = f"{where}, views {start}-{stop - 1}"
        right = reference.classify(expected[start:stop])
        answer = _call(candidate.classify, found[start:stop], where=where_action, crashes=ladder.crashes)
        for name in (*_LOGITS, *_PROBABILITIES.values()):
            ladder.differences[name].add(answer.get(name), right[name], where_action)
        _compare_decisions(ladder.agreements, answer, right, where_action, tolerance)


def _compare_heads(ladder: _Ladder, reference: Runner, candidate: Runner, max_views: int) -> None:
    """Compare the heads alone at every V, on features that the reference's encoder gave."""
    pool = np.concatenate(ladder.features)
    for views in range(1, max_views + 1):
        # A stride of 3 mixes views of different batches; a pool that is too small is repeated.
        features = np.ascontiguousarray(pool[np.arange(views) * 3 % len(pool)])
        right = reference.classify(features)
        answer = _call(candidate.classify, features, where=f"V={views}", crashes=ladder.crashes)
        for name, expected in right.items():
            ladder.differences[name + HEAD_ALONE].add(answer.get(name), expected, f"V={views}")


def _call(function: Callable[[Any], Tensors], argument: Any, *, where: str, crashes: list[str]) -> Tensors:
    try:
        return function(argument)
    except Exception as error:  # noqa: BLE001  # an engine may raise anything; the report must say what, and go on
        crashes.append(f"{where}: {type(error).__name__}: {error}")
        return {}


def _compare_decisions(
    agreements: Mapping[str, Agreement], answer: Tensors, right: Tensors, where: str, tolerance: Tolerance
) -> None:
    for head, name in _PROBABILITIES.items():
        found, expected = answer.get(name), right[name]
        if found is None or found.shape != expected.shape:
            continue
        ours, theirs = (np.argsort(-p, kind="stable") for p in (found, expected))
        ranked = expected[theirs]
        labels = [VOCABULARIES[head][i] for i in (theirs[0], ours[0])]
        limit = tolerance.undecided_margin
        agreements[f"{head} top-1"].add(
            bool(ours[0] == theirs[0]),
            float(ranked[0] - ranked[1]),
            f"{where}: {labels[1]} instead of {labels[0]}",
            undecided_margin=limit,
        )
        agreements[f"{head} top-2 set"].add(
            set(ours[:2]) == set(theirs[:2]),
            float(ranked[1] - ranked[2]),
            f"{where}: another top-2 set",
            undecided_margin=limit,
        )


def _structure_checks(reference: Runner, candidate: Runner) -> Iterator[Check]:
    for expected, found in zip(reference.graphs, candidate.graphs, strict=True):
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


def _value_check(name: str, difference: Difference, tolerance: Tolerance, precision: Precision) -> Check:
    figures = {
        "max_abs": difference.max_abs,
        "mean_abs": difference.mean_abs,
        "max_relative": difference.max_relative,
        "min_cosine": difference.min_cosine,
    }
    kind, limit = _limit(name, tolerance, precision)
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


def _limit(name: str, tolerance: Tolerance, precision: Precision) -> tuple[str, float]:
    """Return which figure of a tensor is judged, and its limit."""
    if precision == "fp16" and not name.endswith(HEAD_ALONE):
        return "min_cosine", tolerance.fp16_cosine
    if name == FEATURES:
        return "max_relative", tolerance.features
    logits = name.removesuffix(HEAD_ALONE) in _LOGITS
    return "max_abs", tolerance.logits if logits else tolerance.probabilities


def _decision_check(name: str, agreement: Agreement, required: float) -> Check:
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


def _extreme(choose: Callable[[Iterable[float]], float], values: Sequence[float | None]) -> float | None:
    """Return the largest or smallest of the values; None where one of them is not finite."""
    finite = [value for value in values if value is not None]
    return choose(finite) if len(finite) == len(values) else None


def _count(items: Sequence[str], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 'es'}"
