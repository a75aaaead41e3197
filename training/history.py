"""What a run's folder tells of it, finished or not: settings, and the figures of each epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvfoul.errors import ConfigError
from training.folder import BEST, CONFIG, LAST
from training.tracking import JSONL, rows_of

Row = Mapping[str, float | None]


@dataclass(frozen=True)
class RunRecord:
    """One run."""

    folder: Path
    config: Mapping[str, Any]
    """The settings, as `TrainConfig.to_json` has them."""
    rows: tuple[Row, ...]
    """The figures of each finished epoch; at least one."""

    @property
    def select(self) -> str:
        """What chooses the best epoch: score, accuracy or loss."""
        return str(self.config["loop"]["select"])

    @property
    def best_epoch(self) -> int:
        """Counted from 1; of equal ones the first."""
        results = [goodness_of(row, self.select) for row in self.rows]
        return 1 + results.index(max(results))

    @property
    def best(self) -> Row:
        """The figures of the best epoch."""
        return self.rows[self.best_epoch - 1]

    @property
    def planned(self) -> int:
        """Epochs asked for, at most."""
        return int(self.config["loop"]["epochs"])

    @property
    def state(self) -> str:
        """done; early (stopped early); or unfinished, which a run in progress is too."""
        patience = int(self.config["loop"]["patience"])
        if len(self.rows) >= self.planned:
            return "done"
        return "early" if 0 < patience <= len(self.rows) - self.best_epoch else "unfinished"

    def curve(self, name: str) -> list[float]:
        """Return a figure of every epoch; NaN where there is none."""
        return [_number(row.get(name)) for row in self.rows]

    @property
    def seconds(self) -> float:
        """Of all epochs."""
        return sum(value for value in self.curve("seconds") if value == value)  # noqa: PLR0124  (not NaN)


def read_run(folder: Path) -> RunRecord:
    """Read the folder of a run: history.jsonl, or a checkpoint where there is none.

    Raises:
        ConfigError: It is no folder of a run, damaged, or has no finished epoch yet.
    """
    config = _config(folder)
    path = folder / JSONL
    rows = _jsonl(path) if path.exists() else _of_checkpoint(folder)
    if not rows:
        raise ConfigError(f"{folder} has no finished epoch yet. Wait for the first, or leave this run out.")
    return RunRecord(folder, config, tuple(rows))


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    if not folder.is_dir() or not path.exists():
        raise ConfigError(f"{folder} is no folder of a run: it has no {CONFIG}. Name the --output of a training.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))["config"]
        _ = config["loop"]["select"], int(config["loop"]["epochs"]), int(config["loop"]["patience"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged, or of another program ({error}). Leave this run out.") from error
    checked: Mapping[str, Any] = config
    return checked


def _jsonl(path: Path) -> list[Row]:
    rows: list[Row] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            found, _ = row["epoch"], row["valid/score"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # a process was killed while it wrote; --resume writes the line again
                break
            raise ConfigError(f"{path}, line {number}, is damaged ({error}). Leave this run out.") from error
        if found != number:
            raise ConfigError(f"{path}, line {number}, is of epoch {found}: lines are missing. Leave this run out.")
        rows.append({name: value for name, value in row.items() if name != "epoch"})
    return rows


def _of_checkpoint(folder: Path) -> list[Row]:
    found = next((folder / name for name in (LAST, BEST) if (folder / name).exists()), None)
    if found is None:
        return []
    from training.checkpoint import load_checkpoint  # late: torch takes seconds, and most runs have history.jsonl

    return list(rows_of(load_checkpoint(found).histories))


def goodness_of(row: Row, select: str) -> float:
    """Return what `training.progress.goodness` says of the epoch with these figures; larger is better."""
    if select == "score":
        return _number(row["valid/score"])
    if select == "loss":
        return -_number(row["valid/loss"])
    return (_number(row["valid/action/accuracy"]) + _number(row["valid/offence_severity/accuracy"])) / 2


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
