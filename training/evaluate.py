"""`python -m training.evaluate --ckpt best.pth.tar --data.root DIR --split test`: what a checkpoint is worth."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import tyro

from mvfoul.command import check_flag, exit_code_of
from mvfoul.errors import ConfigError
from mvfoul.layout import canonical_split
from training.config import Device

_MIN_RESAMPLES: Final = 100  # of fewer, the outer 2.5 % are one or two values


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate a checkpoint on one split, as the official evaluator counts.

    Writes report.html to look at, its pictures as PNG, metrics.json, and predictions_<split>.json as SoccerNet has it.

    A split without labels (challenge) gets predictions only.
    """

    ckpt: Path
    """Checkpoint of `python -m training`."""
    root: Annotated[Path, tyro.conf.arg(name="data.root")]
    """Folder with the splits in it."""
    split: str = "test"
    """train, valid, test or challenge."""
    output: Path | None = None
    """Folder to write to; evaluation_<split> beside the checkpoint where left out."""
    batch_size: int = 8
    """Actions at a time."""
    num_views: int | None = None
    """Views per action at most, the first ones; as many as the checkpoint's clip contract allows where left out."""
    tta: Literal["none", "flip"] = "none"
    """Test-time augmentation. flip: the mean of the logits of the views and of the views mirrored left to right."""
    resamples: int = 2000
    """Bootstrap resamples of the actions for the 95 % intervals. 0: no intervals."""
    seed: int = 0
    """Of the resamples."""
    workers: int | None = None
    """Processes that decode clips; one per CPU, at most 8, where left out. 0: decode in this process."""
    device: Device = "auto"
    """auto: the GPU where there is one."""

    def __post_init__(self) -> None:
        canonical_split(self.split)
        for flag, value, low in (
            ("--batch-size", self.batch_size, 1),
            ("--num-views", 1 if self.num_views is None else self.num_views, 1),
            ("--workers", self.workers or 0, 0),
            ("--seed", self.seed, 0),
        ):
            if value < low:
                raise ConfigError(f"{flag} is {value}. Use {low} or more.")
        few = 0 < self.resamples < _MIN_RESAMPLES or self.resamples < 0
        check_flag(not few, "--resamples", self.resamples, f"Use {_MIN_RESAMPLES} or more, or 0 (no intervals).")


def parse_config(args: Sequence[str]) -> EvaluateConfig:
    """Read the flags; prints help or what is wrong with them and exits, as command lines do."""
    return tyro.cli(EvaluateConfig, args=args, prog="python -m training.evaluate")


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_evaluate)


def _evaluate() -> int:
    config = parse_config(sys.argv[1:])
    # Late: torch takes seconds to load, and `--help` must answer at once.
    from training.evaluation.run import evaluate_checkpoint

    evaluate_checkpoint(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
