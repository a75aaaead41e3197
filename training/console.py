"""What a run says on the terminal: its parts, a progress bar, one line per epoch, and where everything is."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mvfoul.labels import VOCABULARIES
from training.assembly import Parts, Split
from training.config import TrainConfig
from training.dataset import ActionBatch
from training.learner import warnings_of
from training.loop import OnBatch, PassResult
from training.progress import Progress

_HEADS = ("action", "offence_severity")


class RunConsole:
    """The terminal of a run. Bars only appear where there is a terminal; lines always."""

    def __init__(self, *, quiet: bool = False) -> None:
        """Open the terminal; a quiet one says nothing: of several processes one talks."""
        self._console = Console(highlight=False, soft_wrap=True, quiet=quiet)

    def say(self, text: str = "") -> None:
        """Print text as it is."""
        self._console.print(text, markup=False)

    def parts(self, config: TrainConfig, parts: Parts, output: Path) -> None:
        """Say what will be trained on what."""
        learner = parts.learner
        size = sum(parameter.numel() for parameter in learner.network.parameters())
        precision = "float32" if learner.amp is None else str(learner.amp).removeprefix("torch.")
        self.say(f"run      {output} (recipe {config.recipe}, seed {config.seed})")
        for name, split in (("train", parts.train), ("valid", parts.valid)):
            self.say(f"{name}    {_split_line(split)}")
        self.say(f"clip     {parts.clip.num_frames} frames of {parts.clip.size_px} px ({config.clip.preset})")
        self.say(
            f"network  {config.model.backbone} + {config.model.aggregation}, {size / 1e6:.1f} M parameters, "
            f"weights {config.weights}, {precision} on {learner.device}"
        )
        for head in VOCABULARIES:
            counts = parts.train.dataset.annotations.class_counts(head)
            if absent := [name for name, count in zip(VOCABULARIES[head], counts, strict=True) if not count]:
                self.say(f"note     train has no {head} {', '.join(absent)}: it cannot be learnt")
        for warning in warnings_of(config, learner):
            self.say(f"WARNING  {warning}")

    def resumed(self, path: Path, progress: Progress, notes: Sequence[str]) -> None:
        """Say where the run goes on, and what is not as it was."""
        self.say(f"resume   {path}, after {progress.describe()}")
        for note in notes:
            self.say(f"note     {note}")

    def header(self) -> None:
        """Print the two lines above the epochs."""
        titles = f"{'loss':^11} {'accuracy %':^11} {'balanced %':^11}"
        pairs = f"{'act':>5} {'sev':>5} " * 3
        self.say(f"\n{'':9} train{'':30}  valid")
        self.say(f"{'epoch':>9} {titles}   {titles}  score      lr      s")
        self.say(f"{'':9} {pairs}  {pairs}")

    def epoch(
        self, *, number: str, results: tuple[PassResult, PassResult], lr: float, best: bool, seconds: float
    ) -> None:
        """Print the line of one epoch, and what of the data it could not use."""
        train, valid = results
        score = f"{100 * valid.metrics.score:5.1f}{'*' if best else ' '}"
        self.say(f"{number:>9} {_figures(train)}   {_figures(valid)}  {score} {lr:8.1e} {seconds:6.1f}")
        for name, result in (("train", train), ("valid", valid)):
            if result.skipped:
                lost = f", actions left out: {len(result.left_out)}" if result.left_out else ""
                self.say(
                    f"          {name}: clips skipped: {len(result.skipped)}{lost}; the first: {result.skipped[0]}"
                )

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Bar]:
        """Show a bar, of `total` steps, that vanishes at the end."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        hidden = not self._console.is_terminal
        with Bar(*columns, console=self._console, transient=True, disable=hidden) as bar:
            bar.add_task(description, total=total, note="")
            yield bar

    @contextmanager
    def actions(self, description: str, split: Split) -> Iterator[OnBatch]:
        """Show a bar over the actions of a split; yield what to call after each batch."""
        with self.bar(description, len(split.dataset)) as bar:

            def advance(batch: ActionBatch, result: PassResult) -> None:
                bar.update(bar.task_ids[0], advance=len(batch) + len(batch.left_out), note=f"loss {result.loss:.3f}")

            yield advance

    def finished(self, *, output: Path, root: Path, summary: str) -> None:
        """Say how it ended, where the files are, and which commands come next."""
        self.say(f"\n{summary}\n")
        best = output / "best.pth.tar"
        for path, what in (
            (best, "the best epoch"),
            (output / "last.pth.tar", "the last epoch"),
            (output / "training_history.png", "losses and accuracies"),
            (output / "config.json", "every setting"),
        ):
            self.say(f"  {path}  {what}")
        self.say("\nNext:")
        flags = ["--ckpt", str(best), "--data.root", str(root), "--split", "test"]
        self.say(f"  python -m training.evaluate {shlex.join(flags)}")
        self.say(f"  python -m export --ckpt {shlex.quote(str(best))}")


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _split_line(split: Split) -> str:
    annotations = split.dataset.annotations
    clips = sum(len(record.clips) for record in annotations.records)
    missing = sum(1 for issue in annotations.clip_issues if issue.reason == "missing on disk")
    views = [len(record.clips) for record in annotations.records]
    parts = [f"{len(annotations.records)} actions with {clips} clips ({min(views)} to {max(views)} views each)"]
    parts += [f"{len(annotations.dropped)} actions dropped"] if annotations.dropped else []
    parts += [f"{missing} clips missing on disk"] if missing else []
    return ", ".join(parts)


def _figures(result: PassResult) -> str:
    heads = result.metrics.heads
    columns = [
        *(f"{result.losses[head]:5.2f}" for head in VOCABULARIES),
        *(f"{100 * heads[head].accuracy:5.1f}" for head in VOCABULARIES),
        *(f"{100 * heads[head].balanced_accuracy:5.1f}" for head in VOCABULARIES),
    ]
    return " ".join(columns)
