"""From probabilities to an answer: labels, top-2, confidence, and abstaining when unsure.

One home for this, so that evaluation, the export's parity check and the server cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mvfoul.errors import LabelError
from mvfoul.labels import ACTION_CLASSES, OFFENCE_SEVERITIES, VOCABULARIES, FoulLabels, Head

DEFAULT_ABSTAIN_BELOW: Final = 0.5
"""assumption: under one half, the other answers together are more likely. Set your own from validation."""

_SUM_TOLERANCE = 1e-3  # of FP16 engines; float32 softmax is within 1e-6


@dataclass(frozen=True)
class Candidate:
    """One label and its probability."""

    label: str
    probability: float


@dataclass(frozen=True)
class HeadPrediction:
    """The answer of one head."""

    head: Head
    probabilities: tuple[float, ...]
    """In the order of the vocabulary."""
    abstain_below: float = DEFAULT_ABSTAIN_BELOW

    @property
    def ranking(self) -> tuple[int, ...]:
        """Label indices, most probable first; equal ones in the order of the vocabulary."""
        return tuple(sorted(range(len(self.probabilities)), key=lambda i: (-self.probabilities[i], i)))

    @property
    def index(self) -> int:
        """The most probable label's index."""
        return self.ranking[0]

    @property
    def label(self) -> str:
        """The most probable label, even where the head abstains."""
        return VOCABULARIES[self.head][self.index]

    @property
    def confidence(self) -> float:
        """The probability of `label`."""
        return self.probabilities[self.index]

    @property
    def abstains(self) -> bool:
        """Whether the confidence is below the threshold: show no decision."""
        return self.confidence < self.abstain_below

    @property
    def top2(self) -> tuple[Candidate, Candidate]:
        """The two most probable labels."""
        first, second = (Candidate(VOCABULARIES[self.head][i], self.probabilities[i]) for i in self.ranking[:2])
        return first, second

    def to_json(self) -> dict[str, Any]:
        """Return the `DECISION` object of one head."""
        return {
            "label": self.label,
            "confidence": self.confidence,
            "abstain": self.abstains,
            "top2": [{"label": c.label, "probability": c.probability} for c in self.top2],
        }


@dataclass(frozen=True)
class Prediction:
    """The two answers for one action, and how much each view counted."""

    action: HeadPrediction
    offence_severity: HeadPrediction
    view_weights: tuple[float, ...]
    """One per view, summing to 1."""

    @property
    def labels(self) -> FoulLabels:
        """Both answers as indices, whether or not a head abstains."""
        return FoulLabels(self.action.index, self.offence_severity.index)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that the server sends as `DECISION`."""
        return {
            "action": self.action.to_json(),
            "offence_severity": self.offence_severity.to_json(),
            "view_weights": list(self.view_weights),
        }


def make_prediction(
    action: ArrayLike,
    offence_severity: ArrayLike,
    view_weights: ArrayLike,
    *,
    abstain_below: float = DEFAULT_ABSTAIN_BELOW,
) -> Prediction:
    """Build the answer for one action.

    Args:
        action: Probabilities `[8]`.
        offence_severity: Probabilities `[4]`.
        view_weights: `[V]`, summing to 1.
        abstain_below: A head whose best probability is lower abstains; 0 never does.

    Raises:
        LabelError: A vector has the wrong length, is not finite, or does not sum to 1.
    """
    if not 0 <= abstain_below <= 1:
        raise LabelError(f"abstain_below is {abstain_below}; it must be from 0 to 1.")
    return Prediction(
        HeadPrediction(
            "action", _distribution("action probabilities", action, length=len(ACTION_CLASSES)), abstain_below
        ),
        HeadPrediction(
            "offence_severity",
            _distribution("offence_severity probabilities", offence_severity, length=len(OFFENCE_SEVERITIES)),
            abstain_below,
        ),
        _distribution("view weights", view_weights),
    )


def softmax(logits: ArrayLike, *, temperature: float = 1.0) -> NDArray[np.float32]:
    """Return probabilities over the last axis, in float32; shifted by the maximum so that it cannot overflow."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float32] = (exponentials / exponentials.sum(axis=-1, keepdims=True)).astype(np.float32)
    return probabilities


def _distribution(name: str, values: ArrayLike, *, length: int | None = None) -> tuple[float, ...]:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size != (length or vector.size) or not vector.size:
        raise LabelError(f"{name} have shape {vector.shape}; expected ({length or 'at least 1'},).")
    if not np.isfinite(vector).all() or vector.min() < 0 or abs(vector.sum() - 1) > _SUM_TOLERANCE:
        raise LabelError(f"{name} {vector.tolist()} are not a distribution; check the engine's output for NaN.")
    return tuple(vector.tolist())
