"""Accuracy, balanced accuracy and the score, all from confusion matrices.

A confusion matrix is int64 `[C, C]`: rows are labels, columns are predictions. Matrices add up over batches and ranks,
so every figure is exact whatever the batches were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mvfoul.labels import VOCABULARIES, Head

Confusion = NDArray[np.int64]


@dataclass(frozen=True)
class HeadMetrics:
    """Figures of one head, as fractions from 0 to 1."""

    accuracy: float
    balanced_accuracy: float
    """Mean recall of the classes that occur among the labels."""
    recalls: tuple[float, ...]
    """Per class; NaN where it does not occur."""

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers; a recall that does not exist is None."""
        recalls = [None if np.isnan(recall) else recall for recall in self.recalls]
        return {"accuracy": self.accuracy, "balanced_accuracy": self.balanced_accuracy, "recalls": recalls}


@dataclass(frozen=True)
class Metrics:
    """Figures of both heads."""

    heads: Mapping[Head, HeadMetrics]

    @property
    def score(self) -> float:
        """Mean of the two balanced accuracies."""
        return float(np.mean([head.balanced_accuracy for head in self.heads.values()]))

    @property
    def accuracy(self) -> float:
        """Mean of the two accuracies."""
        return float(np.mean([head.accuracy for head in self.heads.values()]))

    def to_json(self) -> dict[str, Any]:
        """Return `{"score": ..., "action": {...}, "offence_severity": {...}}`."""
        return {"score": self.score, **{str(name): head.to_json() for name, head in self.heads.items()}}


def empty_confusions() -> dict[Head, Confusion]:
    """Return a matrix of zeros per head."""
    return {head: np.zeros((len(names), len(names)), np.int64) for head, names in VOCABULARIES.items()}


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> Confusion:
    """Count pairs of label and prediction, each int `[B]`; negative labels mean "unlabelled" and do not count."""
    truth, answer = np.asarray(labels, np.int64), np.asarray(predictions, np.int64)
    labelled = truth >= 0
    pairs = truth[labelled] * num_classes + answer[labelled]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def head_metrics(confusion: Confusion) -> HeadMetrics:
    """Return the figures of one head.

    Raises:
        ValueError: The matrix is empty.
    """
    return metrics_from_counts(np.diagonal(confusion), confusion.sum(axis=1))


def metrics_from_counts(hits: NDArray[np.int64], occurrences: NDArray[np.int64]) -> HeadMetrics:
    """Return the figures of one head from the right answers and occurrences of each class, int64 `[C]`.

    Raises:
        ValueError: Nothing occurs.
    """
    if not occurrences.any():
        raise ValueError("no labelled action: accuracy is not defined.")
    recalls = np.divide(hits, occurrences, out=np.full(len(hits), np.nan), where=occurrences > 0)
    return HeadMetrics(
        accuracy=float(hits.sum() / occurrences.sum()),
        balanced_accuracy=float(recalls[occurrences > 0].mean()),
        recalls=tuple(recalls.tolist()),
    )


@dataclass(frozen=True)
class ClassMetrics:
    """Figures of one class, as fractions from 0 to 1; NaN where there is nothing to divide by."""

    precision: float
    """Share of right ones among the actions answered so; NaN where none was."""
    recall: float
    """Share of right answers among the actions labelled so; NaN where none is."""
    f1: float
    """Harmonic mean of both; 0 where there is no right answer, NaN where the class is neither labelled nor answered."""
    support: int
    """Actions labelled so."""

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers; what does not exist is None."""
        return {name: None if np.isnan(value) else value for name, value in vars(self).items()}


def class_metrics(confusion: Confusion) -> tuple[ClassMetrics, ...]:
    """Return the figures of each class, in the order of the matrix."""
    hits, labelled, answered = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)

    def share(parts: NDArray[np.int64], of: NDArray[np.int64]) -> list[float]:
        return list(np.divide(parts, of, out=np.full(len(parts), np.nan), where=of > 0).tolist())

    columns = (share(hits, answered), share(hits, labelled), share(2 * hits, labelled + answered), labelled.tolist())
    return tuple(ClassMetrics(*row) for row in zip(*columns, strict=True))


def metrics_of(confusions: Mapping[Head, Confusion]) -> Metrics:
    """Return the figures of both heads.

    Raises:
        ValueError: A matrix is empty.
    """
    return Metrics({head: head_metrics(confusion) for head, confusion in confusions.items()})
