"""What a step of training needs, built from the settings: network, loss, optimiser, precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final

import torch

from mvfoul.labels import Head
from training.config import TrainConfig
from training.distributed import World
from training.loss import FoulLoss, build_loss
from training.model.network import FoulNetwork
from training.optim import build_optimizer

_AMP_DTYPES: Final = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Learner:
    """What one step of training needs."""

    network: FoulNetwork
    loss: FoulLoss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Disabled unless the precision is fp16."""
    device: torch.device
    amp: torch.dtype | None = None
    """Of the backbone; None is float32."""
    max_grad_norm: float = 0.0
    world: World = field(default_factory=World)
    """The processes that share each step."""

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which the network runs."""
        return torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None)


def build_learner(
    config: TrainConfig,
    network: FoulNetwork,
    class_counts: Mapping[Head, Sequence[int]],
    device: torch.device,
    world: World | None = None,
) -> Learner:
    """Put the network on `device` and build what trains it.

    Args:
        config: The settings.
        network: As made or loaded.
        class_counts: Of the training split, per head, in the vocabulary's order.
        device: Where to train.
        world: The processes of the run; one where left out.

    Raises:
        ConfigError: A setting does not go with the network or the data.
    """
    network = network.to(device)
    return Learner(
        network=network,
        loss=build_loss(config.loss, class_counts).to(device),
        optimizer=build_optimizer(network, config.optim),
        scaler=torch.amp.GradScaler(device.type, enabled=config.loop.amp == "fp16"),
        device=device,
        amp=_AMP_DTYPES[config.loop.amp],
        max_grad_norm=config.optim.max_grad_norm,
        world=world or World(),
    )
