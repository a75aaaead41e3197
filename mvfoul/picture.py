"""What PyAV does not tell about a picture: whether others refer to it, whether data is missing, which way up it is."""

from __future__ import annotations

from math import atan2, degrees
from typing import Any

import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from mvfoul.errors import InvalidClipError

_SLICES = range(1, 6)
_HOLE = bytes(16)


def is_reference(packet: Packet[VideoStream], codec_name: str, extradata: bytes | None) -> bool:
    """Whether other pictures may refer to this one; True where it is not known.

    Known for H.264 in mp4 and Matroska: each unit is a length and a header, whose two bits `nal_ref_idc` are 0 in all
    slices of a picture that nobody refers to (ITU-T H.264, 7.4.1).
    """
    if codec_name != "h264" or not extradata or not _has_lengths(codec_name, extradata):
        return True
    length_bytes = (extradata[4] & 3) + 1
    data, position = memoryview(packet), 0
    while position + length_bytes < len(data):
        unit_bytes = int.from_bytes(data[position : position + length_bytes], "big")
        if unit_bytes == 0:
            # Never written: whatever follows is not the header of a unit.
            return True
        header = data[position + length_bytes]
        if header & 31 in _SLICES:
            return bool(header & 0x60)
        position += length_bytes + unit_bytes
    return True


def has_hole(packet: Packet[VideoStream], codec_name: str, extradata: bytes | None) -> bool:
    """Whether a part of a picture's data was never written, as in a file whose download was interrupted.

    H.264 and H.265 escape zeros: three in a row do not occur (ITU-T H.264, 7.4.1). FFmpeg decodes them all the same.
    """
    return _has_lengths(codec_name, extradata) and _HOLE in bytes(packet)


def _has_lengths(codec_name: str, extradata: bytes | None) -> bool:
    """Whether units follow their lengths (mp4, Matroska), and not start codes, between which zeros are padding."""
    return codec_name in ("h264", "hevc") and extradata is not None and len(extradata) > 6 and extradata[0] == 1


def upright(rgb: NDArray[np.uint8], frame: VideoFrame) -> NDArray[np.uint8]:
    """Turn and mirror a picture `[H, W, 3]` as its display matrix says; a view, not a copy.

    The matrix maps a stored point (x, y) to the shown one (a x + c y, b x + d y); scale and offset do not matter here.

    Raises:
        InvalidClipError: The matrix turns by something else than a multiple of 90 degrees.
    """
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError as error:  # PyAV stumbles over kinds of side data that it does not know, whichever is asked for.
        raise InvalidClipError(f"the clip has pictures of a special kind ({error}). Encode it again as mp4.") from error
    if matrix is None:
        return rgb
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if a and d and not b and not c:
        return rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    if b and c and not a and not d:
        return rgb.transpose(1, 0, 2)[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]
    raise InvalidClipError(
        f"the clip is turned by {-degrees(atan2(b, a)):.0f} degrees; only quarter turns can be shown. Turn it."
    )
