"""The optimiser and the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mvfoul.command import check_flag

_DEFAULT_MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """adamw; adam (weight decay as an L2 term of the gradient); sgd (with Nesterov momentum)."""
    lr: float = 1e-4
    """Learning rate, at its highest."""
    backbone_lr: float | None = None
    """Learning rate of the backbone, at its highest, where it is to differ; lr is then that of the rest."""
    freeze_epochs: int = 0
    """First epochs, in which the backbone does not learn: neither its weights nor the statistics of its batch norms."""
    weight_decay: float = 0.01
    """Weight decay."""
    decay_norms: bool = True
    """Whether biases and the scales of normalisation layers decay too."""
    momentum: float | None = None
    """Momentum of sgd, and only of sgd; 0.9 where left out."""
    max_grad_norm: float = 0.0
    """Scale gradients down to this norm where theirs is larger. 0: never."""

    def __post_init__(self) -> None:
        check_flag(
            0 < self.lr < math.inf, "--optim.lr", self.lr, "Nothing is learnt; use a value above 0, such as 1e-4."
        )
        check_flag(
            self.backbone_lr is None or 0 < self.backbone_lr < math.inf,
            "--optim.backbone-lr",
            self.backbone_lr,
            "Use a value above 0, such as 1e-5; --optim.freeze-epochs keeps the backbone as it is.",
        )
        check_flag(self.freeze_epochs >= 0, "--optim.freeze-epochs", self.freeze_epochs, "Use 0 (never) or more.")
        check_flag(0 <= self.weight_decay < math.inf, "--optim.weight-decay", self.weight_decay, "Use 0 or more.")
        check_flag(
            self.momentum is None or self.name == "sgd",
            "--optim.momentum",
            self.momentum,
            f"{self.name} has none; use --optim.name sgd, or --optim.momentum None.",
        )
        check_flag(0 <= self.sgd_momentum < 1, "--optim.momentum", self.momentum, "Use 0 to 0.99.")
        check_flag(self.max_grad_norm >= 0, "--optim.max-grad-norm", self.max_grad_norm, "Use 0 (off) or more.")

    @property
    def sgd_momentum(self) -> float:
        """The momentum where the optimiser is sgd."""
        return _DEFAULT_MOMENTUM if self.momentum is None else self.momentum


_SCHEDULE_OPTIONS: dict[str, tuple[str, ...]] = {
    "constant": (),
    "step": ("step_size", "gamma"),
    "cosine": ("min_lr",),
    "plateau": ("gamma", "patience", "min_lr"),
}


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate changes from epoch to epoch."""

    name: Literal["step", "cosine", "plateau", "constant"] = "step"
    """The rule.
    step: times gamma every step-size epochs.
    cosine: down to min-lr after the last epoch.
    plateau: times gamma after patience epochs without a better validation result.
    constant: it does not."""
    step_size: int | None = None
    """Epochs between the steps of step; 10 where left out."""
    gamma: float | None = None
    """Factor of step and plateau; 0.5 where left out."""
    patience: int | None = None
    """Epochs that plateau waits; 5 where left out."""
    min_lr: float | None = None
    """Lowest learning rate of cosine and plateau; 0 where left out."""
    warmup_epochs: int = 0
    """First epochs, in which the learning rate rises evenly; not with plateau."""

    def __post_init__(self) -> None:
        for option in ("step_size", "gamma", "patience", "min_lr"):
            value, flag = getattr(self, option), f"--schedule.{option.replace('_', '-')}"
            used = value is None or option in _SCHEDULE_OPTIONS[self.name]
            check_flag(used, flag, value, f"{self.name} does not use it; take it back with {flag} None.")
        check_flag(
            self.step_size is None or self.step_size >= 1, "--schedule.step-size", self.step_size, "Use 1 or more."
        )
        check_flag(self.gamma is None or 0 < self.gamma < 1, "--schedule.gamma", self.gamma, "Use 0.01 to 0.99.")
        check_flag(self.patience is None or self.patience >= 1, "--schedule.patience", self.patience, "Use 1 or more.")
        check_flag(self.min_lr is None or self.min_lr >= 0, "--schedule.min-lr", self.min_lr, "Use 0 or more.")
        good = self.warmup_epochs >= 0 and (self.warmup_epochs == 0 or self.name != "plateau")
        check_flag(good, "--schedule.warmup-epochs", self.warmup_epochs, "Use 0 or more; plateau takes 0 only.")
