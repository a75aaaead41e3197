"""How sure the score is: percentile bootstrap intervals over actions (Efron and Tibshirani, 1993, chapter 13).

Each resample draws as many actions as there are, with replacement, and both heads of an action together. A class that
does not come up in a resample is left out of that resample's mean recall, as a class that does not occur in a split is
left out of its balanced accuracy; how often that happened is reported. One red card is
missing from 37 % of the resamples.

What this does not cover: another seed of the training, and another choice of matches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mvfoul.labels import VOCABULARIES, Head

LEVEL: Final = 0.95
_CELLS: Final = 4_000_000  # resamples times actions at a time: 32 MB

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """From the 2.5th to the 97.5th percentile of the resamples; fractions from 0 to 1."""

    low: float
    high: float


@dataclass(frozen=True)
class Bootstrap:
    """Intervals of the figures of a split."""

    score: Interval
    accuracy: Mapping[Head, Interval]
    balanced_accuracy: Mapping[Head, Interval]
    resamples: int
    seed: int
    lacking: int
    """Resamples in which at least one class of the split did not come up."""

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers."""
        heads = {
            str(head): {
                "accuracy": asdict(self.accuracy[head]),
                "balanced_accuracy": asdict(self.balanced_accuracy[head]),
            }
            for head in VOCABULARIES
        }
        facts = {"level": LEVEL, "resamples": self.resamples, "seed": self.seed, "lacking_a_class": self.lacking}
        return {"score": asdict(self.score), **heads, **facts}


def bootstrap(
    labels: Mapping[Head, ArrayLike], right: Mapping[Head, ArrayLike], *, resamples: int, seed: int
) -> Bootstrap:
    """Return the intervals of accuracy, balanced accuracy and score.

    Args:
        labels: int `[A]` per head, none negative.
        right: bool `[A]` per head: whether the answer is right.
        resamples: How many; percentiles of fewer than about 1000 are coarse.
        seed: Of the draws.

    Raises:
        ValueError: There is no action.
    """
    actions = len(np.asarray(labels["action"]))
    if not actions:
        raise ValueError("no labelled action: there is nothing to draw from.")
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, resamples, chunk := max(1, _CELLS // actions)):
        draws = rng.multinomial(actions, np.full(actions, 1 / actions), size=min(chunk, resamples - start))
        parts.append({head: _figures(draws, labels[head], right[head], head) for head in VOCABULARIES})
    found = {head: [np.concatenate([part[head][k] for part in parts]) for k in range(3)] for head in VOCABULARIES}
    balanced = {head: columns[1] for head, columns in found.items()}
    return Bootstrap(
        score=_interval(np.mean(list(balanced.values()), axis=0)),
        accuracy={head: _interval(columns[0]) for head, columns in found.items()},
        balanced_accuracy={head: _interval(values) for head, values in balanced.items()},
        resamples=resamples,
        seed=seed,
        lacking=int(np.any([columns[2] for columns in found.values()], axis=0).sum()),
    )


def _figures(draws: NDArray[np.int64], labels: ArrayLike, right: ArrayLike, head: Head) -> tuple[Floats, Floats, Any]:
    """Return accuracy, balanced accuracy, and whether a class is lacking, each `[R]`, from `draws` `[R, A]`."""
    members = np.eye(len(VOCABULARIES[head]))[np.asarray(labels)]
    members = members[:, members.any(axis=0)]
    hits = draws @ (members * np.asarray(right, np.float64)[:, None])
    occurrences = draws @ members
    recalls = np.divide(hits, occurrences, out=np.zeros_like(hits), where=occurrences > 0)
    present = (occurrences > 0).sum(axis=1)
    return hits.sum(axis=1) / draws.sum(axis=1), recalls.sum(axis=1) / present, present < members.shape[1]


def _interval(values: Floats) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
