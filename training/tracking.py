"""Where the figures of a run go, epoch by epoch. All of it on rank 0.

history.jsonl     {"epoch": 1, "train/loss": ..., ...}, one line per epoch
tensorboard/      scalars, and the settings as text
wandb/, wandb.id  Weights & Biases; the second holds the run's id there

The checkpoint comes first: an epoch is tracked after it is saved. So a resumed run takes back what is tracked of epochs
that the checkpoint does not have, and adds what the checkpoint has and a killed process did not track.
"""

from __future__ import annotations

import json
import math
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Protocol

from mvfoul.errors import ConfigError
from training.config import TrainConfig

JSONL: Final = "history.jsonl"
TENSORBOARD: Final = "tensorboard"
WANDB_ID: Final = "wandb.id"
_PROJECT: Final = "vars-platform"

Row = Mapping[str, float]
"""The figures of one epoch, by name."""


class Tracker(Protocol):
    """One place where figures go."""

    def log(self, values: Row, *, epoch: int) -> None:
        """Record the figures of an epoch, counted from 1."""

    def close(self) -> None:
        """Write what is left."""


class Trackers:
    """All that were asked for, as one."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        """Take them over."""
        self._trackers = tuple(trackers)

    def log(self, values: Row, *, epoch: int) -> None:
        """Record the figures of an epoch, counted from 1."""
        for tracker in self._trackers:
            tracker.log(values, epoch=epoch)

    def close(self) -> None:
        """Write what is left, of every tracker even where one fails."""
        with ExitStack() as stack:
            for tracker in self._trackers:
                stack.callback(tracker.close)

    def __enter__(self) -> Trackers:
        """Return itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close."""
        self.close()


def open_trackers(
    config: TrainConfig, output: Path, *, histories: Mapping[str, Sequence[float]] | None = None
) -> Trackers:
    """Open what `--track.*` asks for.

    Args:
        config: The settings.
        output: The folder of the run.
        histories: One value per finished epoch and curve, where a run goes on.

    Raises:
        ConfigError: A package is missing, Weights & Biases does not answer, or the folder cannot be written.
    """
    done = rows_of(histories or {})
    opened: list[Tracker] = []
    try:
        if not done:
            _remove(output)
        if config.track.jsonl:
            opened.append(JsonlTracker(output / JSONL, done))
        if config.track.tensorboard:
            opened.append(TensorBoardTracker(output / TENSORBOARD, done, settings=config.to_json()))
        if config.track.wandb != "off":
            opened.append(WandbTracker(config, output, done))
    except OSError as error:
        Trackers(opened).close()
        raise ConfigError(f"cannot write to {output}: {error}. Free space or choose another --output.") from error
    except ConfigError:
        Trackers(opened).close()
        raise
    return Trackers(opened)


class JsonlTracker:
    """One JSON object per line and epoch; a number that JSON does not have becomes null."""

    def __init__(self, path: Path, done: Sequence[Row]) -> None:
        """Write the lines of the epochs that are done; `path` is replaced in one step."""
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(_line(row, epoch) for epoch, row in enumerate(done, start=1)), encoding="utf-8")
        temporary.replace(path)
        self._path = path

    def log(self, values: Row, *, epoch: int) -> None:
        """Append a line.

        Raises:
            ConfigError: The disk is full.
        """
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(_line(values, epoch))
        except OSError as error:
            raise ConfigError(f"cannot write {self._path}: {error}. Free space, then go on with --resume.") from error

    def close(self) -> None:
        """Nothing is left."""


class TensorBoardTracker:
    """Scalars, with the epoch as the step."""

    def __init__(self, folder: Path, done: Sequence[Row], *, settings: Mapping[str, Any]) -> None:
        """Open the folder; what it shows from the last finished epoch on is taken back and written again.

        Raises:
            ConfigError: The package is missing.
        """
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise missing_package("--track.tensorboard", "tensorboard", "training", error) from error
        last = len(done)
        self._writer = SummaryWriter(str(folder), purge_step=last or None)
        if not done:
            # Indented by four: Markdown's code.
            text = "\n".join(f"    {line}" for line in json.dumps(settings, indent=2).splitlines())
            self._writer.add_text("settings", text, 0)
        else:
            self.log(done[-1], epoch=last)

    def log(self, values: Row, *, epoch: int) -> None:
        """Write and flush: a run can be watched."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WandbTracker:
    """Weights & Biases. A resumed run keeps its id; steps that it has already are left as they are."""

    def __init__(self, config: TrainConfig, output: Path, done: Sequence[Row]) -> None:
        """Start the run there.

        Raises:
            ConfigError: The package is missing, or the service refuses.
        """
        try:
            import wandb
        except ImportError as error:
            raise missing_package("--track.wandb", "wandb", "wandb", error) from error
        project = config.track.wandb_project or _PROJECT
        try:
            self._run = wandb.init(
                project=project,
                name=output.name,
                id=_wandb_id(output),
                resume="allow" if config.track.wandb == "online" else None,
                mode=config.track.wandb,  # type: ignore[arg-type]
                dir=str(output),
                config=config.to_json(),
                settings=wandb.Settings(console="off", silent=True, x_disable_stats=False),
            )
        except (wandb.Error, OSError) as error:
            raise ConfigError(
                f"--track.wandb {config.track.wandb}: {error}. Run `wandb login`, or use --track.wandb offline."
            ) from error
        if done:
            self.log(done[-1], epoch=len(done))

    def log(self, values: Row, *, epoch: int) -> None:
        """Send the figures, with the epoch as the step."""
        self._run.log(dict(values), step=epoch)

    def close(self) -> None:
        """Finish; online this waits until everything is sent."""
        self._run.finish()


def rows_of(histories: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Turn one list per curve into one row per epoch; curves that began later are in the later rows only."""
    epochs = max(map(len, histories.values()), default=0)
    rows: list[dict[str, float]] = [{} for _ in range(epochs)]
    for name, values in histories.items():
        for row, value in zip(rows[epochs - len(values) :], values, strict=True):
            row[name] = value
    return rows


def _line(row: Row, epoch: int) -> str:
    values = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps({"epoch": epoch, **values}, allow_nan=False) + "\n"


def _remove(output: Path) -> None:
    """Take away what an overwritten run left."""
    (output / JSONL).unlink(missing_ok=True)
    (output / WANDB_ID).unlink(missing_ok=True)
    if (output / TENSORBOARD).exists():
        shutil.rmtree(output / TENSORBOARD)


def _wandb_id(output: Path) -> str:
    path = output / WANDB_ID
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12])
    return path.read_text().strip()


def missing_package(flag: str, package: str, extra: str, error: ImportError) -> ConfigError:
    """Return the error of a flag whose package is not installed."""
    return ConfigError(
        f"{flag} needs the package {package} ({error}). Install it: pip install 'vars-platform[{extra}]'"
    )
