"""The loss: a weighted cross-entropy or focal loss per head, and their sum.

Each head's loss is the weighted sum over the labelled actions divided by their *number*, not by the sum of their
weights. So it is the mean over actions whatever they are grouped into (batches, ranks, accumulated steps), and a class
weight also counts in a batch of one, where dividing by the sum of weights would cancel it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from mvfoul.labels import VOCABULARIES, Head
from training.config import LossConfig, given_weights
from training.dataset import UNLABELLED, ActionBatch
from training.model.network import FoulLogits


class LossSums(NamedTuple):
    """Sums over the labelled actions of a batch, f32 scalars, each times its task weight."""

    action: Tensor
    offence_severity: Tensor
    labelled: int
    """How many there are."""

    @property
    def mean(self) -> Tensor:
        """The loss of the batch: both heads, mean over actions. 0 where nothing is labelled."""
        return (self.action + self.offence_severity) / max(self.labelled, 1)


@dataclass(frozen=True, kw_only=True)
class HeadLoss:
    """How one head's answers are judged."""

    class_weights: Sequence[float] | None = None
    """One per class; None weighs every class 1."""
    task_weight: float = 1.0


class FoulLoss(nn.Module):
    """The loss of both heads. Label smoothing applies in training mode only."""

    def __init__(
        self,
        action: HeadLoss | None = None,
        offence_severity: HeadLoss | None = None,
        *,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
    ) -> None:
        """Take what each head weighs, the smoothing of both, and the exponent of the focal loss (0: cross-entropy)."""
        super().__init__()
        action, offence_severity = action or HeadLoss(), offence_severity or HeadLoss()
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma
        self.task_weights = {"action": action.task_weight, "offence_severity": offence_severity.task_weight}
        self.register_buffer("action_weights", _tensor(action.class_weights), persistent=False)
        self.register_buffer("offence_severity_weights", _tensor(offence_severity.class_weights), persistent=False)

    def forward(self, logits: FoulLogits, batch: ActionBatch) -> LossSums:
        """Compare logits `[B, 8]` and `[B, 4]` with the batch's labels; unlabelled actions (-1) do not count."""
        return LossSums(
            self._sum("action", logits.action, batch.action),
            self._sum("offence_severity", logits.offence_severity, batch.offence_severity),
            int((batch.action != UNLABELLED).sum()),
        )

    def _sum(self, head: Head, logits: Tensor, labels: Tensor) -> Tensor:
        weights = getattr(self, f"{head}_weights")
        smoothing = self.label_smoothing if self.training else 0.0
        return self.task_weights[head] * focal_loss_sum(
            logits.float(), labels, weights=weights, gamma=self.focal_gamma, label_smoothing=smoothing
        )


def focal_loss_sum(
    logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, gamma: float = 0.0, label_smoothing: float = 0.0
) -> Tensor:
    """Return the sum over labelled rows and classes c of `q_c w_c (1 - p_c)^gamma (-log p_c)`.

    `q` is the smoothed target: `1 - s + s / C` for the label, `s / C` for the others. With s = 0 this is the focal loss
    of Lin et al. (ICCV 2017, equation 5, the class weight for alpha); with gamma = 0 it is torch's `cross_entropy`, and
    computed by it.

    Args:
        logits: f32 `[B, C]`.
        labels: int64 `[B]`; -1 does not count.
        weights: f32 `[C]`; None weighs every class 1.
        gamma: 0 or more.
        label_smoothing: s, from 0 to below 1.
    """
    if gamma == 0:
        return nn.functional.cross_entropy(
            logits, labels, weight=weights, ignore_index=UNLABELLED, reduction="sum", label_smoothing=label_smoothing
        )
    labelled = labels != UNLABELLED
    logs = torch.log_softmax(logits[labelled], dim=1)
    classes = logits.shape[1]
    targets = nn.functional.one_hot(labels[labelled], classes) * (1 - label_smoothing) + label_smoothing / classes
    # Kept off 0: there the derivative of a power below 1 is infinite, and infinity times 0 is NaN.
    doubt = (-torch.expm1(logs)).clamp_min(torch.finfo(logs.dtype).tiny)
    terms = -targets * doubt**gamma * logs
    return (terms if weights is None else terms * weights).sum()


def build_loss(config: LossConfig, class_counts: Mapping[Head, Sequence[int]]) -> FoulLoss:
    """Build the loss.

    Args:
        config: The choice of loss and weights.
        class_counts: Of the training split, per head, in the vocabulary's order; weights by frequency come from it.

    Raises:
        ConfigError: Weights were given as values, and not one per class.
    """
    heads = {
        head: HeadLoss(
            class_weights=_class_weights(config, head, class_counts[head]), task_weight=config.task_weight(head)
        )
        for head in VOCABULARIES
    }
    return FoulLoss(**heads, label_smoothing=config.label_smoothing, focal_gamma=config.gamma)


def frequency_weights(counts: Sequence[int], weight_of: Callable[[int], float]) -> tuple[float, ...]:
    """Return class weights proportional to `weight_of(n_c)`, scaled so that the mean weight of a sample is 1.

    So the choice of weights changes neither the loss's size nor which learning rate suits it. A class that does not
    occur gets 1: it weighs nothing in training, and nothing special in validation.
    """
    raw = [weight_of(count) if count else 0.0 for count in counts]
    total = sum(weight * count for weight, count in zip(raw, counts, strict=True))
    return tuple(weight * sum(counts) / total if count else 1.0 for weight, count in zip(raw, counts, strict=True))


def inverse(count: int) -> float:
    """Weigh by 1 / n."""
    return 1 / count


def inverse_sqrt(count: int) -> float:
    """Weigh by 1 / sqrt(n)."""
    return 1 / math.sqrt(count)


def effective(beta: float) -> Callable[[int], float]:
    """Return the weighing by (1 - beta) / (1 - beta^n), the effective number of Cui et al. (CVPR 2019, equation 2).

    They scale the weights to sum to the number of classes; `frequency_weights` scales them as the others.
    """
    # expm1 and log1p: 1 - beta ** n cancels for beta near 1.
    return lambda count: (1 - beta) / -math.expm1(count * math.log1p(beta - 1))


_WEIGHINGS: Final = {"inverse": inverse, "inverse-sqrt": inverse_sqrt}


def _class_weights(config: LossConfig, head: Head, counts: Sequence[int]) -> tuple[float, ...] | None:
    choice = config.weights(head)
    if not isinstance(choice, str):
        return given_weights(choice, head)
    if choice == "none":
        return None
    return frequency_weights(counts, effective(config.beta) if choice == "effective" else _WEIGHINGS[choice])


def _tensor(weights: Sequence[float] | None) -> Tensor | None:
    return None if weights is None else torch.tensor(weights, dtype=torch.float32)
