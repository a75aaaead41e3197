"""The steps of two ranks are those of one process: parts, frozen epochs, and ranks without an action."""

from __future__ import annotations

import pytest
import torch

COMMON = """
import sys
import torch
from torch import nn
from mvfoul.clip import preset
from training.dataset import ActionSample, collate_actions
from training.distributed import World, open_world
from training.learner import Learner
from training.loop import evaluate, train_one_epoch
from training.loss import FoulLoss
from training.model.network import FoulNetwork

CLIP = preset(num_frames=4, size_px=32, short_side_px=32)

def samples(count):
    generator = torch.Generator().manual_seed(5)
    for number in range(count):
        views = 1 + number % 2
        pixels = torch.randint(0, 256, (views, *CLIP.view_shape), generator=generator, dtype=torch.uint8)
        labels = (number % 8, number % 4) if number % 4 != 1 else (-1, -1)
        yield ActionSample(pixels, torch.zeros(views, dtype=torch.int64), *labels, str(number), ())

def trained(world, share, accumulate=1):
    import training.model.mvit
    training.model.mvit._STOCHASTIC_DEPTH = 0.0
    torch.manual_seed(world.rank)  # the first rank's weights count
    network = FoulNetwork("mvit_v2_s", "attention", clip=CLIP, view_embedding=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    learner = Learner(network, FoulLoss(), optimizer, scaler, torch.device("cpu"), world=world,
                      accumulate=accumulate, freeze_epochs=1, max_grad_norm=1.0)
    everything = list(samples(5))
    for epoch in range(3):
        mine = [[everything[index] for index in part] for part in share]
        result = train_one_epoch(learner, [collate_actions(part, clip=CLIP) for part in mine], epoch=epoch)
    total = result.over_ranks(world)
    return network.state_dict(), total.loss, total.labelled
"""

RANKS = """
SHARES = {shares}
with open_world("cpu") as world:
    weights, loss, labelled = trained(world, SHARES[world.rank], accumulate=2)
    torch.save([weights, loss, labelled], sys.argv[1] + f"/{{world.rank}}.pt")
"""

ALONE = """
weights, loss, labelled = trained(World(), [[0, 1, 2, 3, 4]])
torch.save([weights, loss, labelled], sys.argv[1] + "/alone.pt")
"""


@pytest.fixture(scope="module")
def alone(programs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    program = programs.start([folder], code=COMMON + ALONE)
    assert program.wait() == 0, program.err
    return torch.load(folder / "alone.pt", weights_only=True)


# Per rank two parts; an empty one comes first, last, or is all that a rank has.
@pytest.mark.parametrize(
    "shares", ["[[0, 2], [4]], [[1], [3]]", "[[0, 2], []], [[1, 4], [3]]", "[[0, 1, 2, 3, 4], []], [[], []]"]
)
def test_two_ranks_in_parts_take_the_steps_of_one_process(programs, tmp_path, alone, shares):
    ranks = programs.ranks([tmp_path], code=COMMON + RANKS.format(shares=shares))
    assert [rank.wait(100) for rank in ranks] == [0, 0], ranks[0].err + ranks[1].err
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert one[1:] == other[1:]
    assert one[1] == pytest.approx(alone[1], rel=1e-5)
    assert one[2] == alone[2] == 4
    for name, value in alone[0].items():
        torch.testing.assert_close(one[0][name], value, rtol=1e-3, atol=1e-5)
        assert torch.equal(one[0][name], other[0][name]), name
