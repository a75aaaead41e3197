"""How often each label and each confidence occurs among a network's answers, and how far two such populations differ.

The evaluation counts, the manifest carries the counts, and the server compares its own answers with them.

The difference is the population stability index, as in N. Siddiqi, "Credit Risk Scorecards" (2006):

    PSI = sum over bins of (p - q) ln(p / q)

p and q are the shares of a bin now and at the evaluation. By habit under 0.1 is no change and over 0.25 a large one.
Where nothing changed, n answers now and m at the evaluation give about (1/n + 1/m) times a chi-squared variable with
one degree of freedom less than there are bins (B. Yurdakul and J. Naranjo, "Statistical properties of the population
stability index", Journal of Risk Model Validation 14(4), 2020): with n = 500 and m = 321, 0.05 on average for
confidence and over 0.09 once in twenty. Every bin gets half an answer more on both sides (Jeffreys' prior), so that an
empty one is a large difference and not an infinite one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mvfoul.labels import VOCABULARIES, Head

CONFIDENCE_BINS: Final = 10
"""Of equal width from 0 to 1."""
MIN_REFERENCE: Final = 100
"""assumption: of fewer answers at the evaluation, chance alone gives an index that looks like a change."""
_PRIOR: Final = 0.5

Counts = NDArray[np.int64]


def confidence_bins(confidences: ArrayLike) -> NDArray[np.int64]:
    """Return the bin, 0 to `CONFIDENCE_BINS` - 1, of each confidence from 0 to 1."""
    places = (np.asarray(confidences, np.float64) * CONFIDENCE_BINS).astype(np.int64)
    return np.minimum(places, CONFIDENCE_BINS - 1)


def stability_index(now: ArrayLike, reference: ArrayLike) -> float:
    """Return the population stability index of two vectors of counts over the same bins."""
    p, q = (_shares(counts) for counts in (now, reference))
    return float(((p - q) * np.log(p / q)).sum())


def _shares(counts: ArrayLike) -> NDArray[np.float64]:
    filled = np.asarray(counts, np.float64) + _PRIOR
    return np.asarray(filled / filled.sum())


@dataclass(frozen=True)
class Population:
    """The answers of one head."""

    labels: tuple[int, ...]
    """How often each label was the most probable one, in the order of the vocabulary."""
    confidences: tuple[int, ...]
    """Answers by the probability of their label, in `CONFIDENCE_BINS` bins."""
    temperature: float = 1.0
    """With which the confidences were computed."""

    @property
    def answers(self) -> int:
        """How many."""
        return sum(self.labels)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def count_answers(labels: ArrayLike, confidences: ArrayLike, num_labels: int, temperature: float = 1.0) -> Population:
    """Count answers of one head: labels int `[A]`, their probabilities `[A]`."""
    by_label = np.bincount(np.asarray(labels, np.int64), minlength=num_labels)
    by_confidence = np.bincount(confidence_bins(confidences), minlength=CONFIDENCE_BINS)
    return Population(tuple(by_label.tolist()), tuple(by_confidence.tolist()), temperature)


def read_populations(evaluation: Mapping[str, Any]) -> dict[Head, Population]:
    """Return what a manifest's evaluation says of the answers; heads of which it says nothing usable are left out."""
    document = evaluation.get("answers")
    found = document if isinstance(document, Mapping) else {}
    populations = {head: _read(found.get(head), len(names)) for head, names in VOCABULARIES.items()}
    return {head: population for head, population in populations.items() if population is not None}


def _read(value: Any, num_labels: int) -> Population | None:
    if not isinstance(value, Mapping):
        return None
    labels, confidences = value.get("labels"), value.get("confidences")
    if not (_counts(labels, num_labels) and _counts(confidences, CONFIDENCE_BINS)):
        return None
    temperature = value.get("temperature", 1.0)
    return Population(tuple(labels), tuple(confidences), temperature)  # type: ignore[arg-type]


def _counts(value: Any, size: int) -> bool:
    return isinstance(value, Sequence) and len(value) == size and all(isinstance(n, int) and n >= 0 for n in value)
