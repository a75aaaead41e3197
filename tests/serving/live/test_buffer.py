"""The ring buffer's bounds, and how timestamps become instants."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.live.buffer import CodedPicture, RingBuffer, Segment
from serving.live.clock import TICKS_PER_S, Jumps, Pace, StreamClock, now_s

FRAME = TICKS_PER_S // 25


def _segment() -> Segment:
    return Segment(connection=1, codec="h264", clock=StreamClock(fixed_s=1000.0), interval_ticks=FRAME)


def _picture(number: int, segment: Segment, *, gop: int, size_bytes: int = 100) -> CodedPicture:
    ticks = number * FRAME
    return CodedPicture(bytes(size_bytes), ticks, ticks, number % gop == 0, False, segment)


@given(
    gop=st.integers(1, 400),
    first=st.integers(0, 30),
    max_s=st.floats(0.1, 15),
    max_bytes=st.integers(1_000, 60_000),
    sizes=st.lists(st.integers(1, 1500), min_size=1, max_size=9),
)
def test_the_buffer_keeps_its_bounds_and_whole_groups(
    gop: int, first: int, max_s: float, max_bytes: int, sizes: list[int]
) -> None:
    buffer, segment = RingBuffer(max_s=max_s, max_bytes=max_bytes), _segment()
    for number in range(first, 600):
        buffer.append(_picture(number, segment, gop=gop, size_bytes=sizes[number % len(sizes)]))
        assert buffer.size_bytes <= max_bytes
    pictures = buffer.pictures

    assert buffer.size_bytes == sum(len(p.data) for p in pictures)
    if pictures:
        assert pictures[0].is_keyframe
        assert [p.ticks for p in pictures] == list(range(pictures[0].ticks, 600 * FRAME, FRAME))
        # Never more than the seconds and the group in which they start.
        assert buffer.held_s <= max_s + gop / 25 + 0.001
        began_s = next(n for n in range(first, 600) if n % gop == 0) / 25
        assert buffer.overflowed or buffer.held_s >= min(max_s, 599 / 25 - began_s) - 0.001


def test_a_group_larger_than_the_buffer_is_not_kept() -> None:
    buffer, segment = RingBuffer(max_s=10, max_bytes=1000), _segment()
    for number in range(30):
        buffer.append(_picture(number, segment, gop=25))

    assert buffer.overflowed
    assert [p.ticks // FRAME for p in buffer.pictures] == [25, 26, 27, 28, 29]


def test_the_smallest_delay_sets_the_clock_and_one_wrong_timestamp_does_not() -> None:
    clock, noise = StreamClock(), random.Random(0)
    for number in range(25 * 20):
        late_s = 0.02 + noise.expovariate(50)
        wrong = 20 * FRAME if number == 250 else 0
        clock.arrived(number * FRAME + wrong, 5000.0 + number / 25 + late_s)

    assert clock.source == "arrival"
    assert clock.unix_s(0) == pytest.approx(5000.02, abs=0.002)
    assert clock.ticks(clock.unix_s(12345)) == 12345


def test_a_drifting_camera_is_followed() -> None:
    clock = StreamClock()
    for number in range(25 * 600):
        clock.arrived(number * FRAME, 5000.0 + number / 25 * 1.0001)
    assert clock.unix_s(25 * 600 * FRAME) == pytest.approx(5000.0 + 600 * 1.0001, abs=0.008)


def test_the_sender_s_word_counts_more_than_arrival() -> None:
    clock = StreamClock()
    for number in range(100):
        clock.arrived(number * FRAME, 5000.3 + number / 25)
        clock.told(number * FRAME, 5000.0 + number / 25)
    assert clock.source == "rtcp"
    assert clock.unix_s(FRAME) == pytest.approx(5000.04)


def test_a_backlog_is_no_jump_and_lost_pictures_are_none() -> None:
    clock, jumps = StreamClock(), Jumps()
    # Two seconds of pictures at once, then live ones, a pause of the network, and pictures that never come.
    arrivals = [(n, 5000.0) for n in range(50)] + [(n, 5000.0 + (n - 49) / 25) for n in range(50, 100)]
    arrivals += [(n, 5004.0) for n in range(100, 150)] + [(n, 5000.0 + (n - 49) / 25) for n in range(200, 250)]
    seen = []
    for number, arrival_s in arrivals:
        seen.append(jumps.is_jump(number * FRAME, arrival_s, clock))
        clock.arrived(number * FRAME, arrival_s)
    assert not any(seen)

    assert jumps.is_jump((250 + 30) * FRAME, 5000.0 + 201 / 25, clock)
    assert jumps.is_jump(200 * FRAME, 5000.0 + 202 / 25, clock)


def test_drops_and_jitter_are_measured() -> None:
    pace, noise = Pace(), random.Random(1)
    for number in range(1000):
        if number % 100 not in (50, 51, 52):
            pace.count(number * FRAME, number * FRAME, number / 25 + noise.uniform(0, 0.01))

    assert pace.interval_ticks == FRAME
    assert pace.dropped == 30
    # The mean difference of two uniform delays is a third of their range.
    assert pace.jitter_s == pytest.approx(0.01 / 3, rel=0.5)


def test_the_common_clock_is_unix_time_and_never_goes_back() -> None:
    instants = [now_s() for _ in range(1000)]
    assert instants == sorted(instants)
