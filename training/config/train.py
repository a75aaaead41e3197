"""All settings of a run together, and what they ask of each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mvfoul.command import check_flag
from training.config.augment import AugmentConfig
from training.config.data import ClipConfig, DataConfig
from training.config.loop import LoopConfig
from training.config.loss import LossConfig
from training.config.metrics import MetricsConfig
from training.config.model import ModelConfig
from training.config.optim import OptimConfig, ScheduleConfig
from training.config.save import SaveConfig
from training.config.track import TrackConfig
from training.model.names import KINETICS400, NO_WEIGHTS

RecipeName = Literal["two-second", "vars-2023", "mvit-2024", "cpu-demo"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a foul network on SoccerNet-MVFoul, or on data of the same layout.

    Starts from the settings of a recipe; every other flag overrides one of them.

    Writes best.pth.tar, last.pth.tar, training_history.png and config.json.
    """

    recipe: RecipeName = "two-second"
    """Settings to start from.
    two-second: 2 s around the contact, AdamW, bf16; for a GPU.
    vars-2023: as the original VARS was trained.
    mvit-2024: as the best published plain MViT was trained.
    cpu-demo: a small network from scratch, for synthetic data and a CPU."""
    weights: str = KINETICS400
    """What the backbone starts from: kinetics400 (downloaded once), none (random), or a file."""
    output: Path | None = None
    """Folder of the run; runs/<recipe>-<date>-<time> where left out."""
    overwrite: bool = False
    """Replace the run that --output holds."""
    resume: bool = False
    """Go on with the run that --output holds, where it stopped; start it where there is none yet."""
    seed: int = 0
    """Of the first weights, the order of actions, the views drawn and how they change."""
    device: Device = "auto"
    """auto: the GPU where there is one."""
    data: DataConfig
    clip: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)

    def __post_init__(self) -> None:
        check_flag(
            not self.resume or self.output is not None,
            "--resume",
            self.resume,
            "It goes on with the run in --output DIR; name that folder.",
        )
        check_flag(
            not (self.resume and self.overwrite), "--overwrite", self.overwrite, "--resume keeps the run; drop one."
        )
        check_flag(bool(self.weights), "--weights", self.weights, "Use kinetics400, none or a file.")
        check_flag(0 <= self.seed < 2**32, "--seed", self.seed, "Use a whole number from 0 to 4294967295.")
        check_flag(
            self.data.num_views <= self.clip.max_views,
            "--data.num-views",
            self.data.num_views,
            f"The clip contract allows --clip.max-views {self.clip.max_views}; use at most that many, or raise it.",
        )
        check_flag(
            self.schedule.warmup_epochs < self.loop.epochs,
            "--schedule.warmup-epochs",
            self.schedule.warmup_epochs,
            f"There are --loop.epochs {self.loop.epochs}; use fewer than that.",
        )
        check_flag(
            self.optim.freeze_epochs < self.loop.epochs,
            "--optim.freeze-epochs",
            self.optim.freeze_epochs,
            f"There are --loop.epochs {self.loop.epochs}; use fewer than that.",
        )
        check_flag(
            not self.optim.freeze_epochs or self.weights != NO_WEIGHTS,
            "--optim.freeze-epochs",
            self.optim.freeze_epochs,
            "With --weights none the backbone knows nothing yet; use 0, or start from weights.",
        )
        min_lr = self.schedule.min_lr or 0.0
        check_flag(min_lr < self.optim.lr, "--schedule.min-lr", min_lr, f"Use less than --optim.lr {self.optim.lr}.")
        check_flag(
            self.loop.amp != "fp16" or self.device != "cpu",
            "--loop.amp",
            self.loop.amp,
            "It needs a GPU; use bf16 or none with --device cpu.",
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, numbers and strings, in the order of the fields."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def flat_settings(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of `TrainConfig.to_json` by dotted name, such as `optim.lr`."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= flat_settings(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
