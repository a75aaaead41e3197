"""The weighted cross-entropy of both heads."""

from __future__ import annotations

import pytest
import torch

from mvfoul.errors import ConfigError
from training.config import LossConfig
from training.dataset import ActionBatch
from training.loss import FoulLoss, build_loss, inverse_frequency
from training.model.network import FoulLogits

COUNTS = {"action": (10, 0, 5, 5, 1, 1, 1, 1), "offence_severity": (4, 12, 7, 1)}


def _batch(action, severity):
    count = len(action)
    return ActionBatch(
        views=torch.zeros(count, 3, 1, 1, 1, dtype=torch.uint8),
        view_kinds=torch.zeros(count, dtype=torch.int64),
        view_counts=torch.ones(count, dtype=torch.int64),
        action=torch.tensor(action),
        offence_severity=torch.tensor(severity),
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
    sums = FoulLoss(weights, None)(logits, batch)
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
    heavy = FoulLoss((1.0, 1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0), None)(logits, batch)
    plain = FoulLoss()(logits, batch)
    assert heavy.action.item() == pytest.approx(5 * plain.action.item(), rel=1e-6)


def test_unlabelled_actions_do_not_count():
    logits = _logits(3)
    some = FoulLoss()(logits, _batch([5, -1, -1], [2, -1, -1]))
    one = FoulLoss()(*_rows(logits, _batch([5], [2]), 0))
    assert some.mean.item() == one.mean.item()
    assert FoulLoss()(logits, _batch([-1] * 3, [-1] * 3)).mean.item() == 0.0


def test_inverse_weights_make_the_mean_weight_of_a_sample_one():
    weights = inverse_frequency(COUNTS["action"])
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
