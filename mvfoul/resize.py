"""From an RGB picture of any size to the network's square one, in numpy.

Bilinear with half-pixel centres and without antialiasing: torchvision's `resize(..., antialias=False)`, within 1 level
of 255 (torchvision itself rounds differently on different processors). Only the pixels that the result needs are read:
`center_crop` never computes what it cuts away.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvfoul.clip import ClipSpec


@dataclass(frozen=True)
class _Axis:
    """Linear interpolation along one axis: `source[low] * (1 - weight) + source[high] * weight`."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    weight: NDArray[np.float32]

    @property
    def is_identity(self) -> bool:
        return not self.weight.any() and bool(
            np.array_equal(self.low, np.arange(self.low[0], self.low[0] + len(self.low)))
        )


class Resizer:
    """Resizes pictures of one size as one `ClipSpec` says. Immutable: threads may share it."""

    def __init__(self, height_px: int, width_px: int, spec: ClipSpec) -> None:
        rows, columns = _axes(height_px, width_px, spec)
        self._size_px = spec.size_px
        # Each source row is read once, though neighbouring output rows may share it.
        self._rows, inverse = np.unique(np.concatenate([rows.low, rows.high]), return_inverse=True)
        self._top, self._bottom = inverse[: len(rows.low)], inverse[len(rows.low) :]
        self._row_weight = None if rows.is_identity else rows.weight[:, None]
        # Picking columns channel by channel turns RGBRGB... into planes at no cost.
        self._left, self._right = (_planar(index) for index in (columns.low, columns.high))
        self._column_weight = None if columns.is_identity else np.tile(columns.weight, 3)

    def into(self, rgb: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Resize one picture.

        Args:
            rgb: uint8 `[H, W, 3]`.
            out: uint8 `[3, size_px, size_px]`, overwritten; may be a view with any strides.
        """
        lines = rgb.reshape(rgb.shape[0], -1)[self._rows]
        picture = lines.take(self._left, axis=1, mode="clip")
        if self._column_weight is not None:
            right = lines.take(self._right, axis=1, mode="clip")
            picture = _blend(picture, right, self._column_weight)
        if self._row_weight is not None:
            picture = _blend(picture[self._top], picture[self._bottom], self._row_weight)
        if picture.dtype != np.uint8:
            picture = np.rint(picture, out=picture).astype(np.uint8)
        out[...] = picture.reshape(self._size_px, 3, self._size_px).transpose(1, 0, 2)


@lru_cache(maxsize=64)
def resizer(height_px: int, width_px: int, spec: ClipSpec) -> Resizer:
    """Return the (cached) resizer for pictures of a size."""
    return Resizer(height_px, width_px, spec)


def _blend(low: NDArray[Any], high: NDArray[Any], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    blended: NDArray[np.float32] = np.subtract(high, low, dtype=np.float32)
    blended *= weight
    blended += low
    return blended


def _planar(columns: NDArray[np.intp]) -> NDArray[np.intp]:
    return np.concatenate([columns * 3 + channel for channel in range(3)])


def _axes(height_px: int, width_px: int, spec: ClipSpec) -> tuple[_Axis, _Axis]:
    if spec.resize == "squash":
        return _axis(height_px, spec.size_px), _axis(width_px, spec.size_px)
    resized = _short_side_to(spec.short_side_px, height_px, width_px)
    rows, columns = (
        _axis(source, target, crop=spec.size_px) for source, target in zip((height_px, width_px), resized, strict=True)
    )
    return rows, columns


def _short_side_to(short_side_px: int, height_px: int, width_px: int) -> tuple[int, int]:
    """Return `(height, width)` after torchvision's `Resize(short_side_px)`, which rounds the long side down."""
    if width_px <= height_px:
        return int(short_side_px * height_px / width_px), short_side_px
    return short_side_px, int(short_side_px * width_px / height_px)


def _axis(source_px: int, target_px: int, *, crop: int | None = None) -> _Axis:
    """Resize `source_px` to `target_px` and keep the middle `crop` (torchvision's `CenterCrop` rounds to even)."""
    length = target_px if crop is None else crop
    offset = round((target_px - length) / 2)
    centres = (np.arange(offset, offset + length) + 0.5) * (source_px / target_px) - 0.5
    centres = np.clip(centres, 0, source_px - 1)
    low = np.floor(centres).astype(np.intp)
    return _Axis(low, np.minimum(low + 1, source_px - 1), (centres - low).astype(np.float32))
