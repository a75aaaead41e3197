"""A cut shows the pictures that the camera showed: read off the frame numbers burnt into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvfoul.clip import ClipSpec
from mvfoul.video import decode_clip, probe_clip
from serving.live.buffer import CodedPicture
from serving.live.cut import CutError, cut_pictures
from serving.live.intake import Intake
from serving.live.source import open_source

STARTS_S = 1_764_000_000.0
"""When the first picture was taken."""
NTSC = Fraction(30_000, 1001)

STREAMS = {
    "h264": {"gop": 12},
    "h264, long group": {"gop": 250, "options": {"bf": "3"}},
    "h264, B-frames in a pyramid, 50 fps": {"fps": 50, "gop": 50, "options": {"bf": "3", "b-pyramid": "normal"}},
    "h264, 29.97 fps": {"fps": NTSC, "gop": 30, "options": {"bf": "2"}},
    "h264, open groups": {"gop": 30, "options": {"bf": "3", "x264-params": "open-gop=1"}},
    "hevc": {"codec": "libx265", "gop": 40, "options": {"preset": "ultrafast", "x265-params": "log-level=none"}},
    "hevc, B-frames, 29.97 fps": {
        "codec": "libx265",
        "fps": NTSC,
        "gop": 60,
        "options": {"preset": "fast", "x265-params": "log-level=none:bframes=4:open-gop=1:keyint=60"},
    },
    "mpeg2video, 50 fps": {"codec": "mpeg2video", "fps": 50, "gop": 25, "options": {"bf": "2", "b": "4M"}},
    "mpeg4": {"codec": "mpeg4", "gop": 12, "options": {"b": "2M"}},
    "mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "container": "mkv"},
    "h264 with parameters outside of the pictures": {"gop": 25, "container": "mkv", "options": {"bf": "2"}},
}


def _whole(before_s: float = 3.0, after_s: float = 1.1) -> ClipSpec:
    """Every frame from the cut's time zero to its end."""
    frames = int((before_s + after_s) * 25)
    return ClipSpec(window=(0, frames), frame_indices=tuple(range(frames)), size_px=32)


def _pictures(path: Path, *, skip: int = 0, offset_s: float = 0.0) -> list[CodedPicture]:
    """What a camera would have buffered of a file, had it begun to watch `skip` packets late."""
    intake = Intake(offset_s=offset_s)
    with open_source(str(path)) as source:
        intake.connect(source)
        # The first picture sets the clock, seen or not.
        taken = [intake.take(received, STARTS_S) for received in source.pictures()]
    heard = taken[skip:]
    first = next(i for i, picture in enumerate(heard) if picture.is_keyframe)
    width, height = probe_clip(path).width_px, probe_clip(path).height_px
    for picture in heard:
        picture.segment.width_px, picture.segment.height_px = width, height
    return heard[first:]


@pytest.fixture(scope="module")
def streams(numbered_clip: Callable[..., Path]) -> Callable[[str], tuple[Path, Fraction]]:
    made: dict[str, Path] = {}

    def stream(name: str) -> tuple[Path, Fraction]:
        how = {"container": "ts", **STREAMS[name]}
        if name not in made:
            made[name] = numbered_clip(frames=250, **how)
        return made[name], Fraction(how.get("fps", 25))

    return stream


def _check(numbers: Sequence[int], start_s: float, fps: Fraction, spec: ClipSpec) -> None:
    """Each picture is the one on display at its frame's instant, or 1 ms late; ticks round."""
    assert len(numbers) == spec.num_frames
    for number, index in zip(numbers, spec.frame_indices, strict=True):
        at_s, shown_s = start_s + index / 25 + 0.001, float(number / fps)
        assert shown_s - 3e-5 <= at_s < shown_s + float(1 / fps) + 3e-5, (start_s, index, number)


@pytest.mark.parametrize("name", STREAMS)
def test_the_cut_shows_what_the_camera_showed(
    name: str,
    streams: Callable[[str], tuple[Path, Fraction]],
    frame_numbers: Callable[[np.ndarray], list[int]],
) -> None:
    path, fps = streams(name)
    pictures, spec = _pictures(path), _whole()
    last_s = 250 / fps - Fraction(41, 10)

    for start_s in (0.0, 0.361, 0.375, 0.5, float(last_s) - 0.195):
        data, _, first_s = cut_pictures("main", pictures, STARTS_S + start_s, STARTS_S + start_s + 4.1)
        _check(frame_numbers(decode_clip(data, spec)), start_s, fps, spec)
        assert -0.0011 < STARTS_S + start_s - first_s < 1 / fps


@settings(max_examples=40)
@given(start_s=st.floats(0, 0.83), offset_s=st.floats(-5, 5), skip=st.sampled_from([0, 0, 1, 7]))
def test_any_contact_at_any_offset_from_any_place_in_a_group(
    streams: Callable[[str], tuple[Path, Fraction]],
    frame_numbers: Callable[[np.ndarray], list[int]],
    start_s: float,
    offset_s: float,
    skip: int,
) -> None:
    path, fps = streams("h264, B-frames in a pyramid, 50 fps")
    spec = _whole()
    at_s = STARTS_S + offset_s + start_s
    pictures = _pictures(path, skip=skip, offset_s=offset_s)
    if pictures[0].unix_s > at_s + 0.001:
        with pytest.raises(CutError, match="not in the buffer"):
            cut_pictures("main", pictures, at_s, at_s + 4.1)
        return
    data, _, _ = cut_pictures("main", pictures, at_s, at_s + 4.1)
    _check(frame_numbers(decode_clip(data, spec)), start_s, fps, spec)


def test_a_cut_says_what_the_buffer_lacks(streams: Callable[[str], tuple[Path, Fraction]]) -> None:
    path, _ = streams("h264")
    pictures = _pictures(path, skip=13)

    with pytest.raises(CutError, match=r"camera main: the first 0\.96 s of the cut are not in the buffer"):
        cut_pictures("main", pictures, STARTS_S, STARTS_S + 4.1)
    with pytest.raises(CutError, match=r"camera main: the last 1\.\d\d s of the cut have not arrived"):
        cut_pictures("main", pictures, STARTS_S + 7, STARTS_S + 11.1)
    with pytest.raises(CutError, match="camera main: its buffer is empty"):
        cut_pictures("main", [], STARTS_S, STARTS_S + 4.1)


def test_a_cut_with_a_hole_or_damage_is_refused(streams: Callable[[str], tuple[Path, Fraction]]) -> None:
    path, _ = streams("h264")
    pictures = _pictures(path)
    holed = [p for p in pictures if not 2.1 <= p.unix_s - STARTS_S < 2.8]
    damaged = [replace(p, is_corrupt=i == 60) for i, p in enumerate(pictures)]

    with pytest.raises(CutError, match=r"camera main: 0\.7\d s without a picture, from 2\.08 s after"):
        cut_pictures("main", holed, STARTS_S, STARTS_S + 4.1)
    with pytest.raises(CutError, match="parts of the pictures were lost on the way"):
        cut_pictures("main", damaged, STARTS_S, STARTS_S + 4.1)


def test_a_cut_of_which_nothing_can_be_built_is_refused(streams: Callable[[str], tuple[Path, Fraction]]) -> None:
    path, _ = streams("hevc")
    pictures = _pictures(path)
    # The keyframe's slices are gone, and the picture after it.
    maimed = [replace(p, data=p.data[:40]) if p.is_keyframe else p for i, p in enumerate(pictures) if i % 40 != 1]

    with pytest.raises(CutError, match="camera main: pictures were lost, and what is left is no clip"):
        cut_pictures("main", maimed, STARTS_S + 0.1, STARTS_S + 4.2)


def test_a_lost_picture_that_others_do_not_need_is_no_harm(
    streams: Callable[[str], tuple[Path, Fraction]],
) -> None:
    path, _ = streams("mpeg4")
    pictures = _pictures(path)
    held = [p for i, p in enumerate(pictures) if i != 47]  # the last before a keyframe

    data, frames, _ = cut_pictures("main", held, STARTS_S, STARTS_S + 4.1)
    assert frames == 103 - 1
    assert decode_clip(data, _whole()).any()


def test_a_cut_across_two_connections_is_refused(streams: Callable[[str], tuple[Path, Fraction]]) -> None:
    path, _ = streams("h264")
    pictures = _pictures(path)
    again = replace(pictures[60].segment, connection=2)
    mixed = [replace(p, segment=again) if p.ticks > pictures[60].ticks else p for p in pictures]

    with pytest.raises(CutError, match="it was reconnected in the cut"):
        cut_pictures("main", mixed, STARTS_S, STARTS_S + 4.1)


def test_two_pictures_of_one_time_are_cut_all_the_same(
    streams: Callable[[str], tuple[Path, Fraction]], frame_numbers: Callable[[np.ndarray], list[int]]
) -> None:
    path, fps = streams("h264")
    pictures = _pictures(path)
    doubled = [replace(p, ticks=p.ticks - 3600) if p.unix_s == pictures[2].unix_s else p for p in pictures]
    spec = ClipSpec(window=(10, 100), frame_indices=tuple(range(10, 100)), size_px=32)

    data, frames, _ = cut_pictures("main", doubled, STARTS_S, STARTS_S + 4.1)
    _check(frame_numbers(decode_clip(data, spec)), 0.0, fps, spec)
    assert frames >= 103
