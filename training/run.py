"""One training run, from its settings to its files.

    <output>/best.pth.tar            the epoch with the best validation result
    <output>/last.pth.tar            the last finished epoch
    <output>/training_history.png    losses and accuracies of all epochs
    <output>/config.json             every setting, the clip specification and the versions

What this does not cover yet: several GPUs, going on with an interrupted run. Everything that these need besides the
parts is in `Progress`, and every checkpoint has it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from mvfoul.artifact import write_json
from mvfoul.errors import AnnotationError, ConfigError, DivergedError
from mvfoul.labels import VOCABULARIES
from training.assembly import Parts, assemble, versions
from training.checkpoint import Checkpoint, save_checkpoint
from training.config import Select, TrainConfig
from training.console import RunConsole, duration
from training.loop import PassResult, evaluate, train_one_epoch
from training.plots import plot_history

BEST = "best.pth.tar"
LAST = "last.pth.tar"
HISTORY = "training_history.png"
CONFIG = "config.json"


@dataclass
class Progress:
    """How far a run has come."""

    epochs: int = 0
    """Finished ones."""
    best_epoch: int = 0
    """Counted from 1; 0 before the first."""
    best_goodness: float = -math.inf
    histories: dict[str, list[float]] = field(default_factory=dict)

    def add(self, values: dict[str, float], goodness: float) -> bool:
        """Note a finished epoch; return whether it is the best so far."""
        self.epochs += 1
        for name, value in values.items():
            self.histories.setdefault(name, []).append(value)
        if goodness <= self.best_goodness:
            return False
        self.best_epoch, self.best_goodness = self.epochs, goodness
        return True

    def stale(self, patience: int) -> bool:
        """Return whether `patience` epochs have passed since the best; never for 0."""
        return 0 < patience <= self.epochs - self.best_epoch


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    output: Path
    epochs: int
    """Finished ones; 0 means that there is no checkpoint."""
    best_epoch: int
    histories: dict[str, list[float]]
    interrupted: bool
    seconds: float


def train(config: TrainConfig) -> RunResult:
    """Train, and write the files of the run.

    Ctrl-C ends the run after what is being written; the checkpoints of the last finished epoch are valid.

    Raises:
        MVFoulError: See `assemble`; besides, a loss is not finite, the output holds another run, or the disk is full.
    """
    started = time.monotonic()
    console = RunConsole()
    output = prepare_output(config)
    progress = Progress()
    interrupted = False
    try:
        parts = _assemble(config, console)
        _write_config(output, config, parts)
        console.parts(config, parts, output)
        _fit(config, parts, progress, output=output, console=console)
    except KeyboardInterrupt:
        interrupted = True
    except DivergedError as error:
        kept = f" {output / BEST} holds epoch {progress.best_epoch}." if progress.epochs else ""
        raise DivergedError(f"epoch {progress.epochs + 1}: {error}{kept}") from error
    seconds = time.monotonic() - started
    if progress.epochs:
        plot_history(output / HISTORY, progress.histories, best_epoch=progress.best_epoch)
        console.finished(output=output, root=config.data.root, summary=_summary(config, progress, interrupted, seconds))
    else:
        console.say("\ninterrupted before the first epoch was finished; there is no checkpoint")
    return RunResult(output, progress.epochs, progress.best_epoch, progress.histories, interrupted, seconds)


def prepare_output(config: TrainConfig) -> Path:
    """Make the folder of the run.

    Raises:
        ConfigError: It holds another run and may not be overwritten, or it cannot be made.
    """
    default = Path("runs") / f"{config.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    output = default if config.output is None else config.output
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be made: {error}. Choose another folder.") from error
    if not config.overwrite and (held := [name for name in (BEST, LAST) if (output / name).exists()]):
        raise ConfigError(
            f"--output {output} holds {' and '.join(held)} of another run. Choose another folder, or add --overwrite."
        )
    # A run that is interrupted early must not leave its settings beside another run's checkpoint.
    for name in (BEST, LAST, HISTORY, CONFIG):
        (output / name).unlink(missing_ok=True)
    return output


def goodness(select: Select, valid: PassResult) -> float:
    """Return the validation result that chooses the best epoch; larger is better."""
    if select == "loss":
        return -valid.loss
    return valid.metrics.score if select == "score" else valid.metrics.accuracy


def _assemble(config: TrainConfig, console: RunConsole) -> Parts:
    with console.bar("decoding", total=1) as bar:

        def show(what: str, done: int, total: int) -> None:
            bar.update(bar.task_ids[0], description=what, completed=done, total=total)

        return assemble(config, show)


def _fit(config: TrainConfig, parts: Parts, progress: Progress, *, output: Path, console: RunConsole) -> None:
    console.header()
    while progress.epochs < config.loop.epochs and not progress.stale(config.loop.patience):
        start = time.monotonic()
        lr = float(parts.learner.optimizer.param_groups[0]["lr"])
        train_result, valid_result = _passes(config, parts, progress.epochs, console)
        good = goodness(config.loop.select, valid_result)
        seconds = time.monotonic() - start
        values = {**_curves("train", train_result), **_curves("valid", valid_result), "lr": lr, "seconds": seconds}
        best = progress.add(values, good)
        parts.schedule.epoch_ended(good)
        _save(config, parts, progress, valid_result, output=output, best=best)
        number = f"{progress.epochs}/{config.loop.epochs}"
        console.epoch(number=number, results=(train_result, valid_result), lr=lr, best=best, seconds=seconds)


def _passes(config: TrainConfig, parts: Parts, epoch: int, console: RunConsole) -> tuple[PassResult, PassResult]:
    """Train and validate once; `epoch` counts from 0."""
    number = f"{epoch + 1}/{config.loop.epochs}"
    with console.actions(f"epoch {number} train", parts.train) as advance:
        trained = train_one_epoch(parts.learner, parts.train.batches(epoch), advance)
    with console.actions(f"epoch {number} valid", parts.valid) as advance:
        validated = evaluate(parts.learner, parts.valid.batches(epoch), advance)
    for name, result in (("train", trained), ("valid", validated)):
        if not result.labelled:
            raise AnnotationError(
                f"not one clip of {name} could be decoded; the first: {result.skipped[0]}. "
                "Check the data: python -m training.check_data --root DIR"
            )
    return trained, validated


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


def _save(
    config: TrainConfig, parts: Parts, progress: Progress, valid: PassResult, *, output: Path, best: bool
) -> None:
    learner = parts.learner
    checkpoint = Checkpoint(
        epoch=progress.epochs,
        backbone=config.model.backbone,
        aggregation=config.model.aggregation,
        clip=parts.clip,
        state_dict=learner.network.state_dict(),
        optimizer=learner.optimizer.state_dict(),
        scheduler=parts.schedule.state_dict(),
        scaler=learner.scaler.state_dict(),
        histories={name: list(values) for name, values in progress.histories.items()},
        config=config.to_json(),
        evaluation={"split": "valid", "loss": valid.loss, "actions": valid.labelled, **valid.metrics.to_json()},
        versions=versions(),
    )
    # The best one first: whoever reads last.pth.tar may rely on the best epoch that its histories tell of.
    if best:
        save_checkpoint(output / BEST, checkpoint)
    save_checkpoint(output / LAST, checkpoint)


def _write_config(output: Path, config: TrainConfig, parts: Parts) -> None:
    write_json(output / CONFIG, {"config": config.to_json(), "clip": parts.clip.to_json(), "versions": versions()})


def _summary(config: TrainConfig, progress: Progress, interrupted: bool, seconds: float) -> str:
    best = 100 * progress.histories["valid/score"][progress.best_epoch - 1]
    text = (
        f"{progress.epochs} of {config.loop.epochs} epochs in {duration(seconds)}; the best is epoch "
        f"{progress.best_epoch} by {config.loop.select}: valid score {best:.1f}."
    )
    if interrupted:
        return f"Interrupted. {text}\n{LAST} holds epoch {progress.epochs}; the epoch in progress is lost."
    if progress.epochs < config.loop.epochs:
        return f"Stopped early, {config.loop.patience} epochs after the best. {text}"
    return f"Done. {text}"
