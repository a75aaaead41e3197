"""What records the figures of a run, besides the terminal and the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mvfoul.command import check_flag

WandbMode = Literal["off", "offline", "online"]


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """Where the figures of each epoch go, besides the terminal and the checkpoint."""

    jsonl: bool = True
    """Write history.jsonl, one line per epoch; `python -m training.compare` reads it."""
    tensorboard: bool = False
    """Write tensorboard/, for `tensorboard --logdir runs`."""
    wandb: WandbMode = "off"
    """Weights & Biases: off; offline (into wandb/, for `wandb sync`); online (needs `wandb login`)."""
    wandb_project: str | None = None
    """Project there; vars-platform where left out."""

    def __post_init__(self) -> None:
        check_flag(
            self.wandb_project is None or self.wandb != "off",
            "--track.wandb-project",
            self.wandb_project,
            "It goes with --track.wandb offline or online.",
        )
        check_flag(self.wandb_project != "", "--track.wandb-project", self.wandb_project, "Give a name.")
