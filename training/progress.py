"""How far a run has come, within an epoch too: plain values that go into each checkpoint and come back from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from training.checkpoint import Checkpoint
from training.config import Select
from training.history import goodness_of
from training.loop import PassResult
from training.tracking import rows_of


@dataclass
class Progress:
    """How far a run has come."""

    goodness: list[float] = field(default_factory=list)
    """The validation result of each finished epoch; larger is better."""
    histories: dict[str, list[float]] = field(default_factory=dict)
    """One value per finished epoch and curve."""
    step: int = 0
    """Steps of the epoch in progress that are done."""
    seconds: float = 0.0
    """That the epoch in progress took so far."""
    partial: Mapping[str, Any] | None = None
    """What these steps saw, over all ranks: the state of a `PassResult`."""

    @property
    def epochs(self) -> int:
        """Finished ones."""
        return len(self.goodness)

    @property
    def best_epoch(self) -> int:
        """Counted from 1, of equal ones the first; 0 before the first epoch."""
        return 1 + self.goodness.index(max(self.goodness)) if self.goodness else 0

    def add(self, values: Mapping[str, float], goodness: float) -> bool:
        """Note a finished epoch; return whether it is the best so far."""
        self.goodness.append(goodness)
        for name, value in values.items():
            self.histories.setdefault(name, []).append(value)
        self.step, self.seconds, self.partial = 0, 0.0, None
        return self.best_epoch == self.epochs

    def stale(self, patience: int) -> bool:
        """Return whether `patience` epochs have passed since the best; never for 0."""
        return 0 < patience <= self.epochs - self.best_epoch

    def describe(self) -> str:
        """Return how far the run is, in words."""
        if not self.step:
            return f"epoch {self.epochs}"
        return (
            f"epoch {self.epochs} and step {self.step} of the next" if self.epochs else f"step {self.step} of epoch 1"
        )

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps besides the histories."""
        return {
            "goodness": list(self.goodness),
            "step": self.step,
            "seconds": self.seconds,
            "partial": self.partial,
        }

    @classmethod
    def of(cls, checkpoint: Checkpoint, select: Select) -> Progress:
        """Return the progress at a checkpoint; files of the first version have it in their histories only."""
        histories = {name: list(values) for name, values in checkpoint.histories.items()}
        kept = checkpoint.progress or {"goodness": [goodness_of(row, select) for row in rows_of(histories)]}
        return cls(histories=histories, **kept)


def goodness(select: Select, valid: PassResult) -> float:
    """Return the validation result that chooses the best epoch; larger is better."""
    if select == "loss":
        return -valid.loss
    return valid.metrics.score if select == "score" else valid.metrics.accuracy
