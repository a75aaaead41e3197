"""Look at a keyframe now and then: is the picture black, or does it no longer change?

Cheap by design: one keyframe a second is decoded, by itself, and every few pixels are compared; of what lies between,
only the size, without what an encoder adds to keep its bit rate constant (filler data).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import av
import numpy as np
from numpy.typing import NDArray

from mvfoul.video import DEFAULT_LIMITS
from serving.live.buffer import CodedPicture

PictureState = Literal["", "black", "frozen"]
FAULTS: Final[Mapping[PictureState, str]] = {"black": "the picture is black", "frozen": "the picture does not change"}
"""What people are told."""

_PERIOD_S: Final = 0.9
_FROZEN_AFTER_S: Final = 1.8
_GRID_PX: Final = (128, 72)
_BLACK_BELOW: Final = 24
"""Of 255: nearly all pixels are darker."""
# A picture that is repeated is encoded nearly the same again; sensor noise alone changes more than this.
_SAME_MEAN: Final = 0.35
_SAME_PIXEL: Final = 8
_SAME_SHARE: Final = 0.001
# Between the keyframes of a frozen picture the encoder says "as before" in a few bytes; a clip that is played over and
# over has equal keyframes too, but what moves lies between them.
_STILL_BYTES: Final = 64
_STILL_SHARE: Final = 0.02
_START_CODE: Final = b"\0\0\1"
# nal_unit_type of filler data: H.264 table 7-1 (12), H.265 table 7-1 (FD_NUT, 38).
_FILLER: Final[Mapping[str, Callable[[int], bool]]] = {
    "h264": lambda header: header & 0x1F == 12,
    "hevc": lambda header: header >> 1 & 0x3F == 38,
}


class PictureWatch:
    """Remembers the last keyframe that it looked at, and what it thought of those before."""

    def __init__(self) -> None:
        self._history: deque[tuple[float, PictureState]] = deque(maxlen=64)
        """Since when, and what; changes only."""
        self.reset()

    def reset(self) -> None:
        """Begin with a new connection; what was seen before stays known."""
        self.is_black = False
        self.is_frozen = False
        self.size_px = (0, 0)
        self._last: NDArray[np.uint8] | None = None
        self._looked_s = float("-inf")
        self._same_since_s: float | None = None
        self._between: list[int] = []
        """Bytes of the pictures since the last keyframe that was looked at, but for keyframes."""

    def state_at(self, instant_s: float) -> PictureState:
        """Return how the picture was at an instant on the common clock; later than the last look, as it was then."""
        return next((state for since_s, state in reversed(self._history) if since_s <= instant_s), "")

    def look(self, picture: CodedPicture) -> None:
        """Judge a keyframe, unless all was well less than a second ago."""
        at_s = picture.unix_s
        if not picture.is_keyframe:
            self._between.append(content_bytes(picture.data, picture.segment.codec))
            return
        if 0 <= at_s - self._looked_s < _PERIOD_S and not (self.is_black or self.is_frozen):
            return  # Trouble is looked at each time: the next keyframe may be seconds away.
        frame = _decode(picture)
        if frame is None:
            return
        self._looked_s = at_s
        self.size_px = (frame.width, frame.height)
        width, height = _GRID_PX
        pixels = frame.reformat(width, height, "gray", interpolation="POINT", threads=1).to_ndarray()
        self.is_black = bool(np.percentile(pixels, 99) < _BLACK_BELOW)
        keyframe_bytes = content_bytes(picture.data, picture.segment.codec)
        if self._last is None or self._moved(keyframe_bytes) or not is_same(self._last, pixels):
            self._same_since_s = at_s
        self._last, self._between = pixels, []
        self.is_frozen = self._same_since_s is not None and at_s - self._same_since_s >= _FROZEN_AFTER_S
        self._remember(at_s)

    def _moved(self, keyframe_bytes: int) -> bool:
        """Whether something happened between two keyframes, by the bytes that it took."""
        still = max(_STILL_BYTES, _STILL_SHARE * keyframe_bytes)
        return bool(self._between) and sum(self._between) / len(self._between) > still

    def _remember(self, at_s: float) -> None:
        state: PictureState = "black" if self.is_black else "frozen" if self.is_frozen else ""
        if state == "frozen" and self._same_since_s is not None:
            at_s = self._same_since_s  # known only now
            while self._history and self._history[-1][0] >= at_s and self._history[-1][1] != "black":
                self._history.pop()
        if (self._history[-1][1] if self._history else None) != state:
            self._history.append((at_s, state))


def is_same(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    """Whether two pictures, uint8 `[H, W]`, are one picture encoded twice."""
    difference = np.abs(a.astype(np.int16) - b.astype(np.int16))
    return bool(difference.mean() < _SAME_MEAN and (difference > _SAME_PIXEL).mean() < _SAME_SHARE)


def content_bytes(data: bytes, codec: str) -> int:
    """Return the size of a coded picture without filler data.

    Args:
        data: H.264 or H.265 with start codes, as networks carry them; of anything else all bytes count.
        codec: FFmpeg's name of it.
    """
    is_filler = _FILLER.get(codec)
    if is_filler is None or not data.startswith((_START_CODE, b"\0" + _START_CODE)):
        return len(data)
    units = data.split(_START_CODE)
    # A slice may end in cabac_zero_words (H.264 7.3.2.8): 0x0000 with an emulation prevention byte between.
    return sum(len(unit.rstrip(b"\0\3")) for unit in units if unit and not is_filler(unit[0]))


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
