"""Whether an engine answers as the reference does: a ladder of checks that is always climbed to the end.

    structure   names, dtypes, dynamic axes of inputs and outputs
    values      every tensor, at several N through the encoder and several V through the head
    decisions   the first label, and the first two as a set, of every action and both heads
    score       the balanced accuracies of both engines, on the actions that have labels

In float32, features are compared with respect to their largest value, since their scale is the backbone's; logits and
probabilities absolutely. What depends on an encoder in float16 or int8 is compared by direction (cosine) and decisions.

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
from export.checks import (
    HEAD_ALONE,
    LOGITS,
    Agreement,
    Answers,
    Check,
    decision_check,
    limit_of,
    score_checks,
    structure_checks,
    value_check,
)
from export.config import Precision, Tolerance
from export.difference import Difference
from export.runners import Runner, Tensors
from mvfoul.artifact import (
    ACTION_PROBABILITIES,
    FEATURES,
    OFFENCE_SEVERITY_PROBABILITIES,
    VIEW_WEIGHTS,
    without_nan,
)
from mvfoul.labels import VOCABULARIES, Head

_PROBABILITIES: Final[Mapping[Head, str]] = {
    "action": ACTION_PROBABILITIES,
    "offence_severity": OFFENCE_SEVERITY_PROBABILITIES,
}


@dataclass(frozen=True)
class BatchError:
    """How far one batch was off, for the picture."""

    name: str
    view_counts: tuple[int, ...]
    features_max_relative: float
    features_min_cosine: float
    logits_max_abs: float


@dataclass
class Evidence:
    """What the verdict rests on, batch by batch."""

    batches: list[BatchError] = field(default_factory=list)
    logits: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {name: [] for name in LOGITS})
    """By tensor: the reference's value and the candidate's, for every class of every action."""


@dataclass(frozen=True)
class ParityReport:
    """All checks of one engine against the reference."""

    reference: str
    candidate: str
    tolerance: Tolerance
    batches: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and view counts of what was compared."""
    checks: tuple[Check, ...]
    evidence: Evidence = field(default_factory=Evidence, compare=False)

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
            "errors": [without_nan(asdict(error)) for error in self.evidence.batches],
            "checks": [asdict(check) for check in self.checks],
        }

    def summary(self) -> dict[str, Any]:
        """Return the figures for the manifest."""
        logits = [self.check(name).figures for name in LOGITS]
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
class _Ladder:
    """What one comparison has collected so far."""

    differences: dict[str, Difference]
    agreements: dict[str, Agreement]
    features: list[NDArray[np.float32]] = field(default_factory=list)
    """Of the reference, `[N, D]` each."""
    crashes: list[str] = field(default_factory=list)
    evidence: Evidence = field(default_factory=Evidence)
    answers: Answers = field(default_factory=Answers)


def check_parity(
    reference: Runner,
    candidate: Runner,
    batches: Iterable[ViewBatch],
    tolerance: Tolerance,
    *,
    max_views: int,
    precision: Precision = "fp32",
    on_batch: Callable[[ViewBatch], None] | None = None,
) -> ParityReport:
    """Compare two runners: names, shapes, values, decisions. Finishes every check; never raises on a mismatch.

    Args:
        reference: Right by definition.
        candidate: Judged.
        batches: What the encoders get, a call per batch; the views then go to the heads, action by action.
        tolerance: Limits.
        max_views: The heads are also compared at every V from 1 to this, on the reference's features.
        precision: Of the candidate's encoder; decides which limits hold for what depends on it.
        on_batch: Called after each batch.
    """
    ladder = _Ladder(
        differences={name: Difference() for name in _judged_tensors()},
        agreements={f"{head} {rank}": Agreement() for head in VOCABULARIES for rank in ("top-1", "top-2 set")},
    )
    seen = []
    for batch in batches:
        seen.append((batch.name, batch.view_counts))
        _compare_batch(ladder, reference, candidate, batch, tolerance)
        if on_batch is not None:
            on_batch(batch)
    _compare_heads(ladder, reference, candidate, max_views)
    required = tolerance.agreement(precision)
    checks = (
        *_structure(reference, candidate),
        *(
            value_check(name, found, *limit_of(name, tolerance, precision))
            for name, found in ladder.differences.items()
        ),
        *(decision_check(name, agreement, required) for name, agreement in ladder.agreements.items()),
        *score_checks(ladder.answers, tolerance),
        Check(
            "every call answered",
            not ladder.crashes,
            _count(ladder.crashes, "crash"),
            "none",
            failures=tuple(ladder.crashes),
        ),
    )
    return ParityReport(reference.name, candidate.name, tolerance, tuple(seen), checks, ladder.evidence)


def _judged_tensors() -> Iterator[str]:
    yield FEATURES
    yield from LOGITS
    yield from _PROBABILITIES.values()
    yield from (name + HEAD_ALONE for name in (*LOGITS, *_PROBABILITIES.values(), VIEW_WEIGHTS))


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
    own = Difference()
    own.add(found, expected, where)
    worst_logit = 0.0
    offsets = np.cumsum((0, *batch.view_counts))
    for index, (start, stop) in enumerate(pairwise(offsets)):
        where_action = f"{where}, views {start}-{stop - 1}"
        right = reference.classify(expected[start:stop])
        answer = _call(candidate.classify, found[start:stop], where=where_action, crashes=ladder.crashes)
        for name in (*LOGITS, *_PROBABILITIES.values()):
            ladder.differences[name].add(answer.get(name), right[name], where_action)
        worst_logit = max(worst_logit, _keep_logits(ladder.evidence, answer, right))
        _compare_decisions(ladder.agreements, answer, right, where_action, tolerance)
        _keep_labels(ladder.answers, batch, index, answer, right)
    ladder.evidence.batches.append(
        BatchError(batch.name, batch.view_counts, own.max_relative, own.min_cosine, worst_logit)
    )


def _keep_logits(evidence: Evidence, answer: Tensors, right: Tensors) -> float:
    """Keep pairs of logits for the picture; return the largest error."""
    largest = 0.0
    for name in LOGITS:
        found, expected = answer.get(name), right[name]
        if found is not None and found.shape == expected.shape:
            evidence.logits[name] += zip(expected.tolist(), found.tolist(), strict=True)
            largest = max(largest, float(np.abs(found.astype(np.float64) - expected).max()))
    return largest


def _keep_labels(answers: Answers, batch: ViewBatch, index: int, answer: Tensors, right: Tensors) -> None:
    """Keep the first labels of an action that has labels of its own."""
    for head, name in _PROBABILITIES.items():
        label = batch.labels[head][index] if batch.labels else -1
        found = answer.get(name)
        if label >= 0 and found is not None and found.shape == right[name].shape:
            answers.rows[head].append((label, int(right[name].argmax()), int(found.argmax())))


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


def _structure(reference: Runner, candidate: Runner) -> Iterator[Check]:
    for expected, found in zip(reference.graphs, candidate.graphs, strict=True):
        yield from structure_checks(expected, found)


def _extreme(choose: Callable[[Iterable[float]], float], values: Sequence[float | None]) -> float | None:
    """Return the largest or smallest of the values; None where one of them is not finite."""
    finite = [value for value in values if value is not None]
    return choose(finite) if len(finite) == len(values) else None


def _count(items: Sequence[str], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 'es'}"
