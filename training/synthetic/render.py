"""From a view to the frames of its clip, uint8 RGB `[H, W, 3]`.

The mottled field that drifts is periodic, so a frame is the field's cut at the drift's displacement; players, body and
lens blockers are sprites that are drawn once per clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.synthetic.cameras import Camera
from training.synthetic.scene import Floats, Motion, Scene
from training.synthetic.sprites import Sprite, draw_body, draw_obstruction, draw_player, paste, torso_mask

Frame = NDArray[np.uint8]

_MOTTLE = 1 / 16  # of the picture, in both directions: the standard deviation of the smoothing
_FIELD = 2  # pictures per period of the field, in both directions
_CONTRAST: Final = 32.0  # grey levels, standard deviation
_FAINT: Final = 6.0  # the same, of a stand out of focus
_STRIDE_FRAMES = 4  # a running step's pose lasts so long

_Draw = Callable[[int, Frame], Frame]
"""Makes the picture of frame number t out of the field's cut."""


def render_clip(scene: Scene, camera: Camera, rng: np.random.Generator) -> Iterator[Frame]:
    """Yield the 126 frames that `camera` records of `scene`, the contact at frame 75."""
    width, height = camera.width_px, camera.height_px
    paint = {"wide": _wide, "close-up": _close_up, "blocked": _blocked}[camera.kind.outlook]
    field, draw = paint(rng, width, height)
    # One picture more on each axis, so that every cut is one slice.
    tiled = np.pad(field, ((0, height), (0, width), (0, 0)), mode="wrap")
    period = np.array([_FIELD * width, _FIELD * height])
    # What drifts to the right is cut out further and further to the left.
    motion: Motion = scene.play if camera.kind.outlook == "wide" else scene.tumble
    displacement = motion.path() / camera.replay_speed * (width, height)
    corners = rng.integers(0, period) - np.rint(displacement).astype(np.int64)
    for t, (x, y) in enumerate((corners % period).tolist()):
        yield draw(t, tiled[y : y + height, x : x + width])


def _wide(rng: np.random.Generator, width: int, height: int) -> tuple[Frame, _Draw]:
    """Turf under a camera that follows the play; three small players run on the spot in the middle."""
    players = [_Runner(rng, width, height) for _ in range(3)]

    def draw(t: int, cut: Frame) -> Frame:
        frame = cut.copy()
        for player in players:
            player.draw(frame, t)
        return frame

    return _mottled(rng, np.array([62.0, 128.0, 52.0]), width, height), draw


def _close_up(rng: np.random.Generator, width: int, height: int) -> tuple[Frame, _Draw]:
    """The fouled player's body before a blurred stand; the shirt's pattern moves as the body tumbles."""
    stand = _mottled(rng, rng.uniform(50, 110, 3), width, height, contrast=_FAINT)[:height, :width].copy()
    body = draw_body(rng, width, height)
    # Stand, head and arms never change: one sprite with a hole where the shirt is.
    outside = torso_mask(width, height) < 0.5
    paste(stand, body, 0, 0)
    still = Sprite(
        np.where(outside, stand.astype(np.uint16) << 8, body.colour), np.where(outside, np.uint16(0), body.clear), 0, 0
    )

    def draw(_t: int, cut: Frame) -> Frame:
        frame = cut.copy()
        paste(frame, still, 0, 0)
        return frame

    return _mottled(rng, rng.uniform(70, 190, 3), width, height), draw


def _blocked(rng: np.random.Generator, width: int, height: int) -> tuple[Frame, _Draw]:
    """The back of a spectator, whatever happens behind."""
    stand = _mottled(rng, rng.uniform(50, 110, 3), width, height, contrast=_FAINT)
    picture = stand[:height, :width].copy()
    paste(picture, draw_obstruction(rng, width, height), 0, 0)
    return np.zeros((_FIELD * height, _FIELD * width, 3), np.uint8), lambda _t, _cut: picture


class _Runner:
    """A small player who runs on the spot, as under a camera that follows."""

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        colour = rng.uniform(40, 230, 3)
        unit = height * float(rng.uniform(0.13, 0.16))
        self._poses: list[Sprite] = [draw_player(colour, unit_px=unit, stride=pose / 4) for pose in range(4)]
        self._x = int(width * rng.uniform(0.3, 0.7))
        self._y = int(height * rng.uniform(0.45, 0.8))
        self._phase = int(rng.integers(16))

    def draw(self, frame: Frame, t: int) -> None:
        """Paste the pose of frame `t`."""
        paste(frame, self._poses[(t + self._phase) // _STRIDE_FRAMES % 4], self._x, self._y)


def _mottled(
    rng: np.random.Generator, colour: Floats, width: int, height: int, *, contrast: float = _CONTRAST
) -> Frame:
    """Return a periodic field of soft patches around a colour, `[2 H, 2 W, 3]`."""
    shape = (_FIELD * height, _FIELD * width)
    spectrum = np.fft.rfft2(rng.standard_normal(shape))
    # The Fourier transform of a Gaussian of that standard deviation.
    rows = np.exp(-2 * (np.pi * np.fft.fftfreq(shape[0]) * _MOTTLE * height) ** 2)
    columns = np.exp(-2 * (np.pi * np.fft.rfftfreq(shape[1]) * _MOTTLE * width) ** 2)
    field = np.fft.irfft2(spectrum * rows[:, None] * columns, s=shape)
    light = contrast / field.std() * field
    shaded: Frame = np.clip(colour * rng.uniform(0.85, 1.1) + light[..., None], 0, 255).astype(np.uint8)
    return shaded
