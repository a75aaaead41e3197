"""Optimisers and schedules: the values, and which parameters decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.config import OptimConfig, ScheduleConfig
from training.optim import Schedule, build_optimizer


def _network():
    return nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(4, 2))


def _rates(config, *, epochs=8, results=None):
    """The learning rate of each epoch."""
    optimizer = build_optimizer(_network(), OptimConfig(lr=1.0))
    schedule = Schedule(optimizer, config, epochs=epochs, lr=1.0)
    rates = []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()  # torch warns where the schedule moves first
        schedule.epoch_ended(results[epoch] if results else 0.0)
    return rates


def test_step_multiplies_by_gamma_every_step_size_epochs():
    rates = _rates(ScheduleConfig(name="step", step_size=3, gamma=0.3))
    assert rates == pytest.approx([1, 1, 1, 0.3, 0.3, 0.3, 0.09, 0.09])


def test_step_takes_the_documented_values_where_they_are_left_out():
    rates = _rates(ScheduleConfig(name="step"), epochs=21)
    assert [rates[epoch] for epoch in (0, 9, 10, 19, 20)] == pytest.approx([1, 1, 0.5, 0.5, 0.25])


def test_cosine_falls_to_the_lowest_rate_after_the_last_epoch():
    rates = _rates(ScheduleConfig(name="cosine", min_lr=0.2), epochs=4)
    middle, root = 0.6, 0.4 * 2**-0.5
    assert rates == pytest.approx([1.0, middle + root, middle, middle - root])


def test_plateau_waits_for_patience_epochs_without_a_better_result():
    results = [0.1, 0.2, 0.2, 0.1, 0.3, 0.3, 0.2, 0.1]
    rates = _rates(ScheduleConfig(name="plateau", patience=2, gamma=0.1), results=results)
    # Best at epoch 1; 2 and 3 are no better; best again at 4; 5 and 6 are no better.
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01])


def test_plateau_never_goes_below_the_lowest_rate():
    rates = _rates(ScheduleConfig(name="plateau", patience=1, gamma=0.1, min_lr=0.05), results=[0.0] * 8)
    assert min(rates) == pytest.approx(0.05)


def test_the_warm_up_rises_evenly_and_the_rule_starts_after_it():
    rates = _rates(ScheduleConfig(name="step", step_size=2, gamma=0.5, warmup_epochs=3))
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.5, 0.5, 0.25])
    assert _rates(ScheduleConfig(name="constant", warmup_epochs=1), epochs=3) == pytest.approx([0.5, 1, 1])


@pytest.mark.parametrize("name", ["step", "cosine", "plateau"])
def test_a_schedule_goes_on_from_its_state(name):
    config, results = ScheduleConfig(name=name), [0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
    whole = _rates(config, results=results)
    first = build_optimizer(_network(), OptimConfig(lr=1.0))
    schedule = Schedule(first, config, epochs=8, lr=1.0)
    first.step()
    for result in results[:3]:
        schedule.epoch_ended(result)
    second = build_optimizer(_network(), OptimConfig(lr=1.0))
    resumed = Schedule(second, config, epochs=8, lr=1.0)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    second.step()
    rates = []
    for result in results[3:]:
        rates.append(second.param_groups[0]["lr"])
        resumed.epoch_ended(result)
    assert rates == whole[3:]


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_each_optimiser_gets_its_settings(name, kind):
    optimizer = build_optimizer(_network(), OptimConfig(name=name, lr=0.3, weight_decay=0.02))
    assert type(optimizer) is kind
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(0.3, 0.02)}


def test_sgd_takes_the_given_momentum_and_nesterov_only_with_one():
    assert build_optimizer(_network(), OptimConfig(name="sgd")).param_groups[0]["momentum"] == 0.9
    plain = build_optimizer(_network(), OptimConfig(name="sgd", momentum=0.0)).param_groups[0]
    assert (plain["momentum"], plain["nesterov"]) == (0.0, False)


def test_without_decay_of_norms_every_parameter_is_still_in_one_group():
    network = _network()
    decaying, steady = build_optimizer(network, OptimConfig(weight_decay=0.1, decay_norms=False)).param_groups
    assert (decaying["weight_decay"], steady["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim > 1 for parameter in decaying["params"])
    assert len(decaying["params"]) + len(steady["params"]) == len(list(network.parameters()))


def test_an_epoch_whose_steps_were_all_skipped_moves_the_schedule_without_torchs_warning():
    """fp16: the first gradients overflow until the loss's scale has come down."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = Schedule(optimizer, ScheduleConfig(name="cosine"), epochs=2, lr=0.1)
    schedule.epoch_ended(0.0)  # pytest makes a warning an error
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
