"""The losses of both heads: against formulas written out here, and what each setting does to the gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mvfoul.errors import ConfigError
from training.config import LossConfig
from training.dataset import ActionBatch
from training.loss import FoulLoss, HeadLoss, build_loss, focal_loss_sum, frequency_weights, inverse
from training.model.network import FoulLogits

COUNTS = {"action": (10, 0, 5, 5, 1, 1, 1, 1), "offence_severity": (4, 12, 7, 1)}


def _batch(action, severity):
    count = len(action)
    return ActionBatch(
        views=torch.zeros(count, 3, 1, 1, 1, dtype=torch.uint8),
        view_kinds=torch.zeros(count, dtype=torch.int64),
        view_counts=torch.ones(count, dtype=torch.int64),
        action=torch.tensor(action, dtype=torch.int64),
        offence_severity=torch.tensor(severity, dtype=torch.int64),
        action_ids=tuple(map(str, range(count))),
    )


def _logits(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    action, severity = (torch.randn(count, classes, generator=generator) for classes in (8, 4))
    return FoulLogits(action, severity, torch.ones(count, 1))


def _rows(logits, batch, index):
    row = FoulLogits(*(tensor[index : index + 1] for tensor in logits))
    return row, _batch([int(batch.action[index])], [int(batch.offence_severity[index])])


def test_the_loss_is_minus_the_log_probability_times_the_class_weight():
    weights = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
    logits, batch = _logits(2), _batch([3, 0], [1, 2])
    sums = FoulLoss(HeadLoss(class_weights=weights))(logits, batch)
    logs = torch.log_softmax(logits.action, dim=1)
    assert sums.action.item() == pytest.approx(-(4 * logs[0, 3] + 1 * logs[1, 0]).item(), rel=1e-6)
    severity_logs = torch.log_softmax(logits.offence_severity, dim=1)
    assert sums.offence_severity.item() == pytest.approx(-(severity_logs[0, 1] + severity_logs[1, 2]).item(), rel=1e-6)
    assert sums.labelled == 2


def test_the_loss_of_a_batch_is_the_mean_of_its_actions_one_by_one():
    logits, batch = _logits(6), _batch([0, 2, 2, 4, 7, 3], [0, 1, 3, 2, 1, 1])
    loss = build_loss(LossConfig(), COUNTS)
    alone = [loss(*_rows(logits, batch, index)).mean for index in range(6)]
    assert loss(logits, batch).mean.item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-6)


def test_a_class_weight_counts_in_a_batch_of_one():
    # Dividing by the sum of weights, as torch's mean does, would cancel it.
    logits, batch = _logits(1), _batch([4], [3])
    heavy = FoulLoss(HeadLoss(class_weights=(1.0, 1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0)))(logits, batch)
    plain = FoulLoss()(logits, batch)
    assert heavy.action.item() == pytest.approx(5 * plain.action.item(), rel=1e-6)


def test_unlabelled_actions_do_not_count():
    logits = _logits(3)
    some = FoulLoss()(logits, _batch([5, -1, -1], [2, -1, -1]))
    one = FoulLoss()(*_rows(logits, _batch([5], [2]), 0))
    assert some.mean.item() == one.mean.item()
    assert FoulLoss()(logits, _batch([-1] * 3, [-1] * 3)).mean.item() == 0.0


def test_inverse_weights_make_the_mean_weight_of_a_sample_one():
    weights = frequency_weights(COUNTS["action"], inverse)
    assert weights == pytest.approx((24 / 70, 1.0, 24 / 35, 24 / 35, 24 / 7, 24 / 7, 24 / 7, 24 / 7))
    assert sum(w * n for w, n in zip(weights, COUNTS["action"], strict=True)) == pytest.approx(24)


def test_each_head_takes_its_own_choice_of_weights():
    loss = build_loss(LossConfig(action_weights="none", offence_severity_weights=(1.0, 1.0, 2.0, 9.0)), COUNTS)
    assert loss.action_weights is None
    assert loss.offence_severity_weights.tolist() == [1.0, 1.0, 2.0, 9.0]
    loss = build_loss(LossConfig(), COUNTS)
    assert loss.offence_severity_weights.tolist() == pytest.approx([24 / 16, 24 / 48, 24 / 28, 6.0])


def test_one_weight_too_few_is_refused_with_the_names_of_the_classes():
    config = LossConfig(offence_severity_weights=(1.0, 1.0, 2.0))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"--loss\.offence-severity-weights.*Give 4 values, for No offence"):
        build_loss(config, COUNTS)


def test_labels_are_smoothed_in_training_only():
    logits, batch = _logits(4), _batch([0, 1, 2, 3], [0, 1, 2, 3])
    plain, smooth = FoulLoss(), FoulLoss(label_smoothing=0.2)
    assert smooth(logits, batch).mean.item() != plain(logits, batch).mean.item()
    smooth.eval()
    assert smooth(logits, batch).mean.item() == plain(logits, batch).mean.item()


def _by_hand(logits, labels, *, weights=None, gamma=0.0, smoothing=0.0):
    """The sum over rows and classes of q w (1 - p)^gamma (-log p), in float64 and one number at a time."""
    total, classes = 0.0, logits.shape[1]
    for row, label in zip(logits.double().numpy(), labels, strict=True):
        if label == -1:
            continue
        chances = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        for c, p in enumerate(chances):
            q = smoothing / classes + (1 - smoothing if c == label else 0.0)
            total -= q * (1.0 if weights is None else weights[c]) * (1 - p) ** gamma * math.log(p)
    return total


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 2.0, 9.0)])
def test_every_combination_is_its_formula(gamma, smoothing, weights):
    logits, labels = 3 * _logits(6).offence_severity, [0, 3, -1, 1, 2, 3]
    given = None if weights is None else torch.tensor(weights)
    loss = focal_loss_sum(logits, torch.tensor(labels), weights=given, gamma=gamma, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(
        _by_hand(logits, labels, weights=weights, gamma=gamma, smoothing=smoothing), rel=1e-5
    )


def test_the_settings_reach_the_loss_of_both_heads():
    config = LossConfig(
        name="focal",
        focal_gamma=1.5,
        action_weights=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0),
        offence_severity_weights="none",
        label_smoothing=0.2,
        action_task_weight=0.25,
        offence_severity_task_weight=3.0,
    )
    logits, batch = _logits(3), _batch([3, 0, 7], [1, 2, 0])
    sums = build_loss(config, COUNTS)(logits, batch)
    action = _by_hand(logits.action, [3, 0, 7], weights=config.action_weights, gamma=1.5, smoothing=0.2)
    severity = _by_hand(logits.offence_severity, [1, 2, 0], gamma=1.5, smoothing=0.2)
    assert sums.action.item() == pytest.approx(0.25 * action, rel=1e-5)
    assert sums.offence_severity.item() == pytest.approx(3 * severity, rel=1e-5)
    assert sums.mean.item() == pytest.approx((0.25 * action + 3 * severity) / 3, rel=1e-5)


def test_losses_of_parts_of_a_batch_add_up_whatever_the_settings():
    config = LossConfig(name="focal", action_weights="effective", label_smoothing=0.1, action_task_weight=2.0)
    loss = build_loss(config, COUNTS)
    logits, batch = _logits(6), _batch([0, 2, -1, 4, 7, 3], [0, 1, -1, 2, 1, 1])
    alone = [loss(*_rows(logits, batch, index)) for index in range(6)]
    together = loss(logits, batch)
    for name in ("action", "offence_severity", "labelled"):
        assert float(getattr(together, name)) == pytest.approx(sum(float(getattr(s, name)) for s in alone), rel=1e-5)


def _gradient(logits, label, **settings):
    leaf = torch.tensor([logits], requires_grad=True)
    focal_loss_sum(leaf, torch.tensor([label]), **settings).backward()
    return leaf.grad[0]


def test_focal_turns_down_the_gradient_of_what_is_answered_well():
    well, badly = [4.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]
    share = [
        (_gradient(logits, 0, gamma=2.0).norm() / _gradient(logits, 0, gamma=0.0).norm()).item()
        for logits in (well, badly)
    ]
    assert share[0] < 0.05
    assert share[1] > 0.5


def test_a_class_weight_scales_the_gradient():
    logits, weights = [0.3, -0.2, 0.1, 0.0], torch.tensor([1.0, 1.0, 7.0, 1.0])
    torch.testing.assert_close(_gradient(logits, 2, weights=weights), 7 * _gradient(logits, 2))
    torch.testing.assert_close(_gradient(logits, 0, weights=weights), _gradient(logits, 0))


def test_a_task_weight_scales_the_gradient_of_its_head_only():
    def gradients(**settings):
        logits = FoulLogits(*(tensor.requires_grad_() for tensor in _logits(2)))
        build_loss(LossConfig(**settings), COUNTS)(logits, _batch([0, 2], [1, 3])).mean.backward()
        return logits.action.grad, logits.offence_severity.grad

    plain, changed = gradients(), gradients(action_task_weight=0.1)
    torch.testing.assert_close(changed[0], 0.1 * plain[0])
    torch.testing.assert_close(changed[1], plain[1])


def test_smoothing_pulls_a_certain_answer_back():
    certain = [20.0, 0.0, 0.0, 0.0]
    assert _gradient(certain, 0, label_smoothing=0.1)[0] > 0.01
    assert abs(_gradient(certain, 0)[0]) < 1e-6


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("label", [0, 1])
def test_focal_has_finite_gradients_where_the_network_is_certain(gamma, label):
    # 1 - p is exactly 0 here, and the derivative of a root at 0 is infinite.
    gradient = _gradient([200.0, -200.0, 0.0, 0.0], label, gamma=gamma, label_smoothing=0.1)
    assert gradient.isfinite().all()


def test_an_empty_batch_has_a_loss_of_zero():
    for name in ("cross-entropy", "focal"):
        sums = build_loss(LossConfig(name=name), COUNTS)(_logits(0), _batch([], []))
        assert (sums.mean.item(), sums.labelled) == (0.0, 0)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("inverse", [1 / n for n in (900, 90, 9)]),
        ("inverse-sqrt", [1 / math.sqrt(n) for n in (900, 90, 9)]),
        ("effective", [(1 - 0.99) / (1 - 0.99**n) for n in (900, 90, 9)]),
    ],
)
def test_weights_by_frequency_are_in_the_ratio_of_their_formula(choice, expected):
    beta = {"effective_beta": 0.99} if choice == "effective" else {}
    counts = {**COUNTS, "offence_severity": (900, 90, 9, 0)}
    loss = build_loss(LossConfig(offence_severity_weights=choice, **beta), counts)
    weights = loss.offence_severity_weights.tolist()
    assert [w / weights[0] for w in weights[:3]] == pytest.approx([e / expected[0] for e in expected])
    assert sum(w * n for w, n in zip(weights, counts["offence_severity"], strict=True)) == pytest.approx(999)


def test_effective_weights_lie_between_none_and_inverse():
    counts = {**COUNTS, "offence_severity": (900, 90, 9, 1)}

    def ratio(**settings):
        weights = build_loss(LossConfig(**settings), counts).offence_severity_weights
        return (weights[3] / weights[0]).item()

    near_none, near_inverse = (
        ratio(offence_severity_weights="effective", effective_beta=beta) for beta in (0.1, 0.999999)
    )
    assert 1 < near_none < 1.2
    assert near_inverse == pytest.approx(900, rel=1e-3)


@pytest.mark.parametrize("choice", ["none", "inverse", "inverse-sqrt", "effective"])
@pytest.mark.parametrize("name", ["cross-entropy", "focal"])
def test_a_class_that_train_lacks_gives_no_infinite_weight_loss_or_gradient(choice, name):
    config = LossConfig(name=name, action_weights=choice, offence_severity_weights=choice, label_smoothing=0.1)
    counts = {"action": (10, 0, 5, 5, 0, 1, 1, 0), "offence_severity": (4, 18, 0, 0)}
    loss = build_loss(config, counts)
    weights = loss.action_weights
    assert choice == "none" or (weights.isfinite().all() and weights[[1, 4, 7]].tolist() == [1.0, 1.0, 1.0])
    logits = FoulLogits(*(tensor.requires_grad_() for tensor in _logits(2)))
    # The first action is one that only validation has.
    mean = loss(logits, _batch([1, 0], [3, 0])).mean
    mean.backward()
    assert mean.isfinite()
    assert logits.action.grad.isfinite().all()
    assert logits.offence_severity.grad.isfinite().all()


def test_counts_of_nothing_weigh_every_class_one():
    assert frequency_weights((0, 0, 0), inverse) == (1.0, 1.0, 1.0)


def _warned(**settings):
    return " | ".join(LossConfig(**settings).imbalance_warnings())


def test_two_corrections_of_one_imbalance_are_warned_of_with_the_reason():
    text = _warned(balanced_sampling="offence-severity")
    assert "offence_severity is corrected 2 times" in text
    assert "--loss.balanced-sampling offence-severity and --loss.offence-severity-weights inverse" in text
    assert "product of the corrections" in text
    assert "imbalance of action" not in text
    assert "--loss.name focal (gamma 2)" in _warned(name="focal")
    three = _warned(name="focal", balanced_sampling="action", offence_severity_weights="none")
    assert "imbalance of action is corrected 3 times" in three
    assert "offence_severity" not in three


def test_one_correction_alone_is_not_warned_of():
    none = {"action_weights": "none", "offence_severity_weights": "none"}
    for settings in ({}, none, {**none, "name": "focal"}, {**none, "balanced_sampling": "action"}):
        assert _warned(**settings) == ""
    # Weights that are all alike correct nothing.
    assert _warned(name="focal", **{**none, "offence_severity_weights": (2.0, 2.0, 2.0, 2.0)}) == ""
