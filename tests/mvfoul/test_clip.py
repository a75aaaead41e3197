"""The clip contract: what it accepts, refuses and never changes."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvfoul.clip import CONTACT_FRAME, ClipSpec, preset, sample_window, with_size
from mvfoul.errors import ClipSpecError


def spec(**overrides):
    return ClipSpec(**{"window": (0, 10), "frame_indices": (1, 4, 9), **overrides})


@st.composite
def specs(draw):
    start, length = draw(st.integers(0, 500)), draw(st.integers(1, 200))
    frames = sorted(draw(st.lists(st.integers(start, start + length - 1), min_size=1, max_size=20)))
    size_px = draw(st.integers(1, 1024))
    unit = st.floats(0, 1, exclude_min=True)
    return ClipSpec(
        window=(start, start + length),
        frame_indices=tuple(frames),
        resize=draw(st.sampled_from(["squash", "center_crop"])),
        size_px=size_px,
        short_side_px=draw(st.integers(size_px, 4096)),
        mean=tuple(draw(st.lists(unit, min_size=3, max_size=3))),
        std=tuple(draw(st.lists(unit, min_size=3, max_size=3))),
        max_views=draw(st.integers(1, 64)),
    )


@given(specs())
def test_a_spec_survives_json(clip):
    assert ClipSpec.from_json(json.loads(json.dumps(clip.to_json()))) == clip


@given(specs())
def test_the_shape_of_a_view_follows_from_the_spec(clip):
    assert clip.view_shape == (3, len(clip.frame_indices), clip.size_px, clip.size_px)
    assert clip.num_frames == len(clip.frame_indices)


def test_vars_2023_takes_the_frames_of_the_originals_float_rule():
    factor = 25 / 17
    assert preset("vars-2023").frame_indices == tuple(63 + j for j in range(24) if j % factor < 1)
    assert preset("vars-2023").resize == "center_crop"
    assert preset("vars-2023").window == (63, 87)


def test_two_second_takes_two_seconds_around_the_contact():
    clip = preset("two-second")
    assert clip.window == (50, 100)
    assert sum(clip.window) / 2 == CONTACT_FRAME
    assert clip.frame_indices == (51, 54, 57, 60, 64, 67, 70, 73, 76, 79, 82, 85, 89, 92, 95, 98)
    assert clip.resize == "squash"
    assert preset("two-second", num_frames=50).frame_indices == tuple(range(50, 100))
    assert preset() == clip


@given(st.integers(0, 200), st.integers(1, 300), st.data())
def test_frames_are_the_middles_of_equal_segments(start, length, data):
    count = data.draw(st.integers(1, length))
    frames = sample_window((start, start + length), count)
    assert len(set(frames)) == count
    assert list(frames) == sorted(frames)
    # Frame f covers [f, f + 1); the middle of segment i lies in the frame that is picked.
    for i, frame in enumerate(frames):
        assert frame <= start + (i + 0.5) * length / count < frame + 1
    steps = {b - a for a, b in itertools.pairwise(frames)}
    assert not steps or max(steps) - min(steps) <= 1


def test_presets_take_overrides_and_refuse_what_they_cannot_yield():
    assert preset("vars-2023", size_px=112, short_side_px=128).view_shape == (3, 16, 112, 112)
    with pytest.raises(ClipSpecError, match="vars-2023 yields 16 frames, not 8"):
        preset("vars-2023", num_frames=8)
    with pytest.raises(ClipSpecError, match=r"cannot pick 51 frames from window \(50, 100\) of 50"):
        preset("two-second", num_frames=51)
    with pytest.raises(ClipSpecError, match="cannot pick 0 frames"):
        preset("two-second", num_frames=0)
    with pytest.raises(ClipSpecError, match="unknown clip preset 'one-second'; known: two-second, vars-2023"):
        preset("one-second")


REFUSED = [
    ({"window": (10, 10)}, r"window is \(10, 10\); it must be \(start, end\) with 0 <= start < end"),
    ({"window": (-1, 10)}, r"window is \(-1, 10\)"),
    ({"window": (0, 5, 10)}, "window is"),
    ({"window": (0.0, 10.0)}, "window is .* list of int values"),
    ({"window": None}, "window is None"),
    ({"frame_indices": ()}, "frame_indices is empty"),
    ({"frame_indices": (4, 1)}, "run backwards; sort them"),
    ({"frame_indices": (1, 10)}, r"\[10\] lie outside window \(0, 10\); frames run from 0 to 9"),
    ({"frame_indices": (True, 4)}, "frame_indices is"),
    ({"frame_indices": "123"}, "frame_indices is '123'"),
    ({"resize": "stretch"}, "resize is 'stretch'; known: squash, center_crop"),
    ({"size_px": 0}, "size_px is 0; it must be a whole number from 1 to 1024"),
    ({"size_px": 224.0}, "size_px is 224.0"),
    ({"size_px": True}, "size_px is True"),
    ({"size_px": 5000}, "size_px is 5000"),
    ({"resize": "center_crop", "size_px": 300}, "short_side_px 256 is smaller than size_px 300; raise it"),
    ({"mean": (0.5, 0.5)}, "three values from 0 to 1"),
    ({"mean": (0.5, 0.5, 128.0)}, "three values from 0 to 1"),
    ({"mean": (0.5, 0.5, float("nan"))}, "three values from 0 to 1"),
    ({"mean": "abc"}, "mean is 'abc'"),
    ({"std": (0.5, 0.5, 0)}, "three values above 0"),
    ({"max_views": 0}, "max_views is 0"),
    ({"max_views": 65}, "max_views is 65"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[str(fields) for fields, _ in REFUSED])
def test_nonsense_is_refused_with_the_value_and_the_cure(fields, message):
    with pytest.raises(ClipSpecError, match=message):
        spec(**fields)


def test_json_of_another_version_is_refused_by_field():
    with pytest.raises(ClipSpecError, match=r"unknown fields \['flip'\]; known: \['frame_indices'"):
        ClipSpec.from_json({**spec().to_json(), "flip": True})
    with pytest.raises(ClipSpecError, match=r"lacks the fields \['std', 'window'\]"):
        ClipSpec.from_json({k: v for k, v in spec().to_json().items() if k not in ("std", "window")})


def test_a_spec_is_frozen_and_can_be_a_key():
    assert {spec(): 1}[spec(window=[0, 10], frame_indices=[1, 4, 9])] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec().size_px = 3


@given(st.integers(1, 1024))
def test_another_size_keeps_the_field_of_view_of_a_centre_crop(size_px):
    clip = with_size(preset("vars-2023"), size_px)
    assert clip.size_px == size_px
    assert abs(clip.short_side_px - 256 / 224 * size_px) <= 0.5 or clip.short_side_px == size_px
    assert clip.frame_indices == preset("vars-2023").frame_indices
