from __future__ import annotations

import json

import numpy as np
import pytest

from export.batches import generated_batches, golden_views, held_out_batches
from mvfoul.clip import preset
from mvfoul.errors import AnnotationError, ConfigError

CLIP = preset("two-second", num_frames=4, size_px=16)


def test_the_encoder_is_asked_at_one_two_three_and_seven_views_and_one_action_has_as_many_as_allowed():
    batches = generated_batches(CLIP)
    assert [len(batch.views) for batch in batches] == [1, 2, 3, 7]
    assert batches[-1].view_counts == (CLIP.max_views, 2)


def test_the_golden_views_are_among_those_that_were_compared():
    compared = {view.tobytes() for batch in generated_batches(CLIP) for view in batch.views}
    assert len(compared) == 8
    assert {view.tobytes() for view in golden_views(CLIP)} <= compared


@pytest.mark.parametrize("max_views", [1, 2, 5, 12])
def test_no_action_has_more_views_than_the_contract_allows(max_views):
    clip = preset("two-second", num_frames=4, size_px=16, max_views=max_views)
    for batch in generated_batches(clip):
        assert sum(batch.view_counts) == len(batch.views)
        assert 1 <= min(batch.view_counts) <= max(batch.view_counts) <= max_views
    assert len(golden_views(clip)) == min(2, max_views)


def test_generated_views_are_the_same_every_time_and_hold_the_adversarial_ones():
    first, second = generated_batches(CLIP), generated_batches(CLIP)
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours.views, theirs.views)
    by_name = {batch.name: batch.views for batch in first}
    assert by_name["black and white"][0].max() == 0
    assert by_name["black and white"][1].min() == 255
    repeated = by_name["one view repeated"]
    assert (repeated == repeated[0]).all()
    assert len(np.unique(by_name["two actions"], axis=0)) == 7


def test_gradients_move_from_frame_to_frame():
    gradient = golden_views(CLIP)[0].astype(int)
    assert np.abs(np.diff(gradient, axis=1)).mean() > 5


def test_held_out_actions_come_from_the_whole_split(sample_root):
    batches, skipped = held_out_batches(sample_root, "test", CLIP, max_actions=2)
    assert [batch.name for batch in batches] == ["test action 0", "test action 2"]
    for batch in batches:
        assert batch.views.shape == (sum(batch.view_counts), *CLIP.view_shape)
        assert batch.views.dtype == np.uint8
    assert skipped == ()


def test_a_split_that_is_not_there_is_named(tmp_path):
    with pytest.raises(AnnotationError, match="test"):
        held_out_batches(tmp_path, "test", CLIP, max_actions=2)


def test_a_split_without_any_readable_clip_is_refused_with_the_reason(tmp_path):
    folder = tmp_path / "test" / "action_0"
    folder.mkdir(parents=True)
    (folder / "clip_0.mp4").write_bytes(b"no video")
    clips = [{"Url": "Dataset/Test/action_0/clip_0", "Camera type": "Main", "Timestamp": 0, "Replay speed": 1.0}]
    fields = {"Action class": "Tackling", "Offence": "Offence", "Severity": "1.0", "Clips": clips}
    (tmp_path / "test" / "annotations.json").write_text(json.dumps({"Set": "Test", "Actions": {"0": fields}}))
    with pytest.raises(ConfigError, match=r"no clip of 1 actions can be decoded, such as .*clip_0\.mp4"):
        held_out_batches(tmp_path, "test", CLIP, max_actions=2)
