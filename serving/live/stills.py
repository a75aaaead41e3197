"""Pictures of a clip as JPEG, for reports: decoded by the project's one decoder, so an upload is no risk of its own."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import av
import numpy as np
from numpy.typing import NDArray

from mvfoul.clip import CONTACT_FRAME, ClipSpec
from mvfoul.errors import InvalidClipError
from mvfoul.video import decode_clip

SIZE_PX: Final = 320
FRAMES: Final = (CONTACT_FRAME - 12, CONTACT_FRAME, CONTACT_FRAME + 12)
"""Half a second before the contact, the contact, half a second after, at 25 fps."""

_SPEC: Final = ClipSpec(window=(0, 125), frame_indices=FRAMES, size_px=SIZE_PX)


def stills(clip: bytes) -> list[bytes]:
    """Return the pictures at `FRAMES` as JPEG, squashed to a square (show them at 16:9); none of a damaged clip."""
    try:
        view = decode_clip(clip, _SPEC)
    except InvalidClipError:
        return []
    return [jpeg(view[:, t].transpose(1, 2, 0)) for t in range(len(FRAMES))]


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    """Encode one picture, uint8 `[H, W, 3]` with even sides."""
    context = av.CodecContext.create("mjpeg", "w")
    context.height, context.width = picture.shape[:2]
    context.pix_fmt, context.time_base, context.color_range = "yuvj420p", Fraction(1, 25), 2
    context.options = {"qscale": "4", "threads": "1"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format="yuvj420p")
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])
