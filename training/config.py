"""Every setting of a training run, as frozen dataclasses; the docstring of a field is its `--help`.

Reads no file and imports no torch. A setting that would have no effect is refused, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mvfoul.clip import RGB, ClipSpec, Resize, preset, with_size
from mvfoul.errors import ConfigError
from mvfoul.labels import VOCABULARIES, Head
from training.model.names import KINETICS400, AggregationName, BackboneName

RecipeName = Literal["two-second", "vars-2023", "mvit-2024", "cpu-demo"]
Amp = Literal["none", "bf16", "fp16"]
Select = Literal["score", "accuracy", "loss"]
Device = Literal["auto", "cpu", "cuda"]
ActionWeights = Literal["none", "inverse"] | tuple[float, float, float, float, float, float, float, float]
OffenceSeverityWeights = Literal["none", "inverse"] | tuple[float, float, float, float]

_DEFAULT_MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the actions come from and how they are loaded."""

    root: Path
    """Folder with the splits in it: train/annotations.json, train/action_0/clip_0.mp4, valid/..."""
    num_views: int = 5
    """Views per action at most. Training draws among more, validation takes the first ones."""
    flip: bool = False
    """Mirror each training view left to right with probability one half."""
    workers: int | None = None
    """Processes that decode clips; one per CPU, at most 8, where left out. 0: decode in the training process."""
    preload_gib: float = 0.0
    """Decode all clips once, into at most this many GiB of memory for both splits. 0: decode in every epoch."""

    def __post_init__(self) -> None:
        _check(self.num_views >= 1, "--data.num-views", self.num_views, "Use 1 or more.")
        _check(self.workers is None or self.workers >= 0, "--data.workers", self.workers, "Use 0 or more.")
        _check(self.preload_gib >= 0, "--data.preload-gib", self.preload_gib, "Use 0 (off) or more.")


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Which frames of a clip the network sees, and at what size."""

    preset: Literal["two-second", "vars-2023", "custom"] = "two-second"
    """Which frames.
    two-second: T frames evenly over 2 s around the contact, squashed to a square.
    vars-2023: 16 frames of 1 s around the contact, centre crop; for the published weights.
    custom: those of --clip.frames."""
    num_frames: int = 16
    """T, the frames per view. vars-2023 has 16."""
    frames: tuple[int, ...] | None = None
    """Numbers of the frames to use, at 25 fps; only with --clip.preset custom. The contact is near frame 75."""
    resize: Resize | None = None
    """How the picture becomes a square; left out: as the preset does, and custom squashes.
    squash: the whole picture, its aspect ratio lost.
    center_crop: the middle, half of the width of a 16:9 picture."""
    size_px: int = 224
    """Height and width that the network sees."""
    max_views: int = 5
    """Views per action that an exported network accepts at most."""

    def __post_init__(self) -> None:
        custom = self.preset == "custom"
        _check(
            custom == (self.frames is not None),
            "--clip.frames",
            self.frames,
            "It goes with --clip.preset custom, and only with that; take it back with --clip.frames None.",
        )
        _check(
            self.frames is None or len(self.frames) == self.num_frames,
            "--clip.num-frames",
            self.num_frames,
            f"--clip.frames names {len(self.frames or ())} frames; use the same number.",
        )
        self.spec()

    def spec(self, **normalisation: RGB) -> ClipSpec:
        """Build the clip specification; `mean` and `std` as for `ClipSpec`.

        Raises:
            ClipSpecError: The values contradict each other.
        """
        overrides: dict[str, Any] = {"max_views": self.max_views, **normalisation}
        if self.resize is not None:
            overrides["resize"] = self.resize
        if self.frames is not None:
            window = (min(self.frames, default=0), max(self.frames, default=0) + 1)
            spec = ClipSpec(window=window, frame_indices=self.frames, **overrides)
        else:
            spec = preset(self.preset, num_frames=self.num_frames, **overrides)  # type: ignore[arg-type]
        return with_size(spec, self.size_px)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    backbone: BackboneName = "mvit_v2_s"
    """Video network that turns one view into features."""
    aggregation: AggregationName = "attention"
    """How the features of an action's views become one vector."""
    dropout: float = 0.0
    """Share of values dropped before the last layer of each head, in training."""

    def __post_init__(self) -> None:
        _check(0 <= self.dropout < 1, "--model.dropout", self.dropout, "Use 0 to 0.9.")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Cross-entropy of each head; the loss is their sum."""

    action_weights: ActionWeights = "inverse"
    """Class weights of the action: none, inverse (to the classes' frequency in train), or 8 values."""
    offence_severity_weights: OffenceSeverityWeights = "inverse"
    """Class weights of the offence severity: none, inverse, or 4 values."""
    label_smoothing: float = 0.0
    """Share of each target spread evenly over all classes, in training."""

    def __post_init__(self) -> None:
        for head, weights in (("action", self.action_weights), ("offence-severity", self.offence_severity_weights)):
            good = isinstance(weights, str) or all(math.isfinite(w) and w > 0 for w in weights)
            _check(good, f"--loss.{head}-weights", weights, "Use none, inverse, or one value above 0 per class.")
        _check(0 <= self.label_smoothing < 1, "--loss.label-smoothing", self.label_smoothing, "Use 0 to 0.9.")

    def weights(self, head: Head) -> str | tuple[float, ...]:
        """Return the choice for one head."""
        return self.action_weights if head == "action" else self.offence_severity_weights


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """adamw; adam (weight decay as an L2 term of the gradient); sgd (with Nesterov momentum)."""
    lr: float = 1e-4
    """Learning rate, at its highest."""
    weight_decay: float = 0.01
    """Weight decay."""
    decay_norms: bool = True
    """Whether biases and the scales of normalisation layers decay too."""
    momentum: float | None = None
    """Momentum of sgd, and only of sgd; 0.9 where left out."""
    max_grad_norm: float = 0.0
    """Scale gradients down to this norm where theirs is larger. 0: never."""

    def __post_init__(self) -> None:
        _check(0 < self.lr < math.inf, "--optim.lr", self.lr, "Nothing is learnt; use a value above 0, such as 1e-4.")
        _check(0 <= self.weight_decay < math.inf, "--optim.weight-decay", self.weight_decay, "Use 0 or more.")
        _check(
            self.momentum is None or self.name == "sgd",
            "--optim.momentum",
            self.momentum,
            f"{self.name} has none; use --optim.name sgd, or --optim.momentum None.",
        )
        _check(0 <= self.sgd_momentum < 1, "--optim.momentum", self.momentum, "Use 0 to 0.99.")
        _check(self.max_grad_norm >= 0, "--optim.max-grad-norm", self.max_grad_norm, "Use 0 (off) or more.")

    @property
    def sgd_momentum(self) -> float:
        """The momentum where the optimiser is sgd."""
        return _DEFAULT_MOMENTUM if self.momentum is None else self.momentum


_SCHEDULE_OPTIONS: dict[str, tuple[str, ...]] = {
    "constant": (),
    "step": ("step_size", "gamma"),
    "cosine": ("min_lr",),
    "plateau": ("gamma", "patience", "min_lr"),
}


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate changes from epoch to epoch."""

    name: Literal["step", "cosine", "plateau", "constant"] = "step"
    """The rule.
    step: times gamma every step-size epochs.
    cosine: down to min-lr after the last epoch.
    plateau: times gamma after patience epochs without a better validation result.
    constant: it does not."""
    step_size: int | None = None
    """Epochs between the steps of step; 10 where left out."""
    gamma: float | None = None
    """Factor of step and plateau; 0.5 where left out."""
    patience: int | None = None
    """Epochs that plateau waits; 5 where left out."""
    min_lr: float | None = None
    """Lowest learning rate of cosine and plateau; 0 where left out."""
    warmup_epochs: int = 0
    """First epochs, in which the learning rate rises evenly; not with plateau."""

    def __post_init__(self) -> None:
        for option in ("step_size", "gamma", "patience", "min_lr"):
            value, flag = getattr(self, option), f"--schedule.{option.replace('_', '-')}"
            used = value is None or option in _SCHEDULE_OPTIONS[self.name]
            _check(used, flag, value, f"{self.name} does not use it; take it back with {flag} None.")
        _check(self.step_size is None or self.step_size >= 1, "--schedule.step-size", self.step_size, "Use 1 or more.")
        _check(self.gamma is None or 0 < self.gamma < 1, "--schedule.gamma", self.gamma, "Use 0.01 to 0.99.")
        _check(self.patience is None or self.patience >= 1, "--schedule.patience", self.patience, "Use 1 or more.")
        _check(self.min_lr is None or self.min_lr >= 0, "--schedule.min-lr", self.min_lr, "Use 0 or more.")
        good = self.warmup_epochs >= 0 and (self.warmup_epochs == 0 or self.name != "plateau")
        _check(good, "--schedule.warmup-epochs", self.warmup_epochs, "Use 0 or more; plateau takes 0 only.")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Epochs, batches, and when to stop."""

    epochs: int = 50
    """Times to go through train, at most."""
    batch_size: int = 8
    """Actions per step; each brings all its views."""
    patience: int = 10
    """Stop after this many epochs without a better validation result. 0: never stop early."""
    select: Select = "score"
    """The validation result that chooses best.pth.tar and stops early.
    score: mean of the two balanced accuracies.
    accuracy: mean of the two accuracies.
    loss: sum of the two losses."""
    amp: Amp = "none"
    """Precision of the backbone: none (float32), bf16, or fp16 (with loss scaling; needs a GPU)."""

    def __post_init__(self) -> None:
        _check(self.epochs >= 1, "--loop.epochs", self.epochs, "Use 1 or more.")
        _check(self.batch_size >= 1, "--loop.batch-size", self.batch_size, "Use 1 or more.")
        _check(self.patience >= 0, "--loop.patience", self.patience, "Use 0 (never stop early) or more.")


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
    seed: int = 0
    """Of the first weights, the order of actions, the views drawn and the flips."""
    device: Device = "auto"
    """auto: the GPU where there is one."""
    data: DataConfig
    clip: ClipConfig = field(default_factory=ClipConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        _check(bool(self.weights), "--weights", self.weights, "Use kinetics400, none or a file.")
        _check(0 <= self.seed < 2**32, "--seed", self.seed, "Use a whole number from 0 to 4294967295.")
        _check(
            self.data.num_views <= self.clip.max_views,
            "--data.num-views",
            self.data.num_views,
            f"The clip contract allows --clip.max-views {self.clip.max_views}; use at most that many, or raise it.",
        )
        _check(
            self.schedule.warmup_epochs < self.loop.epochs,
            "--schedule.warmup-epochs",
            self.schedule.warmup_epochs,
            f"There are --loop.epochs {self.loop.epochs}; use fewer than that.",
        )
        min_lr = self.schedule.min_lr or 0.0
        _check(min_lr < self.optim.lr, "--schedule.min-lr", min_lr, f"Use less than --optim.lr {self.optim.lr}.")
        _check(
            self.loop.amp != "fp16" or self.device != "cpu",
            "--loop.amp",
            self.loop.amp,
            "It needs a GPU; use bf16 or none with --device cpu.",
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, numbers and strings, in the order of the fields."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def given_weights(choice: Sequence[float], head: Head) -> tuple[float, ...]:
    """Return class weights given as values.

    Raises:
        ConfigError: There is not one per class.
    """
    names = VOCABULARIES[head]
    flag = f"--loss.{head.replace('_', '-')}-weights"
    _check(len(choice) == len(names), flag, choice, f"Give {len(names)} values, for {', '.join(names)}.")
    return tuple(choice)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _check(accepted: bool, flag: str, value: object, cure: str) -> None:
    if not accepted:
        raise ConfigError(f"{flag} is {value!r}. {cure}")
