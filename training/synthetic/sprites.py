"""Sprites: capsules and ellipses painted once with smooth edges, then pasted into frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.synthetic.scene import Floats

_SKIN = np.array([205.0, 165.0, 135.0])
_HAIR = np.array([50.0, 38.0, 30.0])


@dataclass(frozen=True)
class Sprite:
    """A picture with transparency; its anchor is the pixel that is put on a place of the frame."""

    colour: NDArray[np.uint16]
    """`[h, w, 3]`, already multiplied by the opacity (0 to 256)."""
    clear: NDArray[np.uint16]
    """`[h, w, 1]`, 256 - opacity."""
    anchor_x: int
    anchor_y: int


class Canvas:
    """Paints shapes with soft edges; coordinates in pixels from the anchor, y down."""

    def __init__(self, left: float, top: float, right: float, bottom: float) -> None:
        self.anchor_x, self.anchor_y = int(np.ceil(-left)), int(np.ceil(-top))
        height, width = self.anchor_y + int(np.ceil(bottom)), self.anchor_x + int(np.ceil(right))
        self._y, self._x = np.mgrid[:height, :width] + 0.5
        self._x -= self.anchor_x
        self._y -= self.anchor_y
        self._colour = np.zeros((height, width, 3))
        self.opacity = np.zeros((height, width, 1))

    def capsule(self, start: tuple[float, float], end: tuple[float, float], radius: float, colour: Floats) -> None:
        """Paint all points within `radius` of the segment."""
        along = np.subtract(end, start)
        offset = np.stack([self._x - start[0], self._y - start[1]])
        share = np.clip(np.tensordot(along, offset, 1) / max(float(along @ along), 1e-9), 0, 1)
        distance = np.hypot(*(offset - along[:, None, None] * share))
        self._blend(np.clip(radius - distance + 0.5, 0, 1), colour)

    def ellipse(self, centre: tuple[float, float], radii: tuple[float, float], colour: Floats) -> None:
        """Paint a filled ellipse."""
        norm = np.hypot((self._x - centre[0]) / radii[0], (self._y - centre[1]) / radii[1])
        self._blend(np.clip((1 - norm) * min(radii) + 0.5, 0, 1), colour)

    def sprite(self) -> Sprite:
        """Return what was painted."""
        opacity = np.rint(self.opacity * 256).astype(np.uint16)
        colour = np.rint(self._colour * 256).astype(np.uint16)
        return Sprite(colour, 256 - opacity, self.anchor_x, self.anchor_y)

    def _blend(self, coverage: Floats, colour: Floats) -> None:
        share = coverage[..., None]
        self._colour = self._colour * (1 - share) + share * colour
        self.opacity = self.opacity * (1 - share) + share


def draw_player(colour: Floats, *, unit_px: float, stride: float) -> Sprite:
    """Draw a running player; `unit_px` is about half of the height, `stride` the phase of the step, 0 to 1."""
    canvas = Canvas(-unit_px, -2 * unit_px, unit_px, 0.3 * unit_px)
    swing = 0.35 * unit_px * float(np.sin(2 * np.pi * stride))
    for side in (-1, 1):
        canvas.capsule((0, -0.9 * unit_px), (side * swing, 0), 0.1 * unit_px, _SKIN)
        canvas.capsule((0, -1.4 * unit_px), (-side * swing, -0.9 * unit_px), 0.07 * unit_px, _SKIN)
    canvas.capsule((0, -1.4 * unit_px), (0, -0.9 * unit_px), 0.22 * unit_px, colour)
    canvas.ellipse((0, -1.75 * unit_px), (0.13 * unit_px, 0.16 * unit_px), _HAIR)
    return canvas.sprite()


def torso_mask(width: int, height: int) -> Floats:
    """Return where the shirt of the close-up is, `[H, W, 1]`, 0 to 1."""
    canvas = Canvas(0, 0, width, height)
    canvas.ellipse((width / 2, height * 0.62), (width * 0.47, height * 0.6), np.zeros(3))
    return canvas.opacity


def draw_body(rng: np.random.Generator, width: int, height: int) -> Sprite:
    """Draw head and arms of the close-up's player."""
    canvas = Canvas(0, 0, width, height)
    skin = _SKIN * rng.uniform(0.5, 1.0)
    for side in (-1, 1):
        shoulder = (width * (0.5 + 0.44 * side), height * 0.45)
        canvas.capsule(shoulder, (width * (0.5 + 0.48 * side), height), width * 0.03, skin)
    canvas.ellipse((width / 2, height * 0.1), (width * 0.085, height * 0.16), skin)
    canvas.ellipse((width / 2, height * 0.02), (width * 0.09, height * 0.1), _HAIR)
    return canvas.sprite()


def draw_obstruction(rng: np.random.Generator, width: int, height: int) -> Sprite:
    """Draw the back of somebody who stands close to the lens."""
    canvas = Canvas(0, 0, width, height)
    middle = width * float(rng.uniform(0.46, 0.54))
    canvas.ellipse((middle, height * 0.9), (width * 0.47, height * 0.78), rng.uniform(20, 80, 3))
    canvas.ellipse((middle, height * 0.22), (width * 0.14, height * 0.3), _HAIR)
    return canvas.sprite()


def paste(frame: NDArray[np.uint8], sprite: Sprite, x: int, y: int) -> None:
    """Paint a sprite into a frame `[H, W, 3]`, its anchor at pixel (x, y); what lies outside is cut off."""
    height, width = sprite.clear.shape[:2]
    left, top = x - sprite.anchor_x, y - sprite.anchor_y
    x0, x1 = max(left, 0), min(left + width, frame.shape[1])
    y0, y1 = max(top, 0), min(top + height, frame.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    inside = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    region = frame[y0:y1, x0:x1]
    region[:] = (region * sprite.clear[inside] + sprite.colour[inside]) >> 8
