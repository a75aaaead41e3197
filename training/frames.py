"""Which frames of a clip are decoded. No torch.

Usually the frames are those of the clip specification. Two options choose others:

- Replay-aware: a replay that runs r times slower than life has its frames spread r times farther apart around the
  contact, so that all views show about the same real time. Where the clip is over, its last frame is repeated.
- Jitter: in training the frames are shifted by some frames of real time. The cache then holds the frames of all shifts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mvfoul.clip import CONTACT_FRAME, ClipSpec
from mvfoul.errors import InvalidClipError
from mvfoul.video import decode_clip
from training.annotations import ClipRecord

LAST_FRAME: Final = 125
"""The clips of the data set have 126 or 127 frames: frames that are spread or shifted stay within them."""


@dataclass(frozen=True)
class FrameRule:
    """Which frames of a clip are read."""

    clip: ClipSpec
    jitter: int = 0
    """Frames of real time that a view may be shifted, either way."""
    replay_aware: bool = False

    def frames(self, replay_speed: float | None, shift: int = 0) -> tuple[int, ...]:
        """Return T source frames in order; repeats where a clip is too short for what is asked."""
        speed = max(1.0, replay_speed or 1.0) if self.replay_aware else 1.0
        indices = self.clip.frame_indices
        if speed == 1.0 and shift == 0:
            return indices
        last = max(LAST_FRAME, indices[-1])
        spread = (CONTACT_FRAME + math.floor((i + shift - CONTACT_FRAME) * speed + 0.5) for i in indices)
        return tuple(min(max(index, 0), last) for index in spread)

    def without_jitter(self) -> FrameRule:
        """Return the rule of validation."""
        return replace(self, jitter=0)

    def source(self, replay_speed: float | None) -> ClipSpec:
        """Return the specification of what is decoded: each frame of any shift, once."""
        shifts = range(-self.jitter, self.jitter + 1)
        needed = sorted({index for shift in shifts for index in self.frames(replay_speed, shift)})
        return replace(self.clip, window=(needed[0], needed[-1] + 1), frame_indices=tuple(needed))

    def places(self, replay_speed: float | None, shift: int) -> list[int] | None:
        """Return where the T frames are among those of `source`; None: they are all of them, in order."""
        source = {index: place for place, index in enumerate(self.source(replay_speed).frame_indices)}
        places = [source[index] for index in self.frames(replay_speed, shift)]
        return None if places == list(range(len(source))) else places


def decode_or_reason(clip: ClipRecord, spec: ClipSpec) -> NDArray[np.uint8] | str:
    """Decode a clip, or say why it cannot be.

    Raises:
        OSError: The file cannot be read now; this may pass.
    """
    try:
        return decode_clip(clip.path, spec)
    except InvalidClipError as error:
        return str(error)
