"""The epochs of a run: train, validate, save; go on in the middle of an epoch; stop when asked.

All ranks go through the same calls in the same order, because they agree on each decision. Only rank 0 writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mvfoul.errors import AnnotationError, DivergedError
from mvfoul.labels import VOCABULARIES
from training.assembly import Parts
from training.checkpoint import Checkpoint, save_checkpoint
from training.config import TrainConfig
from training.console import RunConsole
from training.dataset import ActionBatch
from training.distributed import World
from training.folder import BEST, LAST, epoch_file, kept_epochs, remove_epochs_but
from training.loop import PassResult, evaluate, train_one_epoch
from training.preemption import StoppedAfterSaving, StopRequest
from training.progress import Progress, goodness
from training.provenance import data_identity, git_revision, versions

OnPass = Callable[[int, PassResult], None]


@dataclass
class Fit:
    """One run at work."""

    config: TrainConfig
    output: Path
    world: World
    stop: StopRequest
    console: RunConsole
    parts: Parts
    progress: Progress
    on_epoch: Callable[[dict[str, float], int], None] = lambda _values, _epoch: None
    """Called on rank 0 with the figures of each finished epoch, and its number from 1, after it was saved."""
    on_start: OnPass = lambda _step, _result: None
    """Called where an epoch starts or goes on, with its steps that are done, and what they saw."""
    on_step: OnPass = lambda _step, _result: None
    """Called after each step, with the steps of the epoch that are done, and what they saw on this rank."""
    _saved_at: float = field(default_factory=time.monotonic)
    _epoch_started: float = 0.0
    origin: dict[str, Any] = field(init=False)
    """What made the run, besides its settings: fields of `Checkpoint`, the same in all of its checkpoints."""

    def __post_init__(self) -> None:
        splits = {"train": self.parts.train, "valid": self.parts.valid}
        self.origin = {
            "versions": versions(),
            "world": world_facts(self.config, self.world),
            "data": {name: data_identity(split.dataset.annotations) for name, split in splits.items()},
            "code": git_revision(),
        }

    def run(self) -> None:
        """Go through the epochs that are left.

        Raises:
            StoppedAfterSaving: A signal came.
            DivergedError, AnnotationError, CheckpointError: See `training.run.train`.
        """
        loop = self.config.loop
        self.console.header()
        while self.progress.epochs < loop.epochs and not self.progress.stale(loop.patience):
            self._stop_if_asked()
            self._epoch_started = time.monotonic() - self.progress.seconds
            try:
                self._epoch()
            except DivergedError as error:
                raise DivergedError(f"epoch {self.progress.epochs + 1}: {error}{self._kept()}") from error

    def _epoch(self) -> None:
        lr = float(self.parts.learner.optimizer.param_groups[0]["lr"])
        trained = self._train()
        validated = self._validate()
        for name, result in (("train", trained), ("valid", validated)):
            if not result.labelled:
                raise AnnotationError(
                    f"not one clip of {name} could be decoded; the first: {result.skipped[0]}. "
                    "Check the data: python -m training.check_data --root DIR"
                )
        good = goodness(self.config.loop.select, validated)
        seconds = time.monotonic() - self._epoch_started
        values = {**_curves("train", trained), **_curves("valid", validated), **trained.system(), "lr": lr}
        values["seconds"] = seconds
        best = self.progress.add(values, good)
        self.parts.schedule.epoch_ended(good)
        self._save_epoch(validated, best=best)
        number = f"{self.progress.epochs}/{self.config.loop.epochs}"
        self.console.epoch(number=number, results=(trained, validated), lr=lr, best=best, seconds=seconds)
        if self.progress.epochs == 1:
            self.console.say(f"          {trained.cost()}")
        if self.world.is_main:
            self.on_epoch(values, self.progress.epochs)

    def _train(self) -> PassResult:
        epoch, start = self.progress.epochs, self.progress.step
        split = self.parts.train
        with self.console.actions(f"epoch {epoch + 1}/{self.config.loop.epochs} train", split) as advance:
            result = PassResult()
            # The sums of all ranks go on at one of them.
            if self.progress.partial is not None and self.world.is_main:
                result.load_state_dict(self.progress.partial)
            self.on_start(start, result)
            result = train_one_epoch(
                self.parts.learner,
                split.batches(epoch, start),
                advance,
                result=result,
                on_step=self._after_step,
                epoch=epoch,
                start_step=start,
            )
        total = result.over_ranks(self.world)
        self.progress.step, self.progress.partial = split.sampler.steps, total.state_dict()
        return total

    def _validate(self) -> PassResult:
        split, number = self.parts.valid, f"{self.progress.epochs + 1}/{self.config.loop.epochs}"
        with self.console.actions(f"epoch {number} valid", split) as advance:

            def look(batch: ActionBatch, result: PassResult) -> None:
                advance(batch, result)
                if self.world.any(self.stop.requested):
                    self._save_step()
                    self._stop_if_asked()

            return evaluate(self.parts.learner, split.batches(0), look).over_ranks(self.world)

    def _after_step(self, step: int, result: PassResult) -> bool:
        self.on_step(step, result)
        save = self.config.save
        by_time = save.every_minutes and time.monotonic() - self._saved_at > 60 * save.every_minutes
        by_step = save.every_steps and step % save.every_steps == 0
        asked = self.world.sum(torch.tensor([self.stop.requested, bool(by_time) and self.world.is_main]).int())
        if not (by_step or asked.any()):
            return False
        self.progress.step, self.progress.partial = step, result.over_ranks(self.world).state_dict()
        self._save_step()
        self._stop_if_asked()
        return False

    def _stop_if_asked(self) -> None:
        """Leave on all ranks where a signal came to one of them.

        Raises:
            StoppedAfterSaving: It did.
        """
        if number := max(self.world.gather(self.stop.signal)):
            raise StoppedAfterSaving(number)

    def _save_epoch(self, valid: PassResult, *, best: bool) -> None:
        kept = kept_epochs(self.progress.goodness, self.config.save)
        # The best one first: whoever reads last.pth.tar may rely on the best epoch that its histories tell of.
        also = [BEST] if best else []
        also += [epoch_file(self.progress.epochs)] if self.progress.epochs in kept else []
        answers = {str(head): seen.to_json() for head, seen in valid.populations.items()}
        figures = {"split": "valid", "loss": valid.loss, "actions": valid.labelled, "answers": answers}
        self._save({**figures, **valid.metrics.to_json()}, also)
        if self.world.is_main:
            remove_epochs_but(self.output, kept)

    def _save_step(self) -> None:
        """Save within an epoch. Nothing was measured of these weights, so the checkpoint has no evaluation."""
        self.progress.seconds = time.monotonic() - self._epoch_started
        self._save({}, [])

    def _save(self, evaluation: dict[str, Any], also: list[str]) -> None:
        if self.world.is_main:
            save_checkpoint(self.output / LAST, self.checkpoint(evaluation), also=[self.output / name for name in also])
        self._saved_at = time.monotonic()

    def checkpoint(self, evaluation: dict[str, Any]) -> Checkpoint:
        """Return everything of the run as it is now."""
        config, parts, learner = self.config, self.parts, self.parts.learner
        return Checkpoint(
            epoch=self.progress.epochs,
            backbone=config.model.backbone,
            aggregation=config.model.aggregation,
            clip=parts.clip,
            options=learner.network.options,
            **learner.state_dict(),
            scheduler=parts.schedule.state_dict(),
            histories={name: list(values) for name, values in self.progress.histories.items()},
            config=config.to_json(),
            evaluation=evaluation,
            progress=self.progress.to_json(),
            **self.origin,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over weights, optimiser and schedule; the progress is the caller's."""
        self.parts.learner.load_state_dict(vars(checkpoint))
        self.parts.schedule.load_state_dict(checkpoint.scheduler or {})

    def _kept(self) -> str:
        best = self.progress.best_epoch
        return f" {self.output / BEST} holds epoch {best}." if best else ""


def world_facts(config: TrainConfig, world: World) -> dict[str, int]:
    """Return what of the processes decides the last digits of a loss."""
    return {"size": world.size, "accumulate": config.loop.accumulate}


def _curves(split: str, result: PassResult) -> dict[str, float]:
    metrics = result.metrics
    values = {f"{split}/loss": result.loss, f"{split}/score": metrics.score}
    for head in VOCABULARIES:
        values[f"{split}/{head}/loss"] = result.losses[head]
        values[f"{split}/{head}/accuracy"] = metrics.heads[head].accuracy
        values[f"{split}/{head}/balanced_accuracy"] = metrics.heads[head].balanced_accuracy
    values[f"{split}/skipped_clips"] = float(len(result.skipped))
    values[f"{split}/actions_left_out"] = float(len(result.left_out))
    return values
