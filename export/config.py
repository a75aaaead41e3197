"""The flags of `python -m export`."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, Literal

from export.tensorrt_config import TensorRTConfig
from mvfoul.errors import ConfigError

Precision = Literal["fp32", "fp16", "int8"]
"""Of the encoder; the head is always fp32."""

DEFAULT_SPLIT: Final = "test"
DEFAULT_CALIBRATION_SPLIT: Final = "valid"

MIN_OPSET: Final = 18
"""What torch's exporter writes of its own accord; older ones need a lossy conversion."""
MAX_OPSET: Final = 22
"""The newest that a test exports."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far the exported graphs may be from PyTorch in float32.

    The head is always judged by the first three; the encoder, and both together, so in float32 alone. With --fp16 and
    --int8 they are judged by cosine and agreement.
    """

    logits: float = 1e-4
    """Largest absolute error of a logit."""
    features: float = 1e-4
    """Largest error of a feature, relative to the batch's largest absolute feature: their scale is the backbone's."""
    probabilities: float = 1e-4
    """Largest absolute error of a probability, and of a view weight from the same features."""
    fp16_cosine: float = 0.999
    """Smallest cosine of an action's features, logits or probabilities with PyTorch's."""
    fp16_agreement: float = 0.99
    """Smallest share of actions with the same first label, and with the same first two. In float32 all must agree."""
    int8_cosine: float = 0.99
    """As fp16_cosine, with --int8."""
    int8_agreement: float = 0.95
    """As fp16_agreement, with --int8."""
    undecided_margin: float = 1e-3
    """Where PyTorch's own first and second probability are closer, another order is listed but not counted."""
    score_change: float = 0.01
    """Most that a balanced accuracy may fall, as a fraction, where 100 labelled actions or more are compared."""

    def cosine(self, precision: Precision) -> float:
        """Return the smallest cosine of an encoder that is not float32."""
        return self.int8_cosine if precision == "int8" else self.fp16_cosine

    def agreement(self, precision: Precision) -> float:
        """Return the smallest share of equal decisions."""
        return {"fp32": 1.0, "fp16": self.fp16_agreement, "int8": self.int8_agreement}[precision]

    def __post_init__(self) -> None:
        for limit in fields(self):
            if not 0 < (value := getattr(self, limit.name)) <= 1:
                flag = f"--tolerance.{limit.name.replace('_', '-')}"
                raise ConfigError(f"{flag} is {value}; it must be above 0 and at most 1.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Clips to compare on, besides the generated ones."""

    root: Path | None = None
    """A data set in the official layout. Its clips are only read; none enters the artifact."""
    max_actions: int = 8
    """Actions taken, evenly spaced over the split; 0 for all. Both engines answer for each: seconds per view."""

    def __post_init__(self) -> None:
        if self.max_actions < 0:
            raise ConfigError(f"--data.max-actions is {self.max_actions}; use 1 or more, or 0 for all.")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Turn a checkpoint into an artifact: two ONNX graphs that answer as PyTorch does, and their manifest.

    Nothing is published unless every check against PyTorch passes. Exit codes: 0 published, 2 refused, 3 checks failed,
    4 published without the TensorRT plan that --fp16 is for.
    """

    ckpt: Path
    """The checkpoint, such as best.pth.tar."""
    output: Path | None = None
    """Where to publish; an artifact that is there becomes <output>.previous. None: "artifact" beside the checkpoint."""
    data: DataConfig = DataConfig()
    split: str = DEFAULT_SPLIT
    """Held-out split of --data.root to compare on."""
    opset: int = MIN_OPSET
    """ONNX operator set of both graphs."""
    tolerance: Tolerance = Tolerance()
    fp16: bool = False
    """Write the encoder in float16, for GPUs, and build a TensorRT plan of it; the head stays float32."""
    allow_no_plan: bool = False
    """With --fp16: exit with 0 where no plan can be built. The float16 graph is published either way."""
    tensorrt: TensorRTConfig = field(default_factory=TensorRTConfig)
    int8: bool = False
    """Write the encoder in 8-bit integers, for CPUs; the head stays float32."""
    calibration_split: str = DEFAULT_CALIBRATION_SPLIT
    """With --int8: split of --data.root whose clips say how large activations get; not the one compared on."""

    merge: bool = False
    """Also write model.onnx: encoder and head in one graph, the views of one action in, probabilities out."""
    bisect: bool = False
    """Where a check fails: name the first layers whose answers are not PyTorch's, and write bisect.json."""
    evaluation: Path | None = None
    """metrics.json of `python -m training.evaluate`, for manifest and model card. None: the checkpoint's own."""

    def __post_init__(self) -> None:
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise ConfigError(f"--opset is {self.opset}; use {MIN_OPSET} to {MAX_OPSET}.")
        judged = self.tolerance.score_change != Tolerance().score_change
        if self.data.root is None and (self.split != DEFAULT_SPLIT or self.data != DataConfig() or judged):
            raise ConfigError(
                "--split, --data.max-actions and --tolerance.score-change are about clips to compare on; "
                "add --data.root DIR."
            )
        if not self.fp16 and (self.allow_no_plan or self.tensorrt != TensorRTConfig()):
            raise ConfigError("--allow-no-plan and --tensorrt.* are about the plan of a float16 encoder; add --fp16.")

        self._check_int8()

    def _check_int8(self) -> None:
        if self.int8 and self.fp16:
            raise ConfigError("--int8 is for CPUs and --fp16 for GPUs; export twice, to two --output folders.")
        if self.calibration_split != DEFAULT_CALIBRATION_SPLIT and not (self.int8 and self.data.root):
            raise ConfigError("--calibration-split says which clips --int8 is calibrated on; add --int8, --data.root.")
        if self.int8 and self.data.root and self.calibration_split == self.split:
            raise ConfigError(
                f"--calibration-split and --split are both {self.split!r}: it would be judged on the clips that "
                "it was fitted to. Use two splits."
            )

    @property
    def precision(self) -> Precision:
        """Of the encoder."""
        if self.int8:
            return "int8"
        return "fp16" if self.fp16 else "fp32"

    @property
    def target(self) -> Path:
        """The artifact's directory, absolute."""
        return (self.output or self.ckpt.parent / "artifact").resolve()

    def command(self) -> str:
        """Return the command line that does the same again."""
        return shlex.join(["python", "-m", "export", *flags_of(self, type(self)(ckpt=self.ckpt))])

    def to_json(self) -> dict[str, Any]:
        """Return the flags for config.json; of paths only the last part: an artifact tells nothing of its machine."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self), default=_name))
        return document


def _name(path: Path) -> str:
    return path.resolve().name


def flags_of(config: Any, default: Any, *, prefix: str = "") -> list[str]:
    """Return the command line that turns `default` into `config`; what the command acts on is always named."""
    flags = []
    for item in fields(config):
        value, usual = getattr(config, item.name), getattr(default, item.name)
        name = prefix + item.name.replace("_", "-")
        if is_dataclass(value):
            flags += flags_of(value, usual, prefix=f"{name}.")
        elif value != usual or name in ("ckpt", "artifact"):
            flags += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return flags
