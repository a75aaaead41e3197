"""Look at a keyframe now and then: is the picture black, or does it no longer change?

Cheap by design: one keyframe a second is decoded, by itself, and every few pixels are compared.
"""

from __future__ import annotations

from typing import Any, Final

import av
import numpy as np
from numpy.typing import NDArray

from mvfoul.video import DEFAULT_LIMITS
from serving.live.buffer import CodedPicture

_PERIOD_S: Final = 0.9
_FROZEN_AFTER_S: Final = 1.8
_GRID_PX: Final = (128, 72)
_BLACK_BELOW: Final = 24
"""Of 255: nearly all pixels are darker."""
# A picture that is repeated is encoded nearly the same again; sensor noise alone changes more than this.
_SAME_MEAN: Final = 0.35
_SAME_PIXEL: Final = 8
_SAME_SHARE: Final = 0.001


class PictureWatch:
    """Remembers the last keyframe that it looked at."""

    def __init__(self) -> None:
        self.is_black = False
        self.is_frozen = False
        self.size_px = (0, 0)
        self._last: NDArray[np.uint8] | None = None
        self._looked_s = float("-inf")
        self._same_since_s: float | None = None

    def look(self, picture: CodedPicture) -> None:
        """Judge a keyframe, unless the last one was looked at less than a second ago."""
        at_s = picture.unix_s
        if not picture.is_keyframe or 0 <= at_s - self._looked_s < _PERIOD_S:
            return
        frame = _decode(picture)
        if frame is None:
            return
        self._looked_s = at_s
        self.size_px = (frame.width, frame.height)
        width, height = _GRID_PX
        pixels = frame.reformat(width, height, "gray", interpolation="POINT", threads=1).to_ndarray()
        self.is_black = bool(np.percentile(pixels, 99) < _BLACK_BELOW)
        if self._last is None or not is_same(self._last, pixels):
            self._same_since_s = at_s
        self._last = pixels
        self.is_frozen = self._same_since_s is not None and at_s - self._same_since_s >= _FROZEN_AFTER_S


def is_same(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    """Whether two pictures, uint8 `[H, W]`, are one picture encoded twice."""
    difference = np.abs(a.astype(np.int16) - b.astype(np.int16))
    return bool(difference.mean() < _SAME_MEAN and (difference > _SAME_PIXEL).mean() < _SAME_SHARE)


def _decode(picture: CodedPicture) -> Any:
    """Decode a keyframe alone; None if it cannot be."""
    segment = picture.segment
    decoder: Any = av.CodecContext.create(segment.codec, "r")
    decoder.thread_count = 1
    decoder.options = {"max_pixels": str(DEFAULT_LIMITS.max_frame_pixels)}
    if segment.extradata:
        decoder.extradata = segment.extradata
    try:
        frames = [*decoder.decode(av.Packet(picture.data)), *decoder.decode(None)]
    except (av.error.FFmpegError, ValueError):
        return None
    return frames[0] if frames else None
