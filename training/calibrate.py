"""`python -m training.calibrate --ckpt best.pth.tar --data.root DIR`: make the confidences mean what they say."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mvfoul.command import check_flag, exit_code_of
from mvfoul.layout import canonical_split
from training.config import Device


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """Fit one temperature per head on validation actions, and write both into the checkpoint.

    The answers stay the same; their probabilities change. The export puts the temperatures into head.onnx.

    Prints the expected calibration error (ECE) and the negative log-likelihood (NLL) before and after.
    """

    ckpt: Path
    """Checkpoint of `python -m training`."""
    root: Annotated[Path, tyro.conf.arg(name="data.root")]
    """Folder with the splits in it."""
    split: str = "valid"
    """Where to fit. Not train, whose answers are too sure, and not what you report figures of."""
    out: Path | None = None
    """Checkpoint to write; --ckpt itself, replaced in one step, where left out."""
    min_actions: int = 50
    """Refuse to fit to fewer labelled actions."""
    batch_size: int = 8
    """Actions at a time."""
    workers: int | None = None
    """Processes that decode clips; one per CPU, at most 8, where left out. 0: decode in this process."""
    device: Device = "auto"
    """auto: the GPU where there is one."""

    def __post_init__(self) -> None:
        name = canonical_split(self.split)
        check_flag(name != "train", "--split", self.split, "The network knows these actions by heart; use valid.")
        check_flag(self.min_actions >= 1, "--min-actions", self.min_actions, "Use 1 or more.")
        check_flag(self.batch_size >= 1, "--batch-size", self.batch_size, "Use 1 or more.")
        check_flag(self.workers is None or self.workers >= 0, "--workers", self.workers, "Use 0 or more.")


def parse_config(args: Sequence[str]) -> CalibrateConfig:
    """Read the flags; prints help or what is wrong with them and exits, as command lines do."""
    return tyro.cli(CalibrateConfig, args=args, prog="python -m training.calibrate")


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_calibrate)


def _calibrate() -> int:
    config = parse_config(sys.argv[1:])
    # Late: torch takes seconds to load, and `--help` must answer at once.
    from training.evaluation.temperature import calibrate_checkpoint

    calibrate_checkpoint(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
