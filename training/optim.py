"""The optimiser and the learning rate's schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from training.config import OptimConfig, ScheduleConfig

DEFAULT_STEP_SIZE = 10
DEFAULT_GAMMA = 0.5
DEFAULT_PATIENCE = 5


def build_optimizer(network: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimiser over all parameters, those of a backbone that is frozen at first included."""
    groups = parameter_groups(network, config)
    if config.name == "sgd":
        momentum = config.sgd_momentum
        return torch.optim.SGD(groups, lr=config.lr, momentum=momentum, nesterov=momentum > 0)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr)


def parameter_groups(network: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Return one group of parameters, or more where they differ in learning rate or decay.

    The first one has `config.lr`. With a learning rate of its own the backbone (the submodule of that name) comes after
    the rest; without decay of norms, biases and the scales of norms (all one-dimensional) come after what decays.
    """
    named = list(network.named_parameters())
    parts = [(config.lr, [parameter for _, parameter in named])]
    if config.backbone_lr is not None:
        rest = [parameter for name, parameter in named if not name.startswith("backbone.")]
        backbone = [parameter for name, parameter in named if name.startswith("backbone.")]
        parts = [(config.lr, rest), (config.backbone_lr, backbone)]
    return [
        {"params": parameters, "lr": lr, "weight_decay": decay}
        for lr, part in parts
        for parameters, decay in _by_decay(part, config)
    ]


def _by_decay(parameters: list[nn.Parameter], config: OptimConfig) -> list[tuple[list[nn.Parameter], float]]:
    if config.decay_norms:
        return [(parameters, config.weight_decay)]
    return [
        ([p for p in parameters if p.ndim > 1], config.weight_decay),
        ([p for p in parameters if p.ndim <= 1], 0.0),
    ]


class Schedule:
    """The learning rate of each epoch. Call `epoch_ended` once after each epoch."""

    def __init__(self, optimizer: torch.optim.Optimizer, config: ScheduleConfig, *, epochs: int, lr: float) -> None:
        """Set the learning rate of the first epoch.

        Args:
            optimizer: Its groups have the highest learning rate.
            config: The rule.
            epochs: Length of the run; the cosine ends there.
            lr: The highest learning rate, to which `min_lr` relates.
        """
        self._scheduler: LambdaLR | ReduceLROnPlateau
        gamma = DEFAULT_GAMMA if config.gamma is None else config.gamma
        if config.name == "plateau":
            # threshold 0: "better" means the same here as in the choice of best.pth.tar.
            self._scheduler = ReduceLROnPlateau(
                optimizer,
                mode="max",
                factor=gamma,
                patience=(config.patience or DEFAULT_PATIENCE) - 1,
                threshold=0.0,
                # In proportion: a backbone with a smaller rate must not be lifted to the others' lowest one.
                min_lr=[(config.min_lr or 0.0) * group["lr"] / lr for group in optimizer.param_groups],
            )
        else:
            self._scheduler = LambdaLR(optimizer, lambda epoch: lr_factor(config, epoch, epochs=epochs, lr=lr))
        # torch warns where a schedule moves before the first step of its optimiser: that can have been in another
        # process, and with fp16 the few steps of a short first epoch can all be skipped.
        optimizer._opt_called = True  # type: ignore[attr-defined]

    def epoch_ended(self, goodness: float) -> None:
        """Set the learning rate of the next epoch.

        Args:
            goodness: The validation result, larger is better; only plateau looks at it.
        """
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(goodness)
        else:
            self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for the checkpoint."""
        state: dict[str, Any] = self._scheduler.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._scheduler.load_state_dict(dict(state))


def lr_factor(config: ScheduleConfig, epoch: int, *, epochs: int, lr: float) -> float:
    """Return what the highest learning rate is multiplied by in `epoch`, counted from 0.

    With a warm-up of w epochs the first ones have 1/(w+1), 2/(w+1), ...; the rule then starts at epoch w.
    """
    if epoch < config.warmup_epochs:
        return (epoch + 1) / (config.warmup_epochs + 1)
    passed, length = epoch - config.warmup_epochs, epochs - config.warmup_epochs
    if config.name == "step":
        gamma = DEFAULT_GAMMA if config.gamma is None else config.gamma
        return float(gamma ** (passed // (config.step_size or DEFAULT_STEP_SIZE)))
    if config.name == "cosine":
        low = (config.min_lr or 0.0) / lr
        return low + (1 - low) * (1 + math.cos(math.pi * passed / length)) / 2
    return 1.0
