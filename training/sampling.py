"""How often each training action is drawn, so that the classes of one head come equally often.

Only weights: the drawing, with its seed, its epoch and its ranks, is the sampler's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mvfoul.labels import Head
from training.annotations import ActionRecord
from training.config import LossConfig


def sampling_weights(config: LossConfig, records: Sequence[ActionRecord]) -> tuple[float, ...] | None:
    """Return one weight per action of the training split, or None where every action is drawn once per epoch."""
    if config.balanced_sampling == "none":
        return None
    head: Head = "action" if config.balanced_sampling == "action" else "offence_severity"
    return balanced_weights([None if r.labels is None else getattr(r.labels, head) for r in records])


def balanced_weights(labels: Sequence[int | None]) -> tuple[float, ...]:
    """Return the probability of each action: equal for all classes that occur, and within a class for all its actions.

    Actions without a label are drawn as rarely as they occur: they share `unlabelled / all` of the draws.
    """
    counts = Counter(labels)
    classes = sum(1 for label in counts if label is not None)
    unlabelled = counts[None] / len(labels) if labels else 0.0
    return tuple(
        unlabelled / counts[None] if label is None else (1 - unlabelled) / (classes * counts[label]) for label in labels
    )
