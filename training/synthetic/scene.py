"""The simulated incident: what moves, and how the motion decides both labels.

Two things move independently around the contact:

    the play     runs over the pitch in one of 4 directions, slow or fast         4 x 2 = 8 action classes
    the body     of the fouled player tumbles in one of 4 directions              4 offence severities

No camera sees both (`training.synthetic.cameras`): where the play runs shows in wide views, whose turf drifts the other
way because the camera follows; how the body tumbles shows in close-ups. All views of an action together decide both
labels, and no single view does.

Why a still frame decides neither: turf and shirts are mottled with random fields whose statistics are the same
everywhere, cut out at a random place. A drift changes which part is seen, not what it looks like.

Motion has its meaning only within `DECISIVE_S` of the contact. Before and after, everything drifts at random: a model
that reads the wrong frames learns nothing. A horizontal flip turns left into right, and so changes labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mvfoul.clip import CONTACT_FRAME, TIMELINE_FPS
from mvfoul.labels import FoulLabels

Floats = NDArray[np.float64]
Velocity = tuple[float, float]
"""Pictures per second, x to the right and y down."""

NUM_FRAMES: Final = 126
DECISIVE_S: Final = 1.1
"""The two-second window of the clip contract lies within."""

# Pictures per second. At 8 frames in two seconds and 16 px this is 0.45, 1.5 and 1 px from frame to frame: less than
# the size of a mottle, so that the direction is never ambiguous.
_SLOW, _FAST, _TUMBLE = 0.11, 0.375, 0.25
_SPREAD = 0.12  # every speed varies by this share


@dataclass(frozen=True)
class Motion:
    """Velocity in the picture within `DECISIVE_S` of the contact, and another before and after."""

    before: Velocity
    decisive: Velocity
    after: Velocity

    def path(self) -> Floats:
        """Return the displacement at each frame, `[126, 2]` in pictures, 0 at the contact."""
        times_s = (np.arange(NUM_FRAMES) - CONTACT_FRAME) / TIMELINE_FPS
        inner = np.clip(times_s, -DECISIVE_S, DECISIVE_S)
        path = inner[:, None] * np.array(self.decisive)
        path += np.minimum(times_s - inner, 0)[:, None] * np.array(self.before)
        path += np.maximum(times_s - inner, 0)[:, None] * np.array(self.after)
        return np.asarray(path, dtype=np.float64)


@dataclass(frozen=True)
class Scene:
    """One incident, before any camera looks at it."""

    labels: FoulLabels
    play: Motion
    """What the turf does under a camera that follows the play."""
    tumble: Motion
    """What the pattern of the fouled player's shirt does."""


def sample_scene(labels: FoulLabels, rng: np.random.Generator) -> Scene:
    """Draw an incident with these labels; only the decisive velocities depend on them."""
    play = _motion(labels.action % 4, (_SLOW, _FAST)[labels.action // 4], rng)
    return Scene(labels, play, _motion(labels.offence_severity, _TUMBLE, rng))


def _motion(quarter_turns: int, speed: float, rng: np.random.Generator) -> Motion:
    def velocity(turns: int, size: float) -> Velocity:
        angle = np.pi / 2 * turns
        size *= rng.uniform(1 - _SPREAD, 1 + _SPREAD)
        return float(np.cos(angle) * size), float(-np.sin(angle) * size)

    before, after = (velocity(int(rng.integers(4)), float(rng.uniform(_SLOW, _FAST))) for _ in range(2))
    return Motion(before, velocity(quarter_turns, speed), after)
