"""`python -m training.compare runs/a runs/b`: which run was better, and what differs in their settings."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import tyro

from mvfoul.command import check_flag, exit_code_of
from mvfoul.errors import ConfigError
from training.config import flat_settings
from training.history import RunRecord, read_run

_COLUMNS: Final = (
    ("score", "valid/score", 100.0),
    ("act bal", "valid/action/balanced_accuracy", 100.0),
    ("sev bal", "valid/offence_severity/balanced_accuracy", 100.0),
    ("act acc", "valid/action/accuracy", 100.0),
    ("sev acc", "valid/offence_severity/accuracy", 100.0),
    ("loss", "valid/loss", 1.0),
)
_SPEED: Final = "system/clips_per_second"
_NOT_A_SETTING: Final = ("output", "overwrite", "resume")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare runs by their validation results: a table, their settings where they differ, and a picture.

    Runs in progress can be compared too.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs."""
    output: Path = Path("compare.png")
    """Picture to write."""

    def __post_init__(self) -> None:
        check_flag(len(self.runs) >= 1, "RUNS", "", "Name the folders of one run or more.")
        twice = {str(run) for run in self.runs if [other.resolve() for other in self.runs].count(run.resolve()) > 1}
        check_flag(not twice, "RUNS", ", ".join(sorted(twice)), "Name each run once.")
        check_flag(self.output.suffix == ".png", "--output", str(self.output), "Name a file that ends in .png.")


def parse_config(args: Sequence[str]) -> CompareConfig:
    """Read the flags; prints help or what is wrong with them and exits, as command lines do."""
    return tyro.cli(CompareConfig, args=args, prog="python -m training.compare")


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_compare)


def _compare() -> int:
    config = parse_config(sys.argv[1:])
    records = [read_run(run) for run in config.runs]
    sys.stdout.write("\n".join([*table(records), *differences(records)]) + "\n")
    # Late: matplotlib takes a second to load, and `--help` must answer at once.
    from training.plots import plot_runs

    curves = {name: record.rows for name, record in zip(names(records), records, strict=True)}
    try:
        plot_runs(config.output, curves)
    except OSError as error:
        raise ConfigError(f"cannot write {config.output}: {error}. Choose another --output.") from error
    sys.stdout.write(f"\nwritten to {config.output}\n")
    return 0


def names(records: Sequence[RunRecord]) -> list[str]:
    """Return the shortest ends of the folders' paths that tell the runs apart."""
    parts = [record.folder.resolve().parts for record in records]
    for length in range(1, max(map(len, parts)) + 1):
        short = ["/".join(path[-length:]) for path in parts]
        if len(set(short)) == len(parts):
            break
    return short


def table(records: Sequence[RunRecord]) -> list[str]:
    """Return one line per run, the best validation score first; figures of each run's own best epoch."""
    named = dict(zip(names(records), records, strict=True))
    width = max(4, *map(len, named))
    titles = "".join(f"{title:>9}" for title, _, _ in _COLUMNS)
    lines = [f"{'run':{width}} {'best':>6} {'epochs':>10}{titles}{'lr':>10}{'time':>10}{'clips/s':>9}"]
    for name, record in sorted(named.items(), key=lambda item: -_score(item[1])):
        cells = "".join(_cell(record.best.get(key), scale) for _, key, scale in _COLUMNS)
        rate, minutes = float(record.config["optim"]["lr"]), record.seconds / 60
        speeds = [value for value in record.curve(_SPEED) if not math.isnan(value)]
        speed = f"{sorted(speeds)[len(speeds) // 2]:.1f}" if speeds else "-"
        epochs = f"{len(record.rows)}/{record.planned}"
        line = f"{name:{width}} {record.best_epoch:6} {epochs:>10}{cells}{rate:10.1e}{minutes:6.1f} min{speed:>9}"
        lines.append(line if record.state == "done" else f"{line}  {_STATES[record.state]}")
    lines.append("% of the valid split at each run's best epoch; clips/s: the median of the epochs")
    selects = {record.select for record in records}
    if len(selects) > 1:
        lines.append(f"note: what chooses the best epoch differs: {', '.join(sorted(selects))}")
    return lines


_STATES: Final = {"early": "stopped early", "unfinished": "unfinished"}


def differences(records: Sequence[RunRecord]) -> list[str]:
    """Return the settings that are not the same in all runs, a line each."""
    flat = [flat_settings(record.config) for record in records]
    keys = sorted({key for settings in flat for key in settings if key not in _NOT_A_SETTING})
    rows = [(f"--{key.replace('_', '-')}", [settings.get(key, "(none)") for settings in flat]) for key in keys]
    differing = [(flag, values) for flag, values in rows if any(value != values[0] for value in values)]
    if len(records) == 1:
        return []
    if not differing:
        return ["", "the settings are the same"]
    width = max(len(flag) for flag, _ in differing)
    shown = [[str(value) for value in values] for _, values in differing]
    columns = [max(len(name), *(len(row[k]) for row in shown)) for k, name in enumerate(names(records))]
    header = "  ".join(f"{name:>{size}}" for name, size in zip(names(records), columns, strict=True))
    lines = ["", f"{'what differs':{width}}  {header}"]
    for (flag, _), row in zip(differing, shown, strict=True):
        cells = "  ".join(f"{value:>{size}}" for value, size in zip(row, columns, strict=True))
        lines.append(f"{flag:{width}}  {cells}")
    return lines


def _score(record: RunRecord) -> float:
    return float(record.best["valid/score"] or 0.0)


def _cell(value: float | None, scale: float) -> str:
    digits = 1 if scale == 100 else 3
    return f"{'-':>9}" if value is None else f"{scale * value:9.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
