"""From settings to the parts of a run."""

from __future__ import annotations

import shutil

import pytest
import torch

from mvfoul.errors import AnnotationError, ConfigError
from training.assembly import _quiet_when_the_parent_is_gone, assemble, choose_device, load_split
from training.learner import warnings_of

CPU = torch.device("cpu")


def _ids(split, epoch):
    return [batch.action_ids for batch in split.batches(epoch)]


def test_the_parts_are_those_that_the_settings_name(tiny_config):
    config = tiny_config(
        model={"aggregation": "attention", "dropout": 0.25},
        optim={"name": "adamw", "momentum": None, "weight_decay": 0.03, "max_grad_norm": 2.0},
        loss={"action_weights": "none", "label_smoothing": 0.1},
        loop={"amp": "bf16"},
        clip={"num_frames": 4},
    )
    parts = assemble(config)
    learner = parts.learner
    assert (learner.network.backbone_name, learner.network.aggregation_name) == ("mc3_18", "attention")
    assert learner.network.action_head[2].p == 0.25
    assert (learner.amp, learner.max_grad_norm) == (torch.bfloat16, 2.0)
    assert learner.optimizer.param_groups[0]["weight_decay"] == 0.03
    assert learner.loss.action_weights is None
    # 16 actions: severities 0 to 3 have 4 each, but the two dives are no card instead of red.
    assert learner.loss.offence_severity_weights.tolist() == pytest.approx([1, 16 / (4 * 6), 1, 2])
    assert learner.loss.label_smoothing == 0.1
    assert parts.train.dataset.clip == parts.valid.dataset.clip == learner.network.clip == parts.clip
    assert parts.clip.view_shape == (3, 4, 16, 16)


def test_only_training_is_shuffled_and_each_epoch_differently(tiny_config):
    train, valid = (load_split(tiny_config(), name, tiny_config().clip.spec(), CPU) for name in ("train", "valid"))
    assert _ids(train, 0) != _ids(train, 1)
    assert sorted(sum(_ids(train, 0), ())) == sorted(sum(_ids(train, 1), ()))
    assert _ids(valid, 0) == _ids(valid, 1) == [tuple(map(str, range(8)))]


def test_the_order_depends_on_the_seed_and_the_epoch_only(tiny_config):
    def order(seed, epoch):
        return _ids(load_split(tiny_config(seed=seed), "train", tiny_config().clip.spec(), CPU), epoch)

    assert order(1, 3) == order(1, 3)
    assert order(1, 3) != order(2, 3)


def test_workers_give_the_same_batches_as_the_training_process(tiny_config):
    def batches(workers):
        config = tiny_config(data={"workers": workers, "preload_gib": 0.0, "num_views": 2}, augment={"preset": "guide"})
        return list(load_split(config, "train", config.clip.spec(), CPU).batches(1))

    for here, there in zip(batches(0), batches(1), strict=True):
        assert here.action_ids == there.action_ids
        assert torch.equal(here.views, there.views)
        assert torch.equal(here.changes, there.changes)


@pytest.mark.parametrize(("version", "ranks", "workers", "pauses"), [
    ((3, 11, 7), True, 1, 1), ((3, 11, 8), True, 1, 0), ((3, 11, 7), False, 1, 0), ((3, 11, 7), True, 0, 0)
])  # fmt: skip
def test_an_interpreter_that_can_hang_in_fork_waits_once_for_the_threads_of_collectives(
    tiny_config, monkeypatch, version, ranks, workers, pauses
):
    waited = []
    monkeypatch.setattr("training.assembly.sys.version_info", version)
    monkeypatch.setattr("training.assembly.dist.is_initialized", lambda: ranks)
    monkeypatch.setattr("training.assembly.time.sleep", waited.append)
    config = tiny_config(data={"workers": workers})
    split = load_split(config, "train", config.clip.spec(), CPU)
    for epoch in range(2):
        split.batches(epoch)
    assert len(waited) == pauses


def test_views_change_at_random_where_asked_and_in_training_only(tiny_config):
    config, plain = tiny_config(augment={"preset": "guide"}), tiny_config()

    def changes(settings, split):
        return [batch.changes for batch in load_split(settings, split, config.clip.spec(), CPU).batches(0)]

    assert all(len(rows) for rows in changes(config, "train"))
    assert changes(config, "valid") == [None]
    assert changes(plain, "train") == [None, None]


def test_training_draws_among_the_views_and_validation_takes_all(tiny_config):
    config = tiny_config(data={"num_views": 1})
    views = {
        split: {
            n
            for batch in load_split(config, split, config.clip.spec(), CPU).batches(0)
            for n in batch.view_counts.tolist()
        }
        for split in ("train", "valid")
    }
    assert views == {"train": {1}, "valid": {1, 2, 3}}


def test_the_first_weights_depend_on_the_seed_only(tiny_config):
    def first_weights(**settings):
        return assemble(tiny_config(**settings)).learner.network.neck[1].weight

    torch.manual_seed(99)
    one = first_weights(seed=5)
    assert torch.equal(one, first_weights(seed=5, data={"preload_gib": 0.0}))
    assert not torch.equal(one, first_weights(seed=6))


def test_preloading_more_than_allowed_is_refused(tiny_config):
    with pytest.raises(ConfigError, match="train: 31 clips need"):
        assemble(tiny_config(data={"preload_gib": 1e-6}))
    train_bytes = 31 * 3 * 2 * 16 * 16
    with pytest.raises(ConfigError, match="valid: 15 clips need"):  # what train leaves is too little
        assemble(tiny_config(data={"preload_gib": 1.1 * train_bytes / 2**30}))
    assemble(tiny_config(data={"preload_gib": 1.6 * train_bytes / 2**30}))


def test_a_missing_split_is_named(tiny_config, tiny_dataset, tmp_path):
    shutil.copytree(tiny_dataset / "train", tmp_path / "train")
    with pytest.raises(AnnotationError, match="no split 'valid'"):
        assemble(tiny_config(root=tmp_path, data={"root": tmp_path}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_what_needs_one_is_refused(tiny_config):
    with pytest.raises(ConfigError, match="--device is 'cuda', and PyTorch sees no GPU"):
        choose_device("cuda")
    with pytest.raises(ConfigError, match=r"--loop\.amp is 'fp16', and there is no GPU"):
        assemble(tiny_config(device="auto", loop={"amp": "fp16"}))


def test_a_worker_is_silent_when_the_training_process_has_hung_up_and_loud_otherwise(capsys):
    _quiet_when_the_parent_is_gone(ConnectionResetError, ConnectionResetError("reset by peer"), None)
    assert capsys.readouterr().err == ""
    _quiet_when_the_parent_is_gone(RuntimeError, RuntimeError("out of memory"), None)
    assert "RuntimeError: out of memory" in capsys.readouterr().err


def test_bf16_on_a_cpu_is_warned_of_and_float32_is_not(tiny_config):
    config = tiny_config(loop={"amp": "bf16"})
    (warning,) = [text for text in warnings_of(config, assemble(config).learner) if "bf16" in text]
    assert "--loop.amp none" in warning
    assert not [text for text in warnings_of(tiny_config(), assemble(tiny_config()).learner) if "bf16" in text]
