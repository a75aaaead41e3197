"""Simulated cameras: what each kind can tell of an incident.

    wide        follows the play: the turf drifts the other way; players are too small for one to be seen tumbling
    close-up    the fouled player fills the picture before a blurred stand: where the play runs cannot be seen
    blocked     somebody stands in front of the lens: neither can be seen

Every action has at least one wide view and one close-up, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

Outlook = Literal["wide", "close-up", "blocked"]


@dataclass(frozen=True)
class CameraKind:
    """One of SoccerNet's camera types, and what it shows here."""

    name: str
    outlook: Outlook
    replay: bool


KINDS: Final = (
    CameraKind("Main camera center", "wide", replay=False),
    CameraKind("Spider camera", "wide", replay=True),
    CameraKind("Close-up player or field referee", "close-up", replay=True),
    CameraKind("Close-up corner", "close-up", replay=True),
    CameraKind("Public", "blocked", replay=True),
)

_EXTRA_VIEWS: Final[tuple[tuple[Outlook, float], ...]] = (("wide", 0.4), ("close-up", 0.4), ("blocked", 0.2))
_SLOWEST = 1.3
"""assumption: enough to show that speeds of replays differ. Wide views are not slowed: their speed carries a label."""


@dataclass(frozen=True)
class Camera:
    """One camera of an action."""

    kind: CameraKind
    replay_speed: float
    """How many times slower than life the clip shows the incident."""
    width_px: int
    height_px: int


def sample_cameras(rng: np.random.Generator, *, width_px: int, height_px: int) -> tuple[Camera, ...]:
    """Draw the 2 to 4 cameras of an action; nothing of it depends on the labels."""
    names, weights = zip(*_EXTRA_VIEWS, strict=True)
    extra = rng.choice(np.array(names), size=rng.integers(0, 3), p=np.array(weights))
    outlooks = rng.permutation(np.concatenate([np.array(["wide", "close-up"]), extra]))
    cameras = []
    for outlook in outlooks:
        kinds = [kind for kind in KINDS if kind.outlook == outlook]
        kind = kinds[rng.integers(len(kinds))]
        speed = 1.0 if outlook == "wide" else round(float(rng.uniform(1.0, _SLOWEST)), 1)
        cameras.append(Camera(kind, speed, width_px, height_px))
    return tuple(cameras)
