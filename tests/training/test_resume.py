"""A run that was interrupted goes on as if nothing had happened, or says why it cannot."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from mvfoul.errors import CheckpointError, ConfigError
from training import resume
from training.assembly import assemble
from training.checkpoint import load_checkpoint, save_checkpoint
from training.console import RunConsole
from training.distributed import World
from training.fit import Fit
from training.folder import BEST, LAST
from training.preemption import StoppedAfterSaving, StopRequest
from training.progress import Progress
from training.run import train

RICH = {
    "model": {"dropout": 0.3, "aggregation": "attention"},
    "augment": {"preset": "guide"},
    "data": {"num_views": 2, "preload_gib": 0.0},
    "optim": {"name": "adamw", "momentum": None, "lr": 1e-3},
    "schedule": {"name": "step", "step_size": 1, "gamma": 0.5},
    "loop": {"epochs": 2, "batch_size": 4, "ema_decay": 0.5},
}
"""What could make two runs differ: dropout, random views, flips, an optimiser with memory, a schedule, an average."""


class _StopsAfter(RunConsole):
    """Sends the run a signal after so many batches, of training or validation."""

    def __init__(self, stop, batches):
        super().__init__(quiet=True)
        self._stop, self._left = stop, batches

    @contextmanager
    def actions(self, description, split):
        with super().actions(description, split) as advance:

            def count(batch, result):
                advance(batch, result)
                self._left -= 1
                if not self._left:
                    self._stop.receive(signal.SIGTERM)

            yield count


def _goes_on(config, *, stop_after):
    """Go on from what is in the folder until a signal comes after so many batches; return whether it came in time."""
    stop = StopRequest()
    stop.defer()
    found = resume.find(config.output)
    progress = Progress.of(found[0], config.loop.select) if found else Progress()
    fit = Fit(config, config.output, World(), stop, _StopsAfter(stop, stop_after), assemble(config), progress)
    if found:
        fit.restore(found[0])
    try:
        fit.run()
    except StoppedAfterSaving:
        return True
    return False


def _figures(path):
    document = torch.load(path, weights_only=True)
    histories = {
        name: curve for name, curve in document["histories"].items() if not name.startswith(("seconds", "system/"))
    }
    return histories, document


def _assert_same(one, other):
    """Bitwise: every curve, weight and value of the optimiser."""
    (curves, first), (others, second) = _figures(one), _figures(other)
    assert curves == others
    _same_values(first["state_dict"], second["state_dict"])
    for name in ("raw_state_dict", "ema_updates", "optimizer", "scheduler", "scaler"):
        _same_values(first[name], second[name])


def _same_values(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            _same_values(value, other[name])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            _same_values(mine, theirs)
    else:
        assert one == other


@pytest.fixture(scope="module")
def whole_run(tiny_config, tmp_path_factory):
    """A run of two epochs of four steps that nobody interrupted."""
    return train(tiny_config(output=tmp_path_factory.mktemp("whole"), **RICH)).output


@pytest.fixture(scope="module")
def stopped_once(tiny_config, tmp_path_factory):
    output = tmp_path_factory.mktemp("stopped")
    assert _goes_on(tiny_config(output=output, **RICH), stop_after=8)
    return output


@pytest.fixture
def stopped_run(stopped_once, tmp_path):
    """A run that was stopped in the middle of its second epoch."""
    return _copy(stopped_once, tmp_path / "run")


def _copy(run, target):
    """By links: a run replaces its files and never writes into them."""
    return shutil.copytree(run, target, copy_function=os.link)


# An epoch has four batches of training and two of validation.
@pytest.mark.parametrize("stop_after", [1, 4, 6, 8])
def test_a_run_that_was_stopped_anywhere_ends_bitwise_like_one_that_was_not(
    whole_run, tiny_config, tmp_path, stop_after
):
    config = tiny_config(output=tmp_path, **RICH)
    assert _goes_on(config, stop_after=stop_after)
    last = load_checkpoint(tmp_path / LAST)
    assert (last.epoch, last.progress["step"]) == ((stop_after - 1) // 6, min((stop_after - 1) % 6 + 1, 4))
    result = train(replace(config, resume=True))
    assert (result.epochs, result.exit_code) == (2, 0)
    _assert_same(tmp_path / LAST, whole_run / LAST)
    _assert_same(tmp_path / BEST, whole_run / BEST)


def test_a_run_that_is_stopped_again_and_again_ends_bitwise_like_one_that_was_not(whole_run, tiny_config, tmp_path):
    config = tiny_config(output=tmp_path, **RICH, save={"every_steps": 3})
    stops = 0
    while _goes_on(config, stop_after=3):
        stops += 1
    assert stops >= 4
    _assert_same(tmp_path / LAST, whole_run / LAST)


def test_what_a_checkpoint_within_an_epoch_holds_is_not_taken_for_a_measured_epoch(stopped_run):
    last = load_checkpoint(stopped_run / LAST)
    assert (last.epoch, last.progress["step"], last.evaluation) == (1, 2, {})
    assert load_checkpoint(stopped_run / BEST).evaluation["actions"] == 8


def test_where_there_is_nothing_to_go_on_with_the_run_says_so_and_starts(tiny_config, tmp_path, capsys):
    train(tiny_config(output=tmp_path / "new", resume=True, loop={"epochs": 1}))
    assert "holds no checkpoint: nothing to go on with, so the run starts" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "new" / LAST).epoch == 1


def test_a_finished_run_says_so_and_is_left_as_it_is(whole_run, tiny_config, tmp_path, capsys):
    output = _copy(whole_run, tmp_path / "run")
    result = train(tiny_config(output=output, resume=True, **RICH))
    assert (result.exit_code, result.epochs) == (0, 2)
    assert "holds a finished run: nothing to do" in capsys.readouterr().out
    assert (output / LAST).read_bytes() == (whole_run / LAST).read_bytes()


def test_a_finished_run_goes_on_where_more_epochs_are_asked_for(whole_run, tiny_config, tmp_path, capsys):
    output = _copy(whole_run, tmp_path / "run")
    more = {**RICH, "loop": {"epochs": 3, "batch_size": 4, "ema_decay": 0.5}}
    result = train(tiny_config(output=output, resume=True, **more))
    assert result.epochs == 3
    assert result.histories["train/loss"][:2] == load_checkpoint(whole_run / LAST).histories["train/loss"]
    assert "--loop.epochs was 2, is 3" in capsys.readouterr().out


def test_other_settings_are_refused_with_flag_old_and_new_value(stopped_run, tiny_config):
    changed = {**RICH, "optim": {"name": "adamw", "momentum": None, "lr": 0.5}, "seed": 7}
    message = r"--optim\.lr was 0\.001, is 0\.5; --seed was 0, is 7\. Give the old values, or .* another --output"
    with pytest.raises(ConfigError, match=message):
        train(tiny_config(output=stopped_run, resume=True, **changed))
    assert load_checkpoint(stopped_run / LAST).progress["step"] == 2


def test_another_architecture_is_refused(stopped_run, tiny_config):
    changed = {**RICH, "model": {"dropout": 0.3, "aggregation": "attention", "backbone": "r3d_18"}}
    with pytest.raises(ConfigError, match=r"--model\.backbone was 'mc3_18', is 'r3d_18'"):
        train(tiny_config(output=stopped_run, resume=True, **changed))


def test_settings_that_only_say_how_to_work_may_change(whole_run, stopped_run, tiny_config, tiny_dataset, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(tiny_dataset, moved)
    changed = {**RICH, "data": {**RICH["data"], "root": moved, "workers": 1}, "save": {"keep_best": 1}}
    train(tiny_config(output=stopped_run, resume=True, **changed))
    _assert_same(stopped_run / LAST, whole_run / LAST)


def test_other_data_is_refused(stopped_run, tiny_config, tiny_dataset, tmp_path):
    root = tmp_path / "other"
    shutil.copytree(tiny_dataset, root)
    (root / "train" / "annotations.json").write_text((root / "valid" / "annotations.json").read_text())
    with pytest.raises(ConfigError, match=r"another train split.*16 actions with 31 clips then, 8 with 15 now"):
        train(tiny_config(output=stopped_run, resume=True, **{**RICH, "data": {**RICH["data"], "root": root}}))


def test_a_damaged_file_is_refused_and_the_others_are_named_with_the_command_that_uses_them(stopped_run, tiny_config):
    cut = (stopped_run / LAST).read_bytes()[:5000]
    (stopped_run / LAST).unlink()
    (stopped_run / LAST).write_bytes(cut)
    config = tiny_config(output=stopped_run, resume=True, **RICH)
    with pytest.raises(CheckpointError, match=r"damaged.*go on from another.*cp .*best\.pth\.tar .*last\.pth\.tar"):
        train(config)
    shutil.copy(stopped_run / BEST, stopped_run / LAST)
    assert train(config).epochs == 2


def test_a_run_that_was_killed_between_its_first_two_files_goes_on_from_the_one(whole_run, tiny_config, tmp_path):
    config = tiny_config(output=tmp_path, **RICH)
    assert _goes_on(config, stop_after=7)
    (tmp_path / LAST).unlink()
    assert load_checkpoint(tmp_path / BEST).epoch == 1
    train(replace(config, resume=True))
    _assert_same(tmp_path / LAST, whole_run / LAST)


def test_a_file_of_the_first_version_can_be_gone_on_with(whole_run, tiny_config, tmp_path):
    document = torch.load(whole_run / LAST, weights_only=True)
    del document["config"]["save"], document["config"]["resume"]
    added = ("progress", "world", "data", "code", "raw_state_dict")
    torch.save({name: value for name, value in document.items() if name not in added}, tmp_path / LAST)
    more = {**RICH, "loop": {"epochs": 3, "batch_size": 4, "ema_decay": 0.5}}
    result = train(tiny_config(output=tmp_path, resume=True, **more))
    assert result.epochs == 3
    assert result.histories["valid/score"][:2] == document["histories"]["valid/score"]


def test_what_else_changes_the_numbers_is_said(stopped_run, tiny_config, capsys):
    last = load_checkpoint(stopped_run / LAST)
    versions = {**last.versions, "torch": "1.0"}
    save_checkpoint(stopped_run / LAST, replace(last, world={"size": 4, "accumulate": 2}, versions=versions))
    train(tiny_config(output=stopped_run, resume=True, **RICH))
    out = capsys.readouterr().out
    assert "4 processes with 2 micro-batches per step before, 1 process now: each step still sees the same" in out
    assert "torch was 1.0, is " in out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resume": True}, r"--resume is True\. It goes on with the run in --output DIR"),
        ({"resume": True, "overwrite": True, "output": "x"}, r"--overwrite is True\. --resume keeps the run"),
    ],
)
def test_resuming_nothing_or_what_is_to_be_replaced_is_refused(tiny_config, settings, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(**settings)
