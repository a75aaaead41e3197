"""What changes in a view, as numbers: drawn by name, composed into one homography and one colour map.

A row is float32 `[ROW]`: the homography from output to input coordinates (9, row by row), the colour matrix (9), the
grey share (1), the blur's standard deviation in pixels (1). Coordinates run from -1 to 1 over the picture, x to the
right and y down, as `torch.nn.functional.grid_sample` has them with `align_corners=False`.

One resampling instead of one per change: cheaper and sharper, and nothing is lost that one change moves out of the
picture and the next one back in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.config.augment import Range, Ranges

Matrix = NDArray[np.float64]

HOMOGRAPHY: Final = slice(0, 9)
COLOUR: Final = slice(9, 18)
GREY: Final = 18
BLUR: Final = 19
ROW: Final = 20

DRAWS: Final = 32
"""Uniform numbers per view. Each change has its own ones: switching one on leaves the others as they were."""

LUMA: Final = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in grey, ITU-R BT.601, as torchvision rounds them."""

_PERSPECTIVE_PROBABILITY: Final = 0.5  # torchvision's default
_CROP_RATIO: Final = (3 / 4, 4 / 3)  # width to height; torchvision's default


@dataclass(frozen=True, kw_only=True)
class ViewChange:
    """One view's changes. The defaults change nothing."""

    flip: bool = False
    rotation_deg: float = 0.0
    """Counter-clockwise."""
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue_deg: float = 0.0
    translate: tuple[float, float] = (0.0, 0.0)
    """To the right and down, as shares of the size."""
    scale: float = 1.0
    shear_deg: float = 0.0
    corners: tuple[float, ...] | None = None
    """How far each corner moves inwards: x and y of the upper left, upper right, lower right, lower left; 1 is to the
    middle. None: no perspective."""
    crop: tuple[float, float, float, float] = (-1.0, -1.0, 2.0, 2.0)
    """Left, top, width and height of the part that is enlarged, in coordinates from -1 to 1."""
    blur_px: float = 0.0

    def row(self) -> NDArray[np.float32]:
        """Return float32 `[ROW]`."""
        grey_share = (1 - self.contrast) * self.brightness
        homography = np.linalg.inv(self.homography())
        values = [*homography.ravel(), *self._colour().ravel(), grey_share, self.blur_px]
        return np.array(values, np.float32)

    def homography(self) -> Matrix:
        """Return where each point of the view goes: mirrored, then affine, perspective, rotation and crop."""
        mirrored = np.diag([-1.0 if self.flip else 1.0, 1.0, 1.0])
        warped = self._perspective() @ self._affine() @ mirrored
        matrix: Matrix = self._enlarge() @ _rotation(self.rotation_deg) @ warped
        return matrix

    def _affine(self) -> Matrix:
        moved = np.array([[1.0, 0.0, 2 * self.translate[0]], [0.0, 1.0, 2 * self.translate[1]], [0.0, 0.0, 1.0]])
        sheared = np.array([[1.0, -math.tan(math.radians(self.shear_deg)), 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        matrix: Matrix = moved @ np.diag([self.scale, self.scale, 1.0]) @ sheared
        return matrix

    def _perspective(self) -> Matrix:
        if self.corners is None:
            return np.eye(3)
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64)
        return _through(corners, corners * (1 - np.reshape(self.corners, (4, 2))))

    def _enlarge(self) -> Matrix:
        left, top, width, height = self.crop
        x, y = 2 / width, 2 / height
        return np.array([[x, 0.0, -1 - left * x], [0.0, y, -1 - top * y], [0.0, 0.0, 1.0]])

    def _colour(self) -> Matrix:
        grey = np.tile(np.array(LUMA) / sum(LUMA), (3, 1))
        saturated = self.saturation * np.eye(3) + (1 - self.saturation) * grey
        colour: Matrix = self.contrast * self.brightness * (_hue(self.hue_deg) @ saturated)
        return colour


def draw(ranges: Ranges, uniforms: Sequence[float]) -> ViewChange:
    """Choose one view's changes.

    Args:
        ranges: What to draw from.
        uniforms: `DRAWS` numbers from 0 to 1.
    """
    u = iter(uniforms)
    flip = next(u) < ranges.flip
    rotation_deg = _either_way(ranges.rotation_deg, next(u))
    brightness, contrast, saturation = (
        _between(bounds, next(u)) for bounds in (ranges.brightness, ranges.contrast, ranges.saturation)
    )
    hue_deg = _either_way(ranges.hue_deg, next(u))
    translate = _either_way(ranges.translate, next(u)), _either_way(ranges.translate, next(u))
    scale, shear_deg = _between(ranges.scale, next(u)), _either_way(ranges.shear_deg, next(u))
    warped = next(u) < _PERSPECTIVE_PROBABILITY and ranges.perspective > 0
    corners = tuple(ranges.perspective * next(u) for _ in range(8))
    crop = _crop(ranges.crop, [next(u) for _ in range(4)])
    return ViewChange(
        flip=flip,
        rotation_deg=rotation_deg,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue_deg=hue_deg,
        translate=translate,
        scale=scale,
        shear_deg=shear_deg,
        corners=corners if warped else None,
        crop=crop,
        blur_px=_between(ranges.blur_px, next(u)),
    )


def _between(bounds: Range, uniform: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * uniform


def _either_way(largest: float, uniform: float) -> float:
    return largest * (2 * uniform - 1)


def _crop(area: Range, uniforms: Sequence[float]) -> tuple[float, float, float, float]:
    if area == (1.0, 1.0):
        return -1.0, -1.0, 2.0, 2.0
    share = _between(area, uniforms[0])
    ratio = math.exp(_between((math.log(_CROP_RATIO[0]), math.log(_CROP_RATIO[1])), uniforms[1]))
    width, height = min(2.0, 2 * math.sqrt(share * ratio)), min(2.0, 2 * math.sqrt(share / ratio))
    return -1 + (2 - width) * uniforms[2], -1 + (2 - height) * uniforms[3], width, height


def _rotation(degrees: float) -> Matrix:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])  # y points down


def _through(start: Matrix, end: Matrix) -> Matrix:
    """Return the homography that maps four points `[4, 2]` to four others: eight equations, the last entry 1."""
    rows, right = [], []
    for (x, y), (u, v) in zip(start, end, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    solved: Matrix = np.linalg.solve(np.array(rows, np.float64), np.array(right, np.float64))
    return np.append(solved, 1.0).reshape(3, 3)


def _hue(degrees: float) -> Matrix:
    """Turn colours around the grey axis: grey stays grey, and every colour keeps its luma.

    Linear, unlike torchvision's turn in HSV, so that it is part of the one colour matrix.
    """
    luma = np.array(LUMA) / sum(LUMA)
    # Grey, and an orthonormal basis of the plane of luma 0, make up all colours; the turn is in that plane.
    plane = np.linalg.svd(luma[None, :])[2][1:].T
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = plane @ np.array([[cos, -sin], [sin, cos]]) @ plane.T
    grey = np.outer(np.ones(3), luma)
    colour: Matrix = grey + turned @ (np.eye(3) - grey)
    return colour
