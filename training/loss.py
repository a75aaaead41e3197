"""The loss: a weighted cross-entropy per head, and their sum.

Each head's loss is the weighted sum over the labelled actions divided by their *number*, not by the sum of their
weights. So it is the mean over actions whatever they are grouped into (batches, ranks, accumulated steps), and a class
weight also counts in a batch of one, where dividing by the sum of weights would cancel it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mvfoul.labels import VOCABULARIES, Head
from training.config import LossConfig, given_weights
from training.dataset import UNLABELLED, ActionBatch
from training.model.network import FoulLogits


class LossSums(NamedTuple):
    """Sums over the labelled actions of a batch, f32 scalars."""

    action: Tensor
    offence_severity: Tensor
    labelled: int
    """How many there are."""

    @property
    def mean(self) -> Tensor:
        """The loss of the batch: both heads, mean over actions. 0 where nothing is labelled."""
        return (self.action + self.offence_severity) / max(self.labelled, 1)


class FoulLoss(nn.Module):
    """Cross-entropy of both heads. Label smoothing applies in training mode only."""

    def __init__(
        self,
        action_weights: Sequence[float] | None = None,
        offence_severity_weights: Sequence[float] | None = None,
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        """Take the class weights, `[8]` and `[4]`; None weighs every class 1."""
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("action_weights", _tensor(action_weights), persistent=False)
        self.register_buffer("offence_severity_weights", _tensor(offence_severity_weights), persistent=False)

    def forward(self, logits: FoulLogits, batch: ActionBatch) -> LossSums:
        """Compare logits `[B, 8]` and `[B, 4]` with the batch's labels; unlabelled actions (-1) do not count."""
        return LossSums(
            self._sum(logits.action, batch.action, self.action_weights),
            self._sum(logits.offence_severity, batch.offence_severity, self.offence_severity_weights),
            int((batch.action != UNLABELLED).sum()),
        )

    def _sum(self, logits: Tensor, labels: Tensor, weights: Tensor | nn.Module | None) -> Tensor:
        return nn.functional.cross_entropy(
            logits.float(),
            labels,
            weight=weights if isinstance(weights, Tensor) else None,
            ignore_index=UNLABELLED,
            reduction="sum",
            label_smoothing=self.label_smoothing if self.training else 0.0,
        )


def build_loss(config: LossConfig, class_counts: Mapping[Head, Sequence[int]]) -> FoulLoss:
    """Build the loss.

    Args:
        config: The choice of weights.
        class_counts: Of the training split, per head, in the vocabulary's order; `inverse` weights come from it.

    Raises:
        ConfigError: Weights were given as values, and not one per class.
    """
    weights = {head: _class_weights(config.weights(head), head, class_counts[head]) for head in VOCABULARIES}
    return FoulLoss(weights["action"], weights["offence_severity"], label_smoothing=config.label_smoothing)


def inverse_frequency(counts: Sequence[int]) -> tuple[float, ...]:
    """Return weights n / (k * n_c), for n samples in k classes that occur: the mean weight of a sample is 1.

    A class that does not occur gets 1: it weighs nothing in training, and nothing special in validation.
    """
    present = sum(1 for count in counts if count)
    return tuple(sum(counts) / (present * count) if count else 1.0 for count in counts)


def _class_weights(choice: str | Sequence[float], head: Head, counts: Sequence[int]) -> tuple[float, ...] | None:
    if not isinstance(choice, str):
        return given_weights(choice, head)
    return inverse_frequency(counts) if choice == "inverse" else None


def _tensor(weights: Sequence[float] | None) -> Tensor | None:
    return None if weights is None else torch.tensor(weights, dtype=torch.float32)
