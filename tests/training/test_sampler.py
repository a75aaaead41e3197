"""Which actions each step of each rank gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvfoul.clip import preset
from mvfoul.errors import ConfigError
from training.dataset import MultiViewDataset
from training.distributed import World
from training.sampler import Order, StepSampler

CLIP = preset(num_frames=2, size_px=16)


def _steps(order, *, batch_size, size=1, accumulate=1, epoch=0, start_step=0):
    """Per step, per rank, the micro-batches."""
    ranks = []
    for rank in range(size):
        sampler = StepSampler(order, batch_size=batch_size, world=World(rank, size), accumulate=accumulate)
        sampler.set_epoch(epoch, start_step)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        ranks.append([batches[k : k + accumulate] for k in range(0, len(batches), accumulate)])
    return list(zip(*ranks, strict=True))  # strict: every rank has the same number


def _actions(step):
    return sorted(index for rank in step for micro_batch in rank for index in micro_batch)


@given(
    length=st.integers(1, 60),
    size=st.integers(1, 5),
    accumulate=st.integers(1, 4),
    more=st.integers(0, 9),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_any_number_of_ranks_gets_the_batches_of_one_process_each_action_once(
    length, size, accumulate, more, epoch, shuffle
):
    order = Order(length=length, seed=3, shuffle=shuffle)
    batch_size = size * accumulate + more
    alone = _steps(order, batch_size=batch_size, epoch=epoch)
    several = _steps(order, batch_size=batch_size, size=size, accumulate=accumulate, epoch=epoch)
    assert [_actions(step) for step in several] == [_actions(step) for step in alone]
    assert sorted(index for step in several for index in _actions(step)) == list(range(length))
    for step in several[:-1]:  # of a whole batch nobody goes empty, and nobody has two more than another
        sizes = [len(micro_batch) for rank in step for micro_batch in rank]
        assert min(sizes) >= 1
        shares = [sum(map(len, rank)) for rank in step]
        assert max(shares) - min(shares) <= 1


@given(start=st.integers(0, 7), size=st.integers(1, 3))
def test_an_epoch_that_goes_on_has_the_steps_that_were_left(start, size):
    order = Order(length=26, seed=1, shuffle=True)
    whole = _steps(order, batch_size=4, size=size, epoch=2)
    assert len(whole) == 7
    assert _steps(order, batch_size=4, size=size, epoch=2, start_step=start) == whole[start:]


def test_the_order_depends_on_seed_and_epoch_and_neighbours_are_unrelated():
    def order(seed, epoch):
        return Order(length=50, seed=seed, shuffle=True).of(epoch)

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert Order(length=5).of(7) == [0, 1, 2, 3, 4]


def test_weights_decide_how_often_an_action_is_drawn_and_each_draw_has_a_number():
    order = Order(length=1000, seed=0, weights=[0.9] + [0.1 / 999] * 999)
    draws = order.of(4)
    assert draws == order.of(4)
    assert draws != order.of(5)
    first = [draw if isinstance(draw, tuple) else (draw, 0) for draw in draws]
    repeats = [number for index, number in first if index == 0]
    assert 850 < len(repeats) < 950
    assert repeats == list(range(len(repeats)))
    assert len(set(draws)) == 1000


def test_a_batch_that_cannot_feed_every_rank_is_refused_with_the_numbers_that_can():
    order = Order(length=100)
    StepSampler(order, batch_size=8, world=World(0, 4), accumulate=2)
    with pytest.raises(ConfigError, match=r"--loop\.batch-size is 7.*4 processes.*accumulate 2.*batch-size 8 or more"):
        StepSampler(order, batch_size=7, world=World(0, 4), accumulate=2)


def test_an_action_that_is_drawn_again_gets_other_views(write_split, action, grey_clip):
    clips = {f"clip_{k}": grey_clip(20 + 40 * k) for k in range(5)}
    dataset = MultiViewDataset(write_split({"1": action("1", clips)}), "train", num_views=1, clip=CLIP)

    def level(draw):
        return round(float(dataset[draw].views.float().mean()))

    levels = [level((0, repetition)) for repetition in range(12)]
    assert levels == [level((0, repetition)) for repetition in range(12)]
    assert len(set(levels)) > 2
