"""One pass over a split: training or evaluation.

Knows nothing of epochs, files or the terminal. Everything it returns adds up (sums and confusion matrices), so figures
over several ranks are a sum away.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvfoul.errors import DivergedError
from mvfoul.labels import VOCABULARIES, Head
from training.augment.pixels import augment
from training.dataset import ActionBatch
from training.distributed import World
from training.learner import Learner
from training.loss import LossSums
from training.metrics import Confusion, Metrics, confusion_matrix, empty_confusions, metrics_of
from training.model.network import FoulLogits


@dataclass
class PassResult:
    """What one pass over a split saw."""

    loss_sums: dict[Head, float] = field(default_factory=lambda: dict.fromkeys(VOCABULARIES, 0.0))
    confusions: dict[Head, Confusion] = field(default_factory=empty_confusions)
    labelled: int = 0
    """Actions that the sums and matrices count."""
    views: int = 0
    skipped: list[str] = field(default_factory=list)
    """One sentence per clip that could not be decoded."""
    left_out: list[str] = field(default_factory=list)
    """Ids of the actions without any view."""

    def add(self, batch: ActionBatch, logits: FoulLogits, losses: LossSums) -> None:
        """Count one batch."""
        for head in VOCABULARIES:
            labels, answers = getattr(batch, head), getattr(logits, head).argmax(dim=1)
            self.confusions[head] += confusion_matrix(labels.cpu(), answers.cpu(), len(VOCABULARIES[head]))
            self.loss_sums[head] += float(getattr(losses, head).detach())
        self.labelled += losses.labelled
        self.views += len(batch.views)

    def note_skipped(self, batch: ActionBatch) -> None:
        """Remember what of the batch could not be used."""
        self.skipped.extend(batch.skipped)
        self.left_out.extend(batch.left_out)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for the checkpoint of an epoch in progress."""
        confusions = {head: matrix.tolist() for head, matrix in self.confusions.items()}
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "confusions": confusions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting where `state` was taken."""
        for name, value in state.items():
            setattr(self, name, copy.deepcopy(value))
        self.confusions = {head: np.asarray(rows, np.int64) for head, rows in state["confusions"].items()}

    def over_ranks(self, world: World) -> PassResult:
        """Return the sum of all ranks' results."""
        results: list[PassResult] = world.gather(self)
        total, *others = copy.deepcopy(results)
        for other in others:
            for head in VOCABULARIES:
                total.loss_sums[head] += other.loss_sums[head]
                total.confusions[head] += other.confusions[head]
            total.labelled += other.labelled
            total.views += other.views
            total.skipped += other.skipped
            total.left_out += other.left_out
        return total

    @property
    def losses(self) -> dict[Head, float]:
        """Mean loss per action and head."""
        return {head: total / max(self.labelled, 1) for head, total in self.loss_sums.items()}

    @property
    def loss(self) -> float:
        """Sum of both heads' losses."""
        return sum(self.losses.values())

    @property
    def metrics(self) -> Metrics:
        """Accuracies and the score.

        Raises:
            ValueError: Not one labelled action.
        """
        return metrics_of(self.confusions)


OnBatch = Callable[[ActionBatch, PassResult], None]
OnStep = Callable[[int, PassResult], bool]
"""How many steps of the epoch are done, and what they saw; True ends the pass."""


def train_one_epoch(
    learner: Learner,
    batches: Iterable[ActionBatch],
    on_batch: OnBatch | None = None,
    *,
    result: PassResult | None = None,
    on_step: OnStep | None = None,
    epoch: int = 0,
    start_step: int = 0,
) -> PassResult:
    """Take one optimiser step per batch.

    The figures are those of the network as it was at each step, in training mode.

    Args:
        learner: What learns.
        batches: From `start_step` on.
        on_batch: Called after each batch.
        result: Of the steps before `start_step`, where an epoch goes on.
        on_step: Called after each step.
        epoch: Counted from 0; with the seed and the step it decides what dropout draws.
        start_step: Steps of this epoch that are done already.

    Raises:
        DivergedError: A loss is not finite; the network holds the weights that gave it.
    """
    learner.network.train()
    learner.loss.train()
    result = PassResult() if result is None else result
    for step, batch in enumerate(batches, start=start_step):
        result.note_skipped(batch)
        torch.manual_seed(_step_seed(epoch, step, learner.world.rank))
        if learner.world.any(len(batch) > 0):
            _step(learner, augment(batch.to(learner.device, non_blocking=True)), result)
        if on_batch is not None:
            on_batch(batch, result)
        if on_step is not None and on_step(step + 1, result):
            break
    return result


@torch.inference_mode()
def evaluate(learner: Learner, batches: Iterable[ActionBatch], on_batch: OnBatch | None = None) -> PassResult:
    """Measure without learning, in evaluation mode.

    Raises:
        DivergedError: A loss is not finite.
    """
    learner.network.eval()
    learner.loss.eval()
    # Running statistics of batch norms, where each rank has its own: those of the checkpoint are judged.
    learner.world.copy_from_main(learner.network.buffers())
    result = PassResult()
    for batch in batches:
        result.note_skipped(batch)
        if len(batch):
            moved = batch.to(learner.device, non_blocking=True)
            with learner.autocast():
                logits = learner.network(moved.views, moved.view_counts)
            losses = learner.loss(logits, moved)
            _check_finite(losses.mean, moved)
            result.add(moved, logits, losses)
        if on_batch is not None:
            on_batch(batch, result)
    return result


def _step(learner: Learner, batch: ActionBatch, result: PassResult) -> None:
    """Learn from this rank's share of a step; it can be empty where another rank's is not."""
    learner.optimizer.zero_grad(set_to_none=True)
    world, losses = learner.world, None
    if len(batch):
        with learner.autocast():
            logits = learner.network(batch.views, batch.view_counts)
        losses = learner.loss(logits, batch)
        result.add(batch, logits, losses)
    # The mean over the actions of all ranks, so that the number of ranks changes nothing.
    labelled = int(world.sum(torch.tensor(losses.labelled if losses else 0)))
    if losses:
        loss = (losses.action + losses.offence_severity) / max(labelled, 1)
        _check_finite(loss, batch)
        learner.scaler.scale(loss).backward()
    world.sum_gradients(learner.network.parameters())
    if learner.max_grad_norm > 0:
        learner.scaler.unscale_(learner.optimizer)
        torch.nn.utils.clip_grad_norm_(learner.network.parameters(), learner.max_grad_norm)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()


def _step_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _check_finite(loss: Tensor, batch: ActionBatch) -> None:
    if not math.isfinite(value := float(loss.detach())):
        raise DivergedError(
            f"the loss is {value} at the actions {', '.join(batch.action_ids)}. Use a lower --optim.lr, "
            "--optim.max-grad-norm 1, --schedule.warmup-epochs 1, or --loop.amp bf16 or none."
        )
