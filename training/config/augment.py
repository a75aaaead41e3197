"""Random changes to training views."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Literal

from mvfoul.command import check_flag

AugmentPreset = Literal["none", "flip", "guide", "original"]
Range = tuple[float, float]

_NO_CHANGE: Final[Range] = (1.0, 1.0)

_BOUNDS: Final[Mapping[str, Range]] = {
    "flip": (0, 1),
    "rotation_deg": (0, 180),
    "hue_deg": (0, 180),
    "translate": (0, 1),
    "shear_deg": (0, 60),
    "perspective": (0, 0.9),
    "temporal_jitter": (0, 25),
}
_RANGE_BOUNDS: Final[Mapping[str, Range]] = {
    "brightness": (0, 10),
    "contrast": (0, 10),
    "saturation": (0, 10),
    "scale": (0.1, 10),
    "crop": (0.05, 1),
    "blur_px": (0, 10),
}


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """What each view's random changes are drawn from; by default nothing changes."""

    flip: float = 0.0
    rotation_deg: float = 0.0
    brightness: Range = _NO_CHANGE
    contrast: Range = _NO_CHANGE
    saturation: Range = _NO_CHANGE
    hue_deg: float = 0.0
    translate: float = 0.0
    scale: Range = _NO_CHANGE
    shear_deg: float = 0.0
    perspective: float = 0.0
    crop: Range = _NO_CHANGE
    blur_px: Range = (0.0, 0.0)
    temporal_jitter: int = 0

    @property
    def change_pixels(self) -> bool:
        """Whether anything but the frames' choice can change."""
        still = Ranges(temporal_jitter=self.temporal_jitter)
        return self != still


PRESETS: Final[Mapping[AugmentPreset, Ranges]] = {
    "none": Ranges(),
    "flip": Ranges(flip=0.5),
    "guide": Ranges(flip=0.5, rotation_deg=15.0, brightness=(0.8, 1.2), contrast=(0.8, 1.2)),
    # Kinds and amounts are those of the original's public training code (SoccerNet/sn-mvfoul).
    "original": Ranges(
        flip=0.5,
        rotation_deg=5.0,
        translate=0.1,
        scale=(0.9, 1.0),
        perspective=0.3,
        brightness=(0.5, 1.5),
        contrast=(0.5, 1.5),
        saturation=(0.5, 1.5),
    ),
}


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training views: the same for all frames of a clip, others for each view and epoch.

    Every value replaces that of the preset.
    """

    preset: AugmentPreset = "none"
    """Values to start from.
    none: views as decoded.
    flip: mirrored left to right, one of two.
    guide: flip, rotation up to 15 degrees, brightness and contrast 0.8 to 1.2.
    original: the kinds of change of VARS (affine, perspective, rotation, colour, flip), in mild amounts."""
    flip: float | None = None
    """Probability of mirroring a view left to right."""
    rotation_deg: float | None = None
    """Largest rotation, either way, in degrees."""
    brightness: Range | None = None
    """Factors of the brightness, from and to; 1 1 leaves it."""
    contrast: Range | None = None
    """Factors of the contrast."""
    saturation: Range | None = None
    """Factors of the saturation; 0 is grey."""
    hue_deg: float | None = None
    """Largest turn of the hues, either way, in degrees of the colour circle."""
    translate: float | None = None
    """Largest move, in each direction, as a share of the picture's size."""
    scale: Range | None = None
    """Factors of the size; below 1 the picture shrinks and black surrounds it."""
    shear_deg: float | None = None
    """Largest shear to the side, in degrees."""
    perspective: float | None = None
    """Largest distortion of the perspective, as a share of half the picture's size; of one view in two."""
    crop: Range | None = None
    """Share of the picture's area that is cut out and enlarged, from and to; its sides' ratio is 3:4 to 4:3."""
    blur_px: Range | None = None
    """Standard deviation of a Gaussian blur, in pixels that the network sees."""
    temporal_jitter: int | None = None
    """Largest shift of the frames, earlier or later, in frames of 25 fps. The cache then holds the frames between."""

    def __post_init__(self) -> None:
        values = self.resolved()
        for name, (low, high) in _BOUNDS.items():
            value = getattr(values, name)
            check_flag(low <= value <= high, _flag(name), value, f"Use {low:g} to {high:g}.")
        for name, (low, high) in _RANGE_BOUNDS.items():
            start, end = getattr(values, name)
            good = low <= start <= end <= high and math.isfinite(end)
            check_flag(good, _flag(name), (start, end), f"Give the smaller first; both from {low:g} to {high:g}.")

    def resolved(self) -> Ranges:
        """Return the preset's values with those that replace them."""
        preset = PRESETS[self.preset]
        given = {field.name: getattr(self, field.name) for field in fields(Ranges)}
        return Ranges(**{name: getattr(preset, name) if value is None else value for name, value in given.items()})


def _flag(name: str) -> str:
    return f"--augment.{name.replace('_', '-')}"
