"""Epochs, batches, precision, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mvfoul.command import check_flag

Amp = Literal["none", "bf16", "fp16"]
Select = Literal["score", "accuracy", "loss"]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Epochs, batches, and when to stop."""

    epochs: int = 50
    """Times to go through train, at most."""
    batch_size: int = 8
    """Actions per step; each brings all its views."""
    patience: int = 10
    """Stop after this many epochs without a better validation result. 0: never stop early."""
    select: Select = "score"
    """The validation result that chooses best.pth.tar and stops early.
    score: mean of the two balanced accuracies.
    accuracy: mean of the two accuracies.
    loss: sum of the two losses."""
    amp: Amp = "none"
    """Precision of the backbone: none (float32), bf16, or fp16 (with loss scaling; needs a GPU)."""

    def __post_init__(self) -> None:
        check_flag(self.epochs >= 1, "--loop.epochs", self.epochs, "Use 1 or more.")
        check_flag(self.batch_size >= 1, "--loop.batch-size", self.batch_size, "Use 1 or more.")
        check_flag(self.patience >= 0, "--loop.patience", self.patience, "Use 0 (never stop early) or more.")
