"""One training run, from its settings to its files: see `training.folder` for these, `training.fit` for the epochs."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvfoul.artifact import write_json
from mvfoul.errors import ConfigError
from training import resume
from training.assembly import Parts, assemble
from training.checkpoint import Checkpoint
from training.config import TrainConfig
from training.console import RunConsole, duration
from training.distributed import World, open_world
from training.fit import Fit, world_facts
from training.folder import CONFIG, HISTORY, LAST, clear, locked, make_folder
from training.learner import warnings_of
from training.plots import plot_history
from training.preemption import Stopped, StoppedAfterSaving, StopRequest, catch_signals
from training.progress import Progress
from training.tracking import missing_package, open_trackers

if TYPE_CHECKING:
    from training.exposition import RunMetrics


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    output: Path
    epochs: int
    """Finished ones; 0 means that there is no best.pth.tar."""
    best_epoch: int
    histories: dict[str, list[float]]
    exit_code: int
    """0, or that of the signal that stopped the run."""
    seconds: float

    @property
    def interrupted(self) -> bool:
        """Whether a signal stopped the run; --resume goes on."""
        return self.exit_code != 0


@dataclass(frozen=True)
class _Stage:
    """What every part of a run needs."""

    config: TrainConfig
    output: Path
    world: World
    stop: StopRequest
    console: RunConsole
    metrics: RunMetrics | None


def train(config: TrainConfig) -> RunResult:
    """Train, and write the files of the run. Every process that torchrun started calls this.

    SIGTERM and Ctrl-C end the run after the step in progress, with everything saved.

    Raises:
        MVFoulError: See `assemble`; besides, a loss is not finite, the output holds another run or is in use, the disk
            is full, or --resume does not fit what is there.
    """
    started = time.monotonic()
    try:
        with catch_signals() as stop, open_world(config.device) as world:
            console = RunConsole(quiet=not world.is_main)
            output = Path(world.from_main(str(make_folder(config)) if world.is_main else ""))
            with locked(output) if world.is_main else nullcontext(), _metrics(config, output, world) as metrics:
                return _train(_Stage(config, output, world, stop, console, metrics), started)
    except Stopped as error:  # before the first step, or by a second Ctrl-C
        RunConsole().say("\ninterrupted; what was saved before is whole, the rest is lost")
        return RunResult(config.output or Path(), 0, 0, {}, error.exit_code, time.monotonic() - started)


def _metrics(config: TrainConfig, output: Path, world: World) -> AbstractContextManager[RunMetrics | None]:
    """Open them before anything of the folder is changed: the port can be taken."""
    if not config.metrics.port or not world.is_main:
        return nullcontext()
    try:
        from training.exposition import served_metrics  # late: it needs a package that nothing else here does
    except ImportError as error:
        raise missing_package("--metrics.port", "prometheus_client", "training", error) from error
    return served_metrics(config, output.name)


def _train(stage: _Stage, started: float) -> RunResult:
    # Rank 0 alone reads the folder: on several machines the others need not see it.
    before: Checkpoint | None = stage.world.from_main(_find(stage) if stage.world.is_main else None)
    progress = Progress() if before is None else Progress.of(before, stage.config.loop.select)
    exit_code = 0
    if _is_finished(stage.config, progress):
        stage.console.say(f"{stage.output} holds a finished run: nothing to do. To train on, raise --loop.epochs.")
    else:
        try:
            _assemble_and_fit(stage, progress, before)
        except StoppedAfterSaving as error:
            exit_code = error.exit_code
    seconds = time.monotonic() - started
    if stage.world.is_main:
        _tell_the_end(stage, progress, exit_code, seconds)
    return RunResult(stage.output, progress.epochs, progress.best_epoch, progress.histories, exit_code, seconds)


def _find(stage: _Stage) -> Checkpoint | None:
    """Return the checkpoint to go on from; without one make room for a new run."""
    config, output, console = stage.config, stage.output, stage.console
    if not config.resume:
        clear(output, overwrite=config.overwrite)
        return None
    found = resume.find(output)
    if found is None:
        console.say(f"{output} holds no checkpoint: nothing to go on with, so the run starts")
        return None
    checkpoint, path = found
    notes = [*resume.check_settings(config, checkpoint, path)]
    notes += resume.what_changes(checkpoint, world_facts(config, stage.world))
    console.resumed(path, Progress.of(checkpoint, config.loop.select), notes)
    return checkpoint


def _is_finished(config: TrainConfig, progress: Progress) -> bool:
    return progress.epochs >= config.loop.epochs or progress.stale(config.loop.patience)


def _assemble_and_fit(stage: _Stage, progress: Progress, before: Checkpoint | None) -> None:
    config, output, console = stage.config, stage.output, stage.console
    parts = _assemble(stage)
    fit = Fit(config, output, stage.world, stage.stop, console, parts, progress)
    if before is not None:
        resume.check_data(before, fit.origin["data"])
        fit.restore(before)
    if stage.world.is_main:
        _write_config(fit)
        console.parts(config, parts, output)
    stage.stop.defer()
    if not stage.world.is_main:
        fit.run()
        return
    with open_trackers(config, output, histories=progress.histories) as trackers:
        fit.on_epoch = lambda values, epoch: trackers.log(values, epoch=epoch)
        if stage.metrics is not None:
            _expose(fit, stage.metrics)
        fit.run()


def _expose(fit: Fit, metrics: RunMetrics) -> None:
    """Let the metrics follow the run, from where it is."""
    track, epochs = fit.on_epoch, fit.progress.epochs

    def on_epoch(values: dict[str, float], epoch: int) -> None:
        track(values, epoch)
        metrics.epoch_done(values, epoch)

    metrics.watch(fit.parts.learner)
    if epochs:
        metrics.epoch_done({name: values[-1] for name, values in fit.progress.histories.items()}, epochs)
    fit.on_epoch, fit.on_start, fit.on_step = on_epoch, metrics.epoch_starts, metrics.step_done


def _assemble(stage: _Stage) -> Parts:
    with stage.console.bar("decoding", total=1) as bar:

        def show(what: str, done: int, total: int) -> None:
            bar.update(bar.task_ids[0], description=what, completed=done, total=total)

        return assemble(stage.config, show, world=stage.world)


def _write_config(fit: Fit) -> None:
    """Write every setting and where it came from; each start of the run adds its own line to `starts`."""
    path, progress, made = fit.output / CONFIG, fit.progress, fit.origin
    starts: list[Any] = []
    if progress.epochs or progress.step:
        with suppress(OSError, ValueError):  # not needed to go on
            starts = json.loads(path.read_text()).get("starts", [])
    now = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "epoch": progress.epochs, "step": progress.step}
    starts = [*starts, {**now, **made["world"], "code": made["code"], "versions": made["versions"]}]
    document = {
        "config": fit.config.to_json(),
        "clip": fit.parts.clip.to_json(),
        "versions": made["versions"],
        "code": made["code"],
        "data": made["data"],
        "starts": starts,
        "warnings": list(warnings_of(fit.config, fit.parts.learner)),
    }
    try:
        write_json(path, document)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error}. Free space or choose another --output.") from error


def _tell_the_end(stage: _Stage, progress: Progress, exit_code: int, seconds: float) -> None:
    config, output, console = stage.config, stage.output, stage.console
    if progress.epochs:
        plot_history(output / HISTORY, progress.histories, best_epoch=progress.best_epoch)
        console.finished(output=output, root=config.data.root, summary=_summary(config, progress, exit_code, seconds))
    else:
        console.say(f"\n{_stopped(progress)}")


def _summary(config: TrainConfig, progress: Progress, exit_code: int, seconds: float) -> str:
    best = 100 * progress.histories["valid/score"][progress.best_epoch - 1]
    text = (
        f"{progress.epochs} of {config.loop.epochs} epochs in {duration(seconds)}; the best is epoch "
        f"{progress.best_epoch} by {config.loop.select}: valid score {best:.1f}."
    )
    if exit_code:
        return f"{_stopped(progress)}\n{text}"
    if progress.epochs < config.loop.epochs:
        return f"Stopped early, {config.loop.patience} epochs after the best. {text}"
    return f"Done. {text}"


def _stopped(progress: Progress) -> str:
    if not progress.epochs and not progress.step:
        return "Interrupted before the first step; there is no checkpoint."
    return (
        f"Interrupted. {LAST} holds {progress.describe()}; nothing is lost. Go on with the same command, --output and "
        "--resume."
    )
