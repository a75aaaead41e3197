"""`python -m training.sweep --seeds 3 --output runs/x --data.root DIR ...`: the same training with several seeds.

Each seed is a run of its own, `OUTPUT/seed-<k>`, one after another, in a process of its own and with --resume: the same
command goes on with an interrupted sweep. Every flag of `python -m training` is passed on.

The mean is given with the sample standard deviation and a 95 % interval of the mean, by Student's t with n - 1 degrees
of freedom: it takes the results of seeds for normally distributed. It covers the seed, not the choice of the actions;
for that see the intervals of `python -m training.evaluate`.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mvfoul.artifact import write_json
from mvfoul.command import INTERRUPTED, PREEMPTED, check_flag, exit_code_of
from mvfoul.errors import ConfigError
from training.history import RunRecord, read_run

FIGURES: Final = (
    "valid/score",
    "valid/action/balanced_accuracy",
    "valid/offence_severity/balanced_accuracy",
    "valid/action/accuracy",
    "valid/offence_severity/accuracy",
    "valid/loss",
)
# The 0.975 quantiles of Student's t with 1 to 29 degrees of freedom, as any table of it has them.
_T: Final = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045),
)
_STOPPED: Final = (INTERRUPTED, PREEMPTED, -signal.SIGINT, -signal.SIGTERM)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Which seeds, and the flags of each training."""

    seeds: int
    """How many."""
    first_seed: int
    output: Path
    flags: tuple[str, ...]
    """Of `python -m training`, without --seed and --output."""

    def __post_init__(self) -> None:
        most = len(_T) + 1
        check_flag(2 <= self.seeds <= most, "--seeds", self.seeds, f"Use 2 to {most}; one says nothing of the spread.")
        check_flag(self.first_seed >= 0, "--seed", self.first_seed, "Use 0 or more.")
        for flag in ("--resume", "--overwrite", "--track.no-jsonl"):
            check_flag(flag not in self.flags, flag, "given", "The sweep decides that itself; leave it out.")

    def folder(self, seed: int) -> Path:
        """Return the folder of a seed's run."""
        return self.output / f"seed-{seed}"

    def command(self, seed: int) -> list[str]:
        """Return the training of one seed."""
        own = ["--seed", str(seed), "--output", str(self.folder(seed)), "--resume"]
        return [sys.executable, "-m", "training", *self.flags, *own]


@dataclass(frozen=True)
class Spread:
    """A figure over seeds."""

    mean: float
    std: float
    """Of the sample."""
    low: float
    """Of the 95 % interval of the mean."""
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return mean, standard deviation and interval of two values or more."""
    mean, std = statistics.fmean(values), statistics.stdev(values)
    half = _T[len(values) - 2] * std / math.sqrt(len(values))
    return Spread(mean, std, mean - half, mean + half)


def parse_config(args: Sequence[str]) -> SweepConfig:
    """Read the flags; prints help or what is wrong with them and exits, as command lines do.

    Raises:
        ConfigError: A value is refused, of a training's flag too.
    """
    parser = argparse.ArgumentParser(
        prog="python -m training.sweep",
        description="Train with several seeds, and give the mean, the spread and a 95 % interval of the results.",
        epilog="All other flags are those of `python -m training`; see its --help. The same command goes on with a "
        "sweep that was interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="INT", help="how many trainings (default: 3)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="INT", help="of the first; the others follow (default: 0)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="PATH", help="folder of the runs seed-<k>")
    parser.add_argument("--data.root", dest="root", required=True, metavar="PATH", help="folder with the splits in it")
    known, flags = parser.parse_known_args(list(args))
    config = SweepConfig(
        seeds=known.seeds, first_seed=known.seed, output=known.output, flags=("--data.root", known.root, *flags)
    )
    from training.recipes import parse_config as parse_training

    parse_training(config.command(config.first_seed)[3:])  # a wrong flag ends the sweep before it begins
    return config


def main() -> int:
    """Return the exit code: 1 where a seed failed."""
    return exit_code_of(lambda: run_sweep(parse_config(sys.argv[1:])))


def run_sweep(config: SweepConfig) -> int:
    """Train every seed, then write sweep.json and sweep.png.

    Returns:
        0; 1 where a seed failed; what the training said where it was asked to stop.
    """
    failed: dict[int, int] = {}
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    for number, seed in enumerate(seeds, start=1):
        _say(f"\n=== seed {seed}, {number} of {config.seeds} ===")
        if (code := _train(config.command(seed))) in _STOPPED:
            _say("\nthe sweep was stopped; the same command goes on with it")
            return PREEMPTED if code in (PREEMPTED, -signal.SIGTERM) else INTERRUPTED
        if code:
            failed[seed] = code
            _say(f"seed {seed} failed with exit code {code}; the others go on")
    records = {seed: read_run(config.folder(seed)) for seed in seeds if seed not in failed}
    _report(config, records, failed)
    return 1 if failed else 0


def _train(command: Sequence[str]) -> int:
    """Run one training; SIGTERM is passed on to it, and Ctrl-C reaches it from the terminal."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with subprocess.Popen(list(command), env={**os.environ, "PYTHONUNBUFFERED": "1"}) as child:
        try:
            signal.signal(signal.SIGTERM, lambda *_: child.terminate())
            signal.signal(signal.SIGINT, lambda *_: None)
            return child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _report(config: SweepConfig, records: Mapping[int, RunRecord], failed: Mapping[int, int]) -> None:
    document: dict[str, Any] = {
        "flags": list(config.flags),
        "interval": "95 %, of the mean, Student's t with n - 1 degrees of freedom",
        "seeds": {
            str(seed): {"best_epoch": record.best_epoch, **{name: record.best.get(name) for name in FIGURES}}
            for seed, record in records.items()
        },
        "failed": {str(seed): {"exit_code": code} for seed, code in failed.items()},
    }
    columns = {name: [float(record.best[name] or 0.0) for record in records.values()] for name in FIGURES}
    spreads = {name: spread(values) for name, values in columns.items()} if len(records) > 1 else {}
    document["figures"] = {name: vars(found) for name, found in spreads.items()}
    _say("\n" + "\n".join(table(columns, list(records), spreads)))
    for seed, code in failed.items():
        _say(f"seed {seed} failed with exit code {code}: see above, and {config.folder(seed)}")
    try:
        config.output.mkdir(parents=True, exist_ok=True)
        if spreads:
            from training.plots import plot_sweep

            plot_sweep(config.output / "sweep.png", columns, {name: vars(found) for name, found in spreads.items()})
        write_json(config.output / "sweep.json", document)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {config.output}: {error}. Free space or choose another --output."
        ) from error
    _say(f"\nwritten to {config.output}: sweep.json{', sweep.png' if spreads else ''}")


def table(columns: Mapping[str, Sequence[float]], seeds: Sequence[int], spreads: Mapping[str, Spread]) -> list[str]:
    """Return a line per figure: each seed, the mean, the standard deviation and the interval."""
    lines = [
        f"{'':38}" + "".join(f"{f'seed {seed}':>9}" for seed in seeds) + f"{'mean':>9}{'std':>8}{'95 % interval':>19}"
    ]
    for name, values in columns.items():
        scale, digits = (1, 3) if name.endswith("loss") else (100, 1)
        line = f"{name:38}" + "".join(f"{scale * value:9.{digits}f}" for value in values)
        if (found := spreads.get(name)) is not None:
            ends = f"{scale * found.low:.{digits}f} to {scale * found.high:.{digits}f}"
            line += f"{scale * found.mean:9.{digits}f}{scale * found.std:8.{digits}f}{ends:>19}"
        lines.append(line)
    if spreads:
        lines.append(f"the interval is of the mean: Student's t, {len(seeds) - 1} degrees of freedom")
    return lines


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
