"""Answers against annotations: every figure of an evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mvfoul.errors import AnnotationError
from mvfoul.labels import VOCABULARIES, Head, to_soccernet_json
from training.bootstrap import Bootstrap, bootstrap
from training.calibration import Reliability, probabilities, reliability
from training.dataset import MultiViewDataset
from training.evaluation.answers import Answers
from training.metrics import ClassMetrics, Metrics, class_metrics, confusion_matrix, head_metrics, metrics_of
from training.official import OfficialCount, official_count

_UNNAMED = "(not named)"


@dataclass(frozen=True)
class Mistake:
    """A wrong answer."""

    action_id: str
    head: Head
    labelled: str
    answered: str
    confidence: float
    label_probability: float


@dataclass(frozen=True)
class Evaluation:
    """Everything that is known of a checkpoint on a split."""

    split: str
    answers: Answers
    document: dict[str, Any]
    """SoccerNet's prediction JSON."""
    official: OfficialCount
    labelled: bool
    temperatures: Mapping[Head, float] = field(default_factory=lambda: dict.fromkeys(VOCABULARIES, 1.0))
    intervals: Bootstrap | None = None
    """Of `metrics`; None without labels, or where no resample is asked for."""

    @property
    def counted_officially(self) -> bool:
        """Whether any action counts for the official evaluator; none does where severities are not strings."""
        return len(self.official.labels["action"]) > 0

    @property
    def metrics(self) -> Metrics:
        """As the official evaluator counts; plain where nothing counts for it."""
        return self.official.metrics if self.counted_officially else self.plain

    @property
    def plain(self) -> Metrics:
        """Over the answered actions, whatever the annotations' spelling."""
        return metrics_of(self.answers.confusions())

    @property
    def single_view(self) -> Metrics:
        """Over views, each answered alone."""
        return metrics_of(self.answers.confusions(alone=True))

    @property
    def classes(self) -> Mapping[Head, tuple[ClassMetrics, ...]]:
        """Precision, recall, F1 and support per class, plain."""
        return {head: class_metrics(matrix) for head, matrix in self.answers.confusions().items()}

    def calibration(self) -> dict[Head, dict[str, Reliability]]:
        """Return how well probabilities fit, "before" and, where the checkpoint has temperatures, "after" these."""
        curves: dict[Head, dict[str, Reliability]] = {}
        for head in VOCABULARIES:
            labels = self.answers.labels(head)
            logits, labels = self.answers.logits(head)[labels >= 0], labels[labels >= 0]
            curves[head] = {"before": reliability(logits, labels)}
            if self.calibrated:
                curves[head]["after"] = reliability(logits, labels, self.temperatures[head])
        return curves

    @property
    def calibrated(self) -> bool:
        """Whether the checkpoint has temperatures of its own."""
        return any(temperature != 1.0 for temperature in self.temperatures.values())

    @property
    def cameras(self) -> Sequence[str]:
        """N: the camera type of each view, as annotated."""
        return self.answers.cameras

    def by_view_count(self) -> dict[str, dict[str, Any]]:
        """Return plain figures of the actions with 1, 2, ... views."""
        groups = np.asarray(self.answers.view_counts)
        answers = {head: self.answers.rankings(head)[:, 0] for head in VOCABULARIES}
        labels = {head: self.answers.labels(head) for head in VOCABULARIES}
        return {str(n): found for n in sorted(set(groups.tolist())) if (found := _group(labels, answers, groups == n))}

    def by_camera(self) -> dict[str, dict[str, Any]]:
        """Return plain figures of the views of each camera type, each view answered alone; the most frequent first."""
        groups = np.asarray([camera or _UNNAMED for camera in self.cameras], dtype=object)
        answers = {head: self.answers.view_answers(head) for head in VOCABULARIES}
        labels = {head: self.answers.view_labels(head) for head in VOCABULARIES}
        found = {str(name): _group(labels, answers, groups == name) for name in set(groups.tolist())}
        ordered = sorted(found.items(), key=lambda item: (-item[1].get("count", 0), item[0]))
        return {name: figures for name, figures in ordered if figures}

    def mistakes(self, most: int) -> list[Mistake]:
        """Return the wrong answers given with the highest confidence, after the temperatures."""
        found = []
        for head, names in VOCABULARIES.items():
            labels = self.answers.labels(head)
            shares = probabilities(self.answers.logits(head), self.temperatures[head])
            answers = self.answers.rankings(head)[:, 0]
            for row in np.flatnonzero((labels >= 0) & (answers != labels)).tolist():
                label, answer = int(labels[row]), int(answers[row])
                confidence, rest = float(shares[row, answer]), float(shares[row, label])
                found.append(Mistake(self.answers.action_ids[row], head, names[label], names[answer], confidence, rest))
        return sorted(found, key=lambda mistake: -mistake.confidence)[:most]


def judge(
    answers: Answers,
    dataset: MultiViewDataset,
    *,
    temperatures: Mapping[str, float] | None = None,
    resamples: int = 0,
    seed: int = 0,
) -> Evaluation:
    """Compare answers with the split's annotations.

    Raises:
        AnnotationError: No clip of the split could be decoded.
    """
    if not answers.action_ids:
        raise AnnotationError(
            f"not one clip of {dataset.annotations.folder} could be decoded; the first: {answers.skipped[0]}. "
            "Check the data: python -m training.check_data --root DIR"
        )
    document = to_soccernet_json(dataset.split, answers.predictions())
    raw = json.loads((dataset.annotations.folder / "annotations.json").read_text(encoding="utf-8"))
    labelled = bool((answers.labels("action") >= 0).any())
    official = official_count(raw, document)
    return Evaluation(
        dataset.split,
        answers,
        document,
        official,
        labelled,
        {head: float((temperatures or {}).get(head, 1.0)) for head in VOCABULARIES},
        _intervals(answers, official, resamples, seed) if labelled and resamples else None,
    )


def _intervals(answers: Answers, official: OfficialCount, resamples: int, seed: int) -> Bootstrap:
    """Draw from the actions that `Evaluation.metrics` counts."""
    if len(official.labels["action"]):
        return bootstrap(official.labels, official.right, resamples=resamples, seed=seed)
    labels = {head: answers.labels(head) for head in VOCABULARIES}
    kept = {head: column >= 0 for head, column in labels.items()}
    right = {head: (answers.rankings(head)[:, 0] == labels[head])[kept[head]] for head in VOCABULARIES}
    return bootstrap({head: labels[head][kept[head]] for head in VOCABULARIES}, right, resamples=resamples, seed=seed)


def _group(labels: Mapping[Head, Any], answers: Mapping[Head, Any], members: Any) -> dict[str, Any]:
    """Return {"count", "score", head: {"accuracy", "balanced_accuracy"}}, or {} where nothing is labelled."""
    figures: dict[str, Any] = {"count": int((members & (labels["action"] >= 0)).sum())}
    if not figures["count"]:
        return {}
    for head, names in VOCABULARIES.items():
        found = head_metrics(confusion_matrix(labels[head][members], answers[head][members], len(names)))
        figures[head] = {"accuracy": found.accuracy, "balanced_accuracy": found.balanced_accuracy}
    figures["score"] = math.fsum(figures[head]["balanced_accuracy"] for head in VOCABULARIES) / len(VOCABULARIES)
    return figures
