"""One pass over a split: training or evaluation.

Knows nothing of epochs, files or the terminal. A step of training is cut over the ranks, and each rank's share into
micro-batches; its gradient is that of the mean over all labelled actions of all of them, however it is cut.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from mvfoul.errors import DivergedError
from training.dataset import UNLABELLED, ActionBatch
from training.learner import Learner
from training.memory import explained, forget_peak, peak_bytes
from training.pass_result import PassResult

__all__ = ["OnBatch", "OnStep", "PassResult", "evaluate", "train_one_epoch"]

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
    """Take one optimiser step per `learner.accumulate` batches.

    The figures are those of the network as it was at each step, in training mode.

    Args:
        learner: What learns.
        batches: This rank's micro-batches from `start_step` on; a batch may be empty.
        on_batch: Called for each batch, after its step.
        result: Of the steps before `start_step`, where an epoch goes on.
        on_step: Called after each step.
        epoch: Counted from 0; with the seed, the step and the rank it decides what dropout draws.
        start_step: Steps of this epoch that are done already.

    Raises:
        DivergedError: A loss is not finite; the network holds the weights that gave it.
        OutOfMemoryError: The device has not enough memory for a micro-batch.
    """
    learner.start_epoch(epoch)
    forget_peak(learner.device)
    result = PassResult() if result is None else result
    remaining = iter(batches)
    for step in itertools.count(start_step):
        started = time.perf_counter()
        parts = list(itertools.islice(remaining, learner.accumulate))
        loaded = time.perf_counter()
        if not parts:
            break
        torch.manual_seed(_step_seed(learner.seed, epoch, step, learner.world.rank))
        _step(learner, parts, result)
        result.wait_seconds += loaded - started
        result.seconds += time.perf_counter() - started
        if on_batch is not None:
            for part in parts:
                on_batch(part, result)
        if on_step is not None and on_step(step + 1, result):
            break
    result.peak_memory_bytes = max(result.peak_memory_bytes, peak_bytes(learner.device))
    return result


@torch.inference_mode()
def evaluate(learner: Learner, batches: Iterable[ActionBatch], on_batch: OnBatch | None = None) -> PassResult:
    """Measure without learning, in evaluation mode: the moving average of the weights where there is one.

    Raises:
        DivergedError: A loss is not finite.
        OutOfMemoryError: The device has not enough memory for a batch.
    """
    network = learner.network_to_publish.eval()
    learner.loss.eval()
    # Running statistics of batch norms, where each rank has its own: those of the checkpoint are judged.
    learner.world.copy_from_main(network.buffers())
    result = PassResult()
    for batch in batches:
        result.note_skipped(batch)
        if len(batch):
            with explained(batch, learner.device, learning=False):
                moved = learner.prepare(batch)
                with learner.autocast():
                    logits = network(moved.views, moved.view_counts, moved.view_kinds)
            losses = learner.loss(logits, moved)
            _check_finite(losses.mean, moved)
            result.add(moved, logits, losses)
        if on_batch is not None:
            on_batch(batch, result)
    return result


def _step(learner: Learner, parts: Sequence[ActionBatch], result: PassResult) -> None:
    """Learn from this rank's share of a step; it can be empty where another rank's is not."""
    for part in parts:
        result.note_skipped(part)
    own = sum(int((part.action != UNLABELLED).sum()) for part in parts)
    labelled = int(learner.world.sum(torch.tensor(own)))
    if not labelled:
        return
    learner.optimizer.zero_grad(set_to_none=True)
    for number, part in enumerate(parts, start=1):
        with explained(part, learner.device, learning=True), learner.gradients_shared(last=number == len(parts)):
            _learn_from(learner, part, labelled, result)
    learner.take_step()
    learner.actions_seen += labelled


def _learn_from(learner: Learner, part: ActionBatch, labelled: int, result: PassResult) -> None:
    """Add the gradient of one micro-batch, of a step with so many labelled actions over all ranks."""
    moved = learner.prepare(part, augmented=True)
    logits = learner.forward(moved)
    if logits is None:
        return
    if isinstance(logits, Tensor):
        learner.scaler.scale(logits).backward()  # type: ignore[no-untyped-call]
        return
    losses = learner.loss(logits, moved)
    loss = (losses.action + losses.offence_severity) / labelled
    _check_finite(loss, moved)
    # DistributedDataParallel gives the mean over ranks where the sum is wanted.
    learner.scaler.scale(loss * learner.world.size).backward()
    result.add(moved, logits, losses)


def _step_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _check_finite(loss: Tensor, batch: ActionBatch) -> None:
    if not math.isfinite(value := float(loss.detach())):
        raise DivergedError(
            f"the loss is {value} at the actions {', '.join(batch.action_ids)}. Use a lower --optim.lr, "
            "--optim.max-grad-norm 1, --schedule.warmup-epochs 1, or --loop.amp bf16 or none."
        )
