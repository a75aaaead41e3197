"""Random changes to training views: one view, uint8 `[3, T, H, W]`, to the same. The same for all frames of a view.

They draw from torch's global generator, which `MultiViewDataset` seeds for each action and epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors a view left to right."""

    probability: float = 0.5

    def __call__(self, view: Tensor) -> Tensor:
        """Return the view, or its mirror image."""
        return view.flip(-1) if float(torch.rand(())) < self.probability else view
