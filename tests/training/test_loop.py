"""One pass over a split, on a network whose backbone is a single linear layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mvfoul.clip import preset
from mvfoul.errors import DivergedError
from training.dataset import ActionSample, collate_actions
from training.learner import Learner
from training.loop import evaluate, train_one_epoch
from training.loss import FoulLoss
from training.model.network import FoulNetwork

CLIP = preset(num_frames=2, size_px=4, short_side_px=4)


class _LinearBackbone(nn.Module):
    """Every pixel to 512 features; also notes the type that its matrix product came out in."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 2 * 4 * 4, 512)
        self.dtype = None

    def forward(self, x):
        features = self.linear(x.flatten(1))
        self.dtype = features.dtype
        return features


def _learner(*, lr=0.01, amp=None, max_grad_norm=0.0, seed=0):
    torch.manual_seed(seed)
    network = FoulNetwork("mc3_18", "mean", clip=CLIP)
    network.backbone = _LinearBackbone()
    return Learner(
        network=network,
        loss=FoulLoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=lr),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        device=torch.device("cpu"),
        amp=amp,
        max_grad_norm=max_grad_norm,
    )


def _sample(number, *, views=2, labelled=True, skipped=()):
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (views, *CLIP.view_shape), generator=generator, dtype=torch.uint8)
    labels = (number % 8, number % 4) if labelled else (-1, -1)
    return ActionSample(pixels, torch.zeros(views, dtype=torch.int64), *labels, str(number), tuple(skipped))


def _batches(count=8, size=4):
    samples = [_sample(number, views=1 + number % 3) for number in range(count)]
    return [collate_actions(samples[start : start + size]) for start in range(0, count, size)]


def _weights(learner):
    return {name: value.clone() for name, value in learner.network.state_dict().items()}


def test_the_loss_falls_until_a_small_set_is_learnt_by_heart():
    learner, batches = _learner(lr=0.05), _batches()
    first = train_one_epoch(learner, batches)
    for _ in range(40):
        train_one_epoch(learner, batches)
    last = evaluate(learner, batches)
    assert last.loss < 0.1 * first.loss
    assert last.metrics.accuracy == 1.0


def test_the_same_seed_gives_bitwise_the_same_losses():
    def losses(seed):
        learner = _learner(seed=seed)
        return [train_one_epoch(learner, _batches()).loss for _ in range(3)]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_the_figures_do_not_depend_on_the_batches_when_evaluating():
    learner = _learner()
    one, many = evaluate(learner, _batches(size=8)), evaluate(learner, _batches(size=3))
    assert one.loss == pytest.approx(many.loss, rel=1e-6)
    assert (one.confusions["action"] == many.confusions["action"]).all()
    assert (one.labelled, one.views) == (many.labelled, many.views) == (8, 15)


def test_evaluating_changes_nothing():
    learner = _learner()
    before = _weights(learner)
    evaluate(learner, _batches())
    assert all(torch.equal(before[name], value) for name, value in _weights(learner).items())
    assert not learner.network.training


def test_what_could_not_be_decoded_is_counted_and_a_batch_without_views_is_skipped():
    learner = _learner()
    empty = collate_actions([_sample(8, views=0, skipped=["action 8: clip_0.mp4: empty"])])
    partly = collate_actions([_sample(1, skipped=["action 1: clip_2.mp4: broken"]), _sample(2)])
    seen = []
    result = train_one_epoch(learner, [empty, partly], lambda batch, _: seen.append(len(batch)))
    assert result.labelled == 2
    assert result.left_out == ["8"]
    assert result.skipped == ["action 8: clip_0.mp4: empty", "action 1: clip_2.mp4: broken"]
    assert seen == [0, 2]


def test_a_pass_without_any_view_learns_nothing_and_has_no_accuracy():
    learner = _learner()
    before = _weights(learner)
    result = train_one_epoch(learner, [collate_actions([_sample(1, views=0)])])
    assert all(torch.equal(before[name], value) for name, value in _weights(learner).items())
    assert result.labelled == 0
    with pytest.raises(ValueError, match="no labelled action"):
        _ = result.metrics


def test_actions_without_labels_are_answered_but_not_counted():
    batch = collate_actions([_sample(1), _sample(2, labelled=False)])
    result = evaluate(_learner(), [batch])
    assert (result.labelled, result.views) == (1, 4)


def test_a_loss_that_is_no_number_ends_training_and_names_the_actions_and_the_flags():
    learner = _learner()
    with torch.no_grad():
        learner.network.backbone.linear.weight.fill_(torch.nan)
    with pytest.raises(DivergedError, match=r"loss is nan at the actions 0, 1, 2, 3.*--optim\.lr"):
        train_one_epoch(learner, _batches())
    with pytest.raises(DivergedError):
        evaluate(learner, _batches())


def test_bf16_runs_the_backbone_in_bf16_and_the_heads_in_float32():
    learner = _learner(amp=torch.bfloat16)
    result = train_one_epoch(learner, _batches())
    assert learner.network.backbone.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in learner.network.parameters()} == {torch.float32}
    plain = train_one_epoch(_learner(), _batches())
    assert result.loss == pytest.approx(plain.loss, rel=0.05)
    assert result.loss != plain.loss


def test_gradients_are_scaled_down_to_the_given_norm():
    def step_length(max_grad_norm):
        learner = _learner(lr=1.0, max_grad_norm=max_grad_norm)
        before = _weights(learner)
        train_one_epoch(learner, _batches(count=4))
        changes = [(after - before[name]).flatten() for name, after in _weights(learner).items()]
        return torch.cat(changes).norm().item()

    assert step_length(0.01) == pytest.approx(0.01, rel=1e-3)
    assert step_length(0.0) > 0.1
