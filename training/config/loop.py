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
    """Actions per optimiser step, over all processes; each brings all its views."""
    accumulate: int = 1
    """Micro-batches that each process cuts its share of a step into: the same gradient with less memory."""
    patience: int = 10
    """Stop after this many epochs without a better validation result. 0: never stop early."""
    select: Select = "score"
    """The validation result that chooses best.pth.tar and stops early.
    score: mean of the two balanced accuracies.
    accuracy: mean of the two accuracies.
    loss: sum of the two losses."""
    amp: Amp = "none"
    """Precision of the backbone: none (float32), bf16, or fp16 (with loss scaling; needs a GPU)."""
    gradient_checkpointing: bool = False
    """Compute the inside of the backbone's blocks a second time instead of keeping it: less memory, the same result."""
    compile: bool = False
    """Compile the backbone for this machine: minutes at the start, faster steps; needs a C++ compiler."""
    channels_last: bool = False
    """Keep the channels of a pixel together in memory, which some convolutions are faster with."""
    ema_decay: float = 0.0
    """Measure and publish a moving average of the weights that keeps this share of itself per step, such as 0.999;
    less in the first steps. 0: the weights themselves."""

    def __post_init__(self) -> None:
        check_flag(self.epochs >= 1, "--loop.epochs", self.epochs, "Use 1 or more.")
        check_flag(self.batch_size >= 1, "--loop.batch-size", self.batch_size, "Use 1 or more.")
        check_flag(self.patience >= 0, "--loop.patience", self.patience, "Use 0 (never stop early) or more.")
        check_flag(self.accumulate >= 1, "--loop.accumulate", self.accumulate, "Use 1 (whole) or more.")
        check_flag(
            self.accumulate <= self.batch_size,
            "--loop.accumulate",
            self.accumulate,
            f"A step has --loop.batch-size {self.batch_size} actions; use at most that many parts.",
        )
        check_flag(0 <= self.ema_decay < 1, "--loop.ema-decay", self.ema_decay, "Use 0 (off) or 0.9 to 0.9999.")
