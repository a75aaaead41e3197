"""Whether a confidence of 80 % is right 80 times in 100, and one temperature per head that makes it so.

After Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017): the logits are divided by
the temperature with the least negative log-likelihood of validation actions. The most probable class stays the same.
The expected calibration error is over 15 bins of equal width of the highest probability, as there.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS: Final = 15
MIN_TEMPERATURE: Final = 0.05
MAX_TEMPERATURE: Final = 20.0
"""Where all answers are right, the likelihood rises without end as the temperature falls to 0; where the logits say
nothing it rises as the temperature grows. These bounds end both: beyond them a probability is 0 or 1, or all alike."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """Actions by the probability of their answer, in `BINS` bins of equal width from 0 to 1."""

    counts: tuple[int, ...]
    confidences: tuple[float, ...]
    """Mean probability of the answers of each bin; 0 where it is empty."""
    accuracies: tuple[float, ...]
    """Share of right answers of each bin; 0 where it is empty."""
    nll: float
    """Mean negative log-likelihood of the labels, in nats."""

    @property
    def ece(self) -> float:
        """Expected calibration error: mean distance of confidence and accuracy over the actions."""
        gaps = np.abs(np.subtract(self.confidences, self.accuracies))
        return float(np.average(gaps, weights=self.counts))

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {"ece": self.ece, **asdict(self)}


def probabilities(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Return float64 `[A, C]` from logits `[A, C]`."""
    scaled = np.asarray(logits, np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def reliability(logits: ArrayLike, labels: ArrayLike, temperature: float = 1.0) -> Reliability:
    """Return how well the probabilities of logits `[A, C]` fit labels int `[A]`, none negative.

    Raises:
        ValueError: There is no action.
    """
    truth = np.asarray(labels, np.int64)
    if not len(truth):
        raise ValueError("no labelled action: calibration is not defined.")
    shares = probabilities(logits, temperature)
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == truth
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    means = [np.bincount(place, values, BINS) / np.maximum(counts, 1) for values in (confidence, right.astype(float))]
    return Reliability(
        tuple(counts.tolist()),
        tuple(means[0].tolist()),
        tuple(means[1].tolist()),
        nll=_nll(np.asarray(logits, np.float64) / temperature, truth),
    )


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the temperature, from `MIN_TEMPERATURE` to `MAX_TEMPERATURE`, with the least negative log-likelihood.

    That is a convex function of 1 / temperature, so bisection of its slope finds the minimum.

    Args:
        logits: `[A, C]`.
        labels: int `[A]`, none negative.

    Raises:
        ValueError: There is no action.
    """
    values, truth = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    if not len(truth):
        raise ValueError("no labelled action: there is nothing to fit to.")
    own = values[np.arange(len(truth)), truth]

    def slope(inverse: float) -> float:
        return float(((probabilities(values, 1 / inverse) * values).sum(axis=1) - own).mean())

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    for _ in range(60):  # halves the logarithm of the range each time: to the last bit of a double
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / math.sqrt(low * high)


def _nll(logits: Floats, labels: NDArray[np.int64]) -> float:
    highest = logits.max(axis=1)
    total = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return float((total - logits[np.arange(len(labels)), labels]).mean())
