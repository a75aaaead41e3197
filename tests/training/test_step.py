"""One optimiser step: cut into parts, scaled, clipped, averaged, frozen; and what it costs and says when it cannot."""

from __future__ import annotations

import io
import math
import re
import shutil
from itertools import pairwise

import pytest
import torch
from torch import nn

from mvfoul.clip import preset
from mvfoul.errors import ConfigError, DivergedError, OutOfMemoryError
from training.config import LoopConfig, ModelConfig, OptimConfig, ScheduleConfig
from training.dataset import ActionSample, collate_actions
from training.distributed import World
from training.ema import MovingAverage
from training.learner import Learner, build_learner
from training.loop import evaluate, train_one_epoch
from training.loss import FoulLoss, HeadLoss
from training.memory import explained
from training.model.network import FoulNetwork
from training.optim import Schedule, build_optimizer
from training.pass_result import PassResult

CLIP = preset(num_frames=2, size_px=16, short_side_px=16)
EVEN = {"action": [1] * 8, "offence_severity": [1] * 4}


class _LinearBackbone(nn.Module):
    """No batch norm: what one view gives does not depend on the others."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(CLIP.num_frames * 3 * 16 * 16, 512)

    def forward(self, x):
        return self.linear(x.flatten(1))


def _learner(network=None, **settings):
    torch.manual_seed(0)
    if network is None:
        network = FoulNetwork("mc3_18", "mean", clip=CLIP, dropout=settings.pop("dropout", 0.0))
        network.backbone = _LinearBackbone()
    scaler = settings.pop("scaler", torch.amp.GradScaler("cpu", enabled=False))
    optim = settings.pop("optim", OptimConfig(name="sgd", momentum=0.0, lr=0.1))
    return Learner(
        network=network,
        loss=settings.pop("loss", None) or FoulLoss(),
        optimizer=build_optimizer(network, optim),
        scaler=scaler,
        device=torch.device("cpu"),
        **settings,
    )


def _samples(count, *, labelled=True):
    generator = torch.Generator().manual_seed(5)
    for number in range(count):
        views = 1 + number % 3
        pixels = torch.randint(0, 256, (views, *CLIP.view_shape), generator=generator, dtype=torch.uint8)
        kinds = torch.tensor([0, 1, 1][:views])
        # Unevenly labelled: the mean of the parts' means would be another number.
        labels = (number % 8, number % 4) if labelled and number % 4 != 1 else (-1, -1)
        yield ActionSample(pixels, kinds, *labels, str(number), ())


def _parts(count, parts):
    samples = list(_samples(count))
    cuts = [count * part // parts for part in range(parts + 1)]
    return [collate_actions(samples[a:b], clip=CLIP) for a, b in pairwise(cuts)]


def _weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def _assert_close(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("accumulate", [2, 4, 16])
def test_a_step_in_parts_is_the_step_whatever_the_parts_and_their_labels(accumulate):
    whole, cut = _learner(), _learner(accumulate=accumulate)
    before = _weights(whole.network)
    one = train_one_epoch(whole, _parts(8, 1))
    other = train_one_epoch(cut, _parts(8, accumulate))  # of 16 parts half are empty
    _assert_close(_weights(whole.network), _weights(cut.network), rtol=1e-5, atol=1e-6)
    assert not torch.equal(before["backbone.linear.weight"], _weights(whole.network)["backbone.linear.weight"])
    assert (one.labelled, one.views) == (other.labelled, other.views) == (6, 15)
    assert one.loss == pytest.approx(other.loss, rel=1e-6)


def test_a_step_calls_back_once_and_its_batches_one_by_one():
    steps, seen = [], []
    train_one_epoch(
        _learner(accumulate=2),
        _parts(8, 4),
        lambda batch, _: seen.append(len(batch)),
        on_step=lambda step, _: bool(steps.append(step)),
        start_step=3,
    )
    assert (steps, seen) == ([4, 5], [2, 2, 2, 2])


def test_gradients_that_are_no_numbers_end_training_before_they_reach_the_weights():
    class Hidden(torch.autograd.Function):  # a finite loss with the gradient of a broken kernel
        @staticmethod
        def forward(_context, x):
            return x.clone()

        @staticmethod
        def backward(_context, gradient):
            return gradient * torch.nan

    class Broken(_LinearBackbone):
        def forward(self, x):
            return Hidden.apply(super().forward(x))

    for amp, cure in ((None, "nan. Use a lower --optim.lr"), (torch.bfloat16, "use --loop.amp none")):
        learner = _learner(amp=amp)
        learner.network.backbone = Broken()
        before = _weights(learner.network)
        with pytest.raises(DivergedError, match=re.escape(cure)):
            train_one_epoch(learner, _parts(8, 1))
        _assert_close(before, _weights(learner.network), rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1.0, 2.0**14])
def test_loss_scaling_changes_nothing_but_skips_a_step_that_overflows(scale):
    def trained(scaler):
        learner = _learner(accumulate=2, max_grad_norm=0.1, scaler=scaler)
        train_one_epoch(learner, _parts(8, 2))
        return learner

    plain = trained(torch.amp.GradScaler("cpu", enabled=False))
    scaled = trained(torch.amp.GradScaler("cpu", init_scale=scale))
    _assert_close(_weights(plain.network), _weights(scaled.network), rtol=1e-5, atol=1e-6)
    heavy = FoulLoss(HeadLoss(task_weight=1e4))
    skipped = _learner(
        accumulate=2, max_grad_norm=0.1, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**127), loss=heavy
    )
    before = _weights(skipped.network)
    train_one_epoch(skipped, _parts(8, 2))
    _assert_close(before, _weights(skipped.network), rtol=0, atol=0)
    assert skipped.scaler.get_scale() == 2.0**126
    assert (plain.skipped_steps, scaled.skipped_steps, skipped.skipped_steps) == (0, 0, 1)
    assert skipped.actions_seen == 6


def test_dropout_depends_on_seed_epoch_step_and_rank_and_on_nothing_drawn_before():
    def loss(*, seed=0, epoch=0, step=0, rank=0):
        torch.rand(7)
        learner = _learner(dropout=0.5, seed=seed)
        learner.start_epoch = lambda _epoch: learner.network.train()  # no other process is there to join
        learner.world = World(rank, 1)
        return train_one_epoch(learner, _parts(8, 1), epoch=epoch, start_step=step).loss

    assert loss() == loss()
    assert len({loss(), loss(seed=1), loss(epoch=1), loss(step=1), loss(rank=1)}) == 5


def test_the_average_follows_the_weights_and_is_what_is_measured_and_published():
    learner = _learner()
    learner.ema = MovingAverage(learner.network, 0.9)
    expected = _weights(learner.network)
    for step in range(20):
        train_one_epoch(learner, _parts(8, 1), start_step=step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in learner.network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    state = learner.state_dict()
    _assert_close(expected, dict(state["state_dict"]), rtol=1e-4, atol=1e-5)
    assert state["ema_updates"] == 20
    published = _learner(network=learner.network_to_publish)
    assert evaluate(learner, _parts(8, 2)).loss == evaluate(published, _parts(8, 2)).loss
    raw = _learner(network=learner.network)
    assert evaluate(learner, _parts(8, 2)).loss != evaluate(raw, _parts(8, 2)).loss


def test_an_average_counts_the_statistics_of_batch_norms_too():
    network = FoulNetwork("mc3_18", "mean", clip=CLIP)
    average = MovingAverage(network, 0.5)
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm3d))
    averaged = next(module for module in average.network.modules() if isinstance(module, nn.BatchNorm3d))
    norm.running_mean.fill_(1.0)
    norm.num_batches_tracked.fill_(7)
    average.update(network)
    torch.testing.assert_close(averaged.running_mean, torch.full_like(norm.running_mean, 0.9))
    assert averaged.num_batches_tracked == 7
    assert not any(parameter.requires_grad for parameter in average.network.parameters())


def test_a_learner_goes_on_from_its_state_bitwise():
    def learner():
        made = _learner(optim=OptimConfig(name="adamw", lr=1e-3))
        made.ema = MovingAverage(made.network, 0.9)
        return made

    one, other = learner(), learner()
    train_one_epoch(one, _parts(8, 2))
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for each in (one, other):
        train_one_epoch(each, _parts(8, 2), epoch=1)
    _assert_close(dict(one.state_dict()["state_dict"]), dict(other.state_dict()["state_dict"]), rtol=0, atol=0)
    _assert_close(dict(one.state_dict()["raw_state_dict"]), dict(other.state_dict()["raw_state_dict"]), rtol=0, atol=0)


def test_a_frozen_backbone_keeps_its_weights_and_statistics_until_its_epochs_are_over():
    network = FoulNetwork("mc3_18", "mean", clip=CLIP)
    learner = _learner(network=network, freeze_epochs=1, optim=OptimConfig(lr=1e-2, weight_decay=0.1))
    before = _weights(network.backbone)
    head = _weights(network.action_head)
    train_one_epoch(learner, _parts(4, 1), epoch=0)
    _assert_close(before, _weights(network.backbone), rtol=0, atol=0)
    assert not torch.equal(head["1.weight"], network.action_head[1].weight)
    train_one_epoch(learner, _parts(4, 1), epoch=1)
    after = _weights(network.backbone)
    assert not [name for name in after if after[name].ndim and torch.equal(before[name], after[name])]


def test_the_backbone_has_a_rate_of_its_own_and_the_schedule_lowers_both():
    network = FoulNetwork("mc3_18", "mean", clip=CLIP)
    config = OptimConfig(name="sgd", momentum=0.0, lr=0.1, backbone_lr=0.01, decay_norms=False, weight_decay=0.1)
    optimizer = build_optimizer(network, config)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        assert rates[id(parameter)] == (0.01 if name.startswith("backbone.") else 0.1)
    assert optimizer.param_groups[0]["lr"] == 0.1  # the one that the console shows
    plateau = ScheduleConfig(name="plateau", patience=1, gamma=0.1, min_lr=0.05)
    schedule = Schedule(optimizer, plateau, epochs=9, lr=0.1)
    optimizer.step()
    for _ in range(3):
        schedule.epoch_ended(0.0)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.005, 0.05])


def test_an_impossible_allocation_ends_with_the_flags_that_help():
    batch = _parts(4, 1)[0]
    help_with = r"4 actions with 7 views of 2x16x16 on cpu.*GiB.*--loop\.accumulate.*--loop\.gradient-checkpointing.*"
    help_with += r"--loop\.amp bf16.*--data\.num-views.*--clip\.size-px"

    class Greedy(_LinearBackbone):
        def forward(self, x):
            return super().forward(x) + torch.empty(1 << 58)[0]

    learner = _learner()
    learner.network.backbone = Greedy()
    with pytest.raises(OutOfMemoryError, match=help_with):
        train_one_epoch(learner, [batch])
    with pytest.raises(OutOfMemoryError, match=r"--loop\.batch-size"):
        evaluate(learner, [batch])
    with pytest.raises(OutOfMemoryError), explained(batch, torch.device("cpu"), learning=True):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="shapes"), explained(batch, torch.device("cpu"), learning=True):
        raise RuntimeError("shapes differ")


def test_a_pass_tells_its_speed_its_waiting_and_its_memory():
    def slow():
        import time

        for batch in _parts(8, 2):
            time.sleep(0.2)
            yield batch

    result = train_one_epoch(_learner(), slow())
    assert result.seconds > result.wait_seconds >= 0.4
    system = result.system()
    assert system["system/clips_per_second"] == 15 / result.seconds
    assert system["system/data_wait_share"] == result.wait_seconds / result.seconds
    assert system["system/peak_memory_bytes"] > 1 << 26  # torch alone is more
    assert re.fullmatch(r"[\d.]+ clips/s, \d+% of the time waiting for data, peak memory [\d.]+ GiB", result.cost())
    again = PassResult()
    again.load_state_dict(result.state_dict())
    assert again.system() == system


def test_settings_reach_the_learner_and_what_has_no_effect_is_refused(tiny_config, monkeypatch, tmp_path):
    def built(world=None, **settings):
        config = tiny_config(**settings)
        network = FoulNetwork("mc3_18", "mean", clip=CLIP)
        return build_learner(config, network, EVEN, torch.device("cpu"), world)

    learner = built(
        loop={"accumulate": 2, "ema_decay": 0.99, "channels_last": True}, optim={"freeze_epochs": 1}, weights="file"
    )
    assert (learner.accumulate, learner.ema.decay, learner.freeze_epochs) == (2, 0.99, 1)
    for world in (None, World(0, 2)):
        with pytest.raises(ConfigError, match=r"--model\.sync-batch-norm is True with .*on cpu.*torchrun"):
            built(world, model={"sync_batch_norm": True})
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert shutil.which("g++") is None
    with pytest.raises(
        ConfigError, match=r"--loop\.compile is True, and the C\+\+ compiler 'g\+\+' is not here.*apt-get"
    ):
        built(loop={"compile": True})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LoopConfig(accumulate=0), "--loop.accumulate is 0"),
        (lambda: LoopConfig(accumulate=9, batch_size=8), "--loop.accumulate is 9"),
        (lambda: LoopConfig(ema_decay=1.0), "--loop.ema-decay is 1.0"),
        (lambda: OptimConfig(backbone_lr=0.0), "--optim.backbone-lr is 0.0"),
        (lambda: OptimConfig(backbone_lr=math.inf), "--optim.backbone-lr is inf"),
        (lambda: OptimConfig(freeze_epochs=-1), "--optim.freeze-epochs is -1"),
        (lambda: ModelConfig(backbone="mvit_v2_s", sync_batch_norm=True), "--model.sync-batch-norm is True"),
    ],
)
def test_nonsense_is_refused_by_name(make, words):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        make()


def test_freezing_a_random_backbone_or_for_the_whole_run_is_refused(tiny_config):
    with pytest.raises(ConfigError, match=r"--optim\.freeze-epochs is 1\. With --weights none"):
        tiny_config(optim={"freeze_epochs": 1})
    with pytest.raises(ConfigError, match=r"--optim\.freeze-epochs is 2\. There are --loop\.epochs 2"):
        tiny_config(optim={"freeze_epochs": 2}, weights="kinetics400")
