"""Which checkpoints a run leaves, and how often it saves."""

from __future__ import annotations

from dataclasses import dataclass

from mvfoul.command import check_flag


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """Checkpoints besides best.pth.tar and last.pth.tar, and how much an interruption can cost."""

    every_epochs: int = 0
    """Keep epoch-0010.pth.tar, epoch-0020.pth.tar, ... with 10. 0: none."""
    keep_best: int = 0
    """Keep the epochs with the best validation results, this many, as epoch-<number>.pth.tar. 0: best.pth.tar only."""
    every_steps: int = 0
    """Save last.pth.tar within an epoch too, after so many steps. 0: by time only."""
    every_minutes: float = 10.0
    """Save last.pth.tar within an epoch too, after so many minutes without a save. 0: never by time."""

    def __post_init__(self) -> None:
        check_flag(self.every_epochs >= 0, "--save.every-epochs", self.every_epochs, "Use 0 (off) or more.")
        check_flag(self.keep_best >= 0, "--save.keep-best", self.keep_best, "Use 0 (off) or more.")
        check_flag(self.every_steps >= 0, "--save.every-steps", self.every_steps, "Use 0 (off) or more.")
        check_flag(self.every_minutes >= 0, "--save.every-minutes", self.every_minutes, "Use 0 (off) or more.")
