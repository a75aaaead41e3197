"""A moving average of the weights, which is often better than the last weights and jumps less from epoch to epoch."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from training.model.network import FoulNetwork


class MovingAverage:
    """An exponential moving average of a network's parameters and floating-point buffers; other buffers are copied.

    The decay of the n-th update is min(decay, (1 + n) / (10 + n)), n from 0, so that the first weights are forgotten
    soon (the rule of TensorFlow's `ExponentialMovingAverage` with `num_updates`).
    """

    def __init__(self, network: FoulNetwork, decay: float) -> None:
        """Start at the network's weights.

        Args:
            network: Copied; the copy stays in evaluation mode.
            decay: What the average keeps of itself per update at most, from 0 to below 1.
        """
        self.network: FoulNetwork = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, network: FoulNetwork) -> None:
        """Move towards the weights of `network`."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine, others = self.network.state_dict(), network.state_dict()
        floating = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_([mine[name] for name in floating], [others[name] for name in floating], 1 - decay)
        for name in mine.keys() - set(floating):
            mine[name].copy_(others[name])
        self.updates += 1

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Go on with an average of so many updates."""
        self.network.load_state_dict(weights)
        self.updates = updates
