"""What is black and what is frozen, on pictures that no network carries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np

from serving.live.buffer import CodedPicture, Segment
from serving.live.clock import TICKS_PER_S, StreamClock
from serving.live.streaming.programme import EncodedPicture, decode_keyframe, length_ticks, read_clip, still
from serving.live.watch import PictureWatch

SEGMENT = Segment(connection=1, codec="h264", clock=StreamClock(fixed_s=0.0))


def _look(watch: PictureWatch, pictures: Iterable[EncodedPicture], start_s: float) -> list[str]:
    """Show pictures from an instant on; return what was thought after each keyframe."""
    seen = []
    for one in pictures:
        ticks = one.ticks + round(start_s * TICKS_PER_S)
        watch.look(CodedPicture(one.data, ticks, ticks, one.is_keyframe, False, SEGMENT))
        if one.is_keyframe:
            seen.append("black" if watch.is_black else "frozen" if watch.is_frozen else "")
    return seen


def test_a_clip_of_one_keyframe_that_is_played_over_and_over_is_not_frozen(
    numbered_clip: Callable[..., Path],
) -> None:
    clip = read_clip(numbered_clip(frames=60, gop=1000, options={"bf": "2", "sc_threshold": "0"}))
    assert sum(picture.is_keyframe for picture in clip) == 1
    watch = PictureWatch()
    seen = [word for loop in range(6) for word in _look(watch, clip, loop * length_ticks(clip) / TICKS_PER_S)]
    assert seen == [""] * 6


def test_a_frozen_picture_is_seen_and_from_when_on(numbered_clip: Callable[..., Path]) -> None:
    clip = read_clip(numbered_clip(frames=60, gop=1000))
    watch = PictureWatch()
    _look(watch, clip, 0.0)
    frozen = islice(still(decode_keyframe(clip[0], "h264")), 101)
    assert _look(watch, frozen, 10.0)[-1] == "frozen"
    assert [watch.state_at(s) for s in (9.0, 12.9, 14.0)] == ["", "frozen", "frozen"]


def test_a_frozen_picture_is_seen_although_the_encoder_keeps_its_bit_rate_constant() -> None:
    """libx264 fills each picture up to 10,000 bytes."""
    bytes_each = 10_000
    scene = np.random.default_rng(0).integers(0, 256, (9, 16, 3), np.uint8).repeat(32, 0).repeat(32, 1)
    frozen, moving = ([scene] * 126, [np.roll(scene, 4 * n, axis=1) for n in range(126)])
    seen = {}
    for name, pictures in {"frozen": frozen, "moving": moving}.items():
        coded = list(_constant_rate(pictures, kbit_s=bytes_each * 8 * 25 // 1000))
        rate = [len(one.data) for one in coded[76:] if not one.is_keyframe]
        assert np.median(rate) > 0.9 * bytes_each
        seen[name] = _look(PictureWatch(), coded, 0.0)[-1]
    assert seen == {"frozen": "frozen", "moving": ""}


def _constant_rate(pictures: list[np.ndarray], kbit_s: int) -> Iterator[EncodedPicture]:
    encoder = av.CodecContext.create("libx264", "w")
    encoder.height, encoder.width = pictures[0].shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.framerate, encoder.gop_size = "yuv420p", Fraction(1, 25), 25, 25
    rate = f"bitrate={kbit_s}:vbv-maxrate={kbit_s}:vbv-bufsize={kbit_s}:nal-hrd=cbr:bframes=0"
    encoder.options = {"preset": "veryfast", "x264-params": rate}
    frames = [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures]
    for number, frame in enumerate(frames):
        frame.pts = number
    for packet in [packet for frame in [*frames, None] for packet in encoder.encode(frame)]:
        ticks = packet.pts * TICKS_PER_S // 25
        yield EncodedPicture(bytes(packet), ticks, ticks, packet.is_keyframe)


def test_the_first_picture_after_black_counts_even_if_it_comes_at_once(numbered_clip: Callable[..., Path]) -> None:
    watch = PictureWatch()
    black = still(np.zeros((256, 256, 3), np.uint8))
    assert _look(watch, islice(black, 126), 0.0)[-1] == "black"  # the last keyframe is at 5.0 s
    clip = read_clip(numbered_clip(frames=60, gop=1000))
    assert _look(watch, clip, 5.04) == [""]
    assert [watch.state_at(s) for s in (4.9, 5.1, 7.0)] == ["black", "", ""]
