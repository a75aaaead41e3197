"""Reading tensors, without a server."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvfoul.clip import preset
from mvfoul.errors import RequestError
from serving.protocol import Tensor, read_inputs

SPEC = preset("two-second", num_frames=2, size_px=4)


def raw(clips):
    return b"".join(struct.pack("<I", len(clip)) + clip for clip in clips)


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=5))
def test_raw_clips_come_back_as_they_were_sent(clips):
    assert read_inputs([Tensor("CLIPS", "BYTES", (len(clips),), raw(clips))], SPEC) == clips


@given(st.binary(max_size=60), st.integers(1, 5))
def test_any_raw_buffer_is_read_or_refused(data, count):
    try:
        clips = read_inputs([Tensor("CLIPS", "BYTES", (count,), data)], SPEC)
    except RequestError:
        return
    assert raw(clips) == data


@given(st.integers(1, 5), st.randoms(use_true_random=False))
def test_views_are_the_same_raw_flat_and_nested(count, random):
    values = np.array([random.randrange(256) for _ in range(count * 3 * 2 * 4 * 4)], dtype=np.uint8)
    views = values.reshape(count, *SPEC.view_shape)
    for data in (values.tobytes(), values.tolist(), views.tolist()):
        read = read_inputs([Tensor("VIEWS", "UINT8", views.shape, data)], SPEC)
        np.testing.assert_array_equal(read, views)


def test_the_number_of_views_is_the_artifact_s_not_five():
    two = preset("two-second", num_frames=2, size_px=4, max_views=2)
    with pytest.raises(RequestError, match="from 1 to 2"):
        read_inputs([Tensor("CLIPS", "BYTES", (3,), raw([b"x"] * 3))], two)
