"""Which frames of a clip are read: jitter and replay-aware sampling, down to the decoded pictures."""

from __future__ import annotations

import shutil

import pytest
import torch

from mvfoul.clip import preset
from training.annotations import ClipRecord
from training.cache.store import ClipStore
from training.clips import ClipReader
from training.frames import FrameRule

SPEC = preset(num_frames=4, size_px=32)


@pytest.fixture
def clip(numbered_clip, tmp_path):
    path = tmp_path / "train" / "action_0" / "clip_1.mp4"
    path.parent.mkdir(parents=True)
    shutil.copy(numbered_clip(frames=126, size=(64, 64)), path)
    return lambda speed: ClipRecord(path, "Close-up", speed, None)


def test_without_options_the_frames_are_the_clip_specifications():
    rule = FrameRule(SPEC)
    assert rule.frames(3.0) == SPEC.frame_indices == (56, 68, 81, 93)
    assert rule.source(3.0).frame_indices == SPEC.frame_indices
    assert rule.places(3.0, 0) is None


def test_a_replay_is_spread_around_the_contact_and_held_within_the_clip():
    rule = FrameRule(SPEC, replay_aware=True)
    assert rule.frames(1.0) == rule.frames(None) == rule.frames(0.0) == SPEC.frame_indices
    assert rule.frames(2.0) == (37, 61, 87, 111)
    assert rule.frames(4.0) == (0, 47, 99, 125)
    assert rule.source(4.0).window == (0, 126)
    assert rule.source(10.0).frame_indices == (0, 5, 125)
    assert rule.places(10.0, 0) == [0, 1, 2, 2]


def test_jitter_shifts_all_frames_by_real_time_within_the_clip():
    rule = FrameRule(SPEC, jitter=2)
    assert rule.frames(1.0, 2) == (58, 70, 83, 95)
    assert rule.frames(1.0, -2) == (54, 66, 79, 91)
    assert len(rule.source(1.0).frame_indices) == 20
    assert FrameRule(SPEC, jitter=2, replay_aware=True).frames(2.0, 1) == (39, 63, 89, 113)


@pytest.mark.parametrize("speed", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("origin", ["file", "cache", "memory"])
def test_the_pictures_are_those_of_the_rule(clip, frame_numbers, tmp_path, speed, origin):
    rule = FrameRule(SPEC, jitter=3, replay_aware=True)
    store = ClipStore(tmp_path / "cache", limit_bytes=1 << 20) if origin == "cache" else None
    reader = ClipReader(rule, store=store)
    record = clip(speed)
    if origin == "memory":
        assert reader.preload([record], max_bytes=1 << 20, num_threads=1) == ()
        assert reader.preloaded_bytes == 3 * rule.source(speed).num_frames * 32 * 32
    for _ in range(2):
        for shift in (-3, 0, 2):
            view = reader.read(record, shift)
            assert view.shape == SPEC.view_shape
            assert frame_numbers(view.numpy()) == list(rule.frames(speed, shift))
    if store is not None:
        assert len(list(store.entries())) == 1, "one entry serves every shift"


def test_a_clip_that_is_read_twice_is_the_same_tensor_values(clip):
    reader = ClipReader(FrameRule(SPEC))
    assert torch.equal(reader.read(clip(1.0)), reader.read(clip(1.0)))
