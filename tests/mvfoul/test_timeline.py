"""Choosing pictures by time."""

from __future__ import annotations

from fractions import Fraction

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvfoul.errors import InvalidClipError
from mvfoul.timeline import read_timeline

MS = Fraction(1, 1000)


def packet(pts, *, dts=None, duration=40, key=False):
    made = av.Packet(b"x")
    made.pts, made.dts, made.duration = pts, pts if dts is None else dts, duration
    made.is_keyframe = key
    return made


def timeline(timestamps, *, time_base=MS, last_index=None, duration=40):
    packets = [packet(pts, duration=duration, key=i == 0) for i, pts in enumerate(timestamps)]
    return read_timeline(packets, time_base, last_index=last_index)


def chosen(line, indices):
    """Timestamps in the order of the T axis."""
    places = line.choose(indices)
    return [next(pts for pts, at in places.items() if place in at) for place in range(len(indices))]


@given(st.integers(-10_000, 10_000), st.sampled_from([Fraction(1, 25), Fraction(1, 12_800), Fraction(1, 90_000), MS]))
def test_at_25_fps_frame_i_is_picture_i_wherever_the_timestamps_start(start, time_base):
    period = int(1 / 25 / time_base)
    line = timeline([start + k * period for k in range(30)], time_base=time_base, duration=period)
    assert chosen(line, range(30)) == list(line.timestamps)


@given(st.lists(st.integers(1, 300), min_size=40, max_size=60), st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_at_changing_frame_rates_it_is_the_latest_picture_that_is_not_later(gaps, indices):
    timestamps = [sum(gaps[:k]) for k in range(len(gaps))]
    line = timeline(timestamps, duration=3000)
    expected = [max(pts for pts in timestamps if pts <= timestamps[0] + 40 * i + 1) for i in sorted(indices)]
    assert chosen(line, sorted(indices)) == expected


def test_timestamps_rounded_to_milliseconds_are_not_a_picture_early():
    # 60 fps, 7 ms after the start: 1007, 1023.67, 1040.33, ... of which Matroska keeps whole milliseconds.
    line = timeline([round(7 + k * 1000 / 60) for k in range(60)], duration=17)
    assert chosen(line, range(20)) == [line.timestamps[k * 60 // 25] for k in range(20)]


@pytest.mark.parametrize("fps", [25, 30, 50, 60])
def test_the_last_picture_counts_until_it_is_over_and_not_longer(fps):
    period = 90_000 // fps
    line = timeline([k * period for k in range(2 * fps)], time_base=Fraction(1, 90_000), duration=period)
    assert line.duration_s == 2
    last = max(i for i in range(51) if Fraction(i, 25) < 2)
    assert chosen(line, [last]) == [line.timestamps[2 * last * fps // 50]]
    with pytest.raises(
        InvalidClipError, match=rf"{2 * fps} readable frames \(2\.00 s\); frame 50 \(at 2\.00 s\) is needed"
    ):
        line.choose([0, 50])


def test_a_last_picture_without_a_duration_lasts_as_long_as_the_one_before():
    assert timeline([0, 100, 200], duration=0).duration_s == 3 * 100 * MS
    assert timeline([5], duration=0).duration_s == Fraction(1, 25)


def test_repeated_frames_share_a_picture():
    assert timeline([0, 100, 200]).choose([0, 1, 2, 3, 3]) == {0: [0, 1, 2], 100: [3, 4]}


def test_what_comes_before_the_first_keyframe_or_refers_to_it_is_not_on_the_timeline():
    packets = [packet(0), packet(40), packet(160, dts=80, key=True), packet(120), packet(200)]
    line = read_timeline(packets, MS)
    assert list(line.timestamps) == [160, 200]


def test_reading_stops_a_second_after_nothing_can_be_shown_before_the_windows_end():
    packets = iter([packet(40 * k, dts=40 * k - 80, key=k == 0) for k in range(100)])
    assert len(read_timeline(packets, MS, last_index=10).packets) == 14 + 25
    assert next(packets).pts == 40 * (14 + 25)


def test_decoding_starts_at_the_keyframe_before_the_first_picture_or_else_at_the_first_one():
    # In decoding order: the picture at 200 is decoded before 120 and 160, which refer to it.
    order = [(0, True), (80, False), (40, False), (200, True), (120, False), (160, False), (240, False), (280, False)]
    line = read_timeline([packet(pts, dts=0, key=key) for pts, key in order], MS)
    runs = [[p.pts for p in run] for run in line.runs([200, 240])]
    assert runs == [[200, 120, 160, 240], [0, 80, 40, 200, 120, 160, 240]]
    assert [[p.pts for p in run] for run in line.runs([120, 200])] == [[0, 80, 40, 200, 120]]


def test_no_keyframe_or_no_timestamp_is_refused():
    with pytest.raises(InvalidClipError, match="no keyframe"):
        read_timeline([packet(0), packet(40)], MS)
    nameless = av.Packet(b"x")
    nameless.is_keyframe = True
    with pytest.raises(InvalidClipError, match="without timestamps"):
        read_timeline([nameless], MS)
