"""Whole runs on a tiny data set."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from mvfoul.clip import ClipSpec
from mvfoul.errors import AnnotationError, ConfigError, DivergedError
from training.checkpoint import load_checkpoint, load_network
from training.loop import PassResult
from training.metrics import confusion_matrix
from training.progress import Progress, goodness
from training.run import train


def _passed(*, action, severity, loss):
    """A pass over two actions of the given answers; the labels are 0 and 1."""
    result = PassResult(labelled=2, loss_sums={"action": loss, "offence_severity": loss})
    result.confusions["action"] += confusion_matrix([0, 1], action, 8)
    result.confusions["offence_severity"] += confusion_matrix([0, 1], severity, 4)
    return result


def test_a_run_leaves_its_checkpoints_its_curves_and_its_settings(tiny_run, tiny_config):
    assert sorted(path.name for path in tiny_run.iterdir()) == [
        ".lock",
        "best.pth.tar",
        "config.json",
        "history.jsonl",
        "last.pth.tar",
        "training_history.png",
    ]
    last = load_checkpoint(tiny_run / "last.pth.tar")
    assert last.epoch == 2
    assert set(map(len, last.histories.values())) == {2}
    assert {"train/loss", "valid/score", "valid/action/balanced_accuracy", "lr", "seconds"} <= set(last.histories)
    document = json.loads((tiny_run / "config.json").read_text())
    assert document["config"] == last.config == tiny_config(output=tiny_run).to_json()
    assert ClipSpec.from_json(document["clip"]) == last.clip


def test_the_best_checkpoint_is_the_epoch_with_the_best_result_and_can_be_used(tiny_run):
    network, best = load_network(tiny_run / "best.pth.tar")
    scores = load_checkpoint(tiny_run / "last.pth.tar").histories["valid/score"]
    assert best.epoch == 1 + scores.index(max(scores))
    assert best.evaluation["score"] == max(scores)
    assert best.evaluation["actions"] == 8
    logits = network(torch.zeros(2, *best.clip.view_shape, dtype=torch.uint8), torch.tensor([2]))
    assert torch.isfinite(logits.action).all()


def test_everything_that_going_on_needs_is_in_the_checkpoint(tiny_config, tmp_path):
    optim = {"name": "adamw", "momentum": None, "lr": 1e-3}
    config = tiny_config(output=tmp_path, optim=optim, schedule={"name": "step", "step_size": 1, "gamma": 0.1})
    train(config)
    last = load_checkpoint(tmp_path / "last.pth.tar")
    assert last.optimizer["state"][0]["step"] == 4  # two epochs of two batches
    assert last.optimizer["param_groups"][0]["lr"] == pytest.approx(1e-5)  # of the third epoch
    assert last.scheduler["last_epoch"] == 2
    assert last.histories["lr"] == pytest.approx([1e-3, 1e-4])


def test_the_same_seed_gives_bitwise_the_same_losses(tiny_config, tiny_run, tmp_path):
    def losses(path):
        histories = load_checkpoint(path / "last.pth.tar").histories
        return {name: v for name, v in histories.items() if not name.startswith(("seconds", "system/"))}

    same, other = tmp_path / "same", tmp_path / "other"
    train(tiny_config(output=same))
    train(tiny_config(output=other, seed=1))
    assert losses(same) == losses(tiny_run)
    assert losses(other)["train/loss"] != losses(tiny_run)["train/loss"]
    first, second = (torch.load(path / "last.pth.tar", weights_only=True)["state_dict"] for path in (same, tiny_run))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_tiny_set_is_learnt(tiny_config, tmp_path):
    config = tiny_config(output=tmp_path, optim={"lr": 0.02}, loop={"epochs": 10, "select": "loss"})
    losses = train(config).histories["valid/loss"]
    assert min(losses) < 0.6 * losses[0]


def test_a_run_stops_after_patience_epochs_without_a_better_result(tiny_config, tmp_path, capsys):
    # A learning rate of almost nothing: no epoch after the first is better.
    config = tiny_config(output=tmp_path, optim={"lr": 1e-30}, loop={"epochs": 9, "patience": 2})
    result = train(config)
    assert (result.best_epoch, result.epochs) == (1, 3)
    assert "Stopped early, 2 epochs after the best" in capsys.readouterr().out


def test_patience_counts_from_the_best_epoch_and_equal_is_not_better():
    progress = Progress()
    stale = []
    for value in (0.1, 0.3, 0.3, 0.2, 0.4, 0.4, 0.4):
        progress.add({"valid/score": value}, value)
        stale.append(progress.stale(2))
    assert stale == [False, False, False, True, False, False, True]
    assert (progress.best_epoch, progress.epochs) == (5, 7)
    assert not progress.stale(0)


def test_what_selects_the_best_epoch_is_the_flag():
    result = _passed(action=[0, 0], severity=[0, 1], loss=3.0)
    assert goodness("score", result) == pytest.approx(0.75)
    assert goodness("accuracy", result) == pytest.approx(0.75)
    assert goodness("loss", result) == pytest.approx(-3.0)
    uneven = _passed(action=[0, 0], severity=[0, 1], loss=3.0)
    uneven.confusions["action"][0, 0] += 2
    assert goodness("accuracy", uneven) == pytest.approx((3 / 4 + 1) / 2)
    assert goodness("score", uneven) == pytest.approx(0.75)


def test_the_lines_of_a_run_tell_every_figure_and_the_next_commands(tiny_config, tmp_path, capsys):
    result = train(tiny_config(output=tmp_path))
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.strip().startswith("2/2"))
    last = {name: values[-1] for name, values in result.histories.items()}
    for split in ("train", "valid"):
        for head in ("action", "offence_severity"):
            assert f"{last[f'{split}/{head}/loss']:5.2f}" in line
            assert f"{100 * last[f'{split}/{head}/accuracy']:5.1f}" in line
            assert f"{100 * last[f'{split}/{head}/balanced_accuracy']:5.1f}" in line
    assert f"python -m training.evaluate --ckpt {tmp_path}/best.pth.tar --data.root" in out
    assert f"python -m export --ckpt {tmp_path}/best.pth.tar" in out


def test_a_finished_run_is_only_replaced_on_request(tiny_config, tiny_run, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(tiny_run, output)
    with pytest.raises(ConfigError, match=r"holds best\.pth\.tar and last\.pth\.tar of another run.*--overwrite"):
        train(tiny_config(output=output))
    assert load_checkpoint(output / "last.pth.tar").epoch == 2
    train(tiny_config(output=output, overwrite=True, loop={"epochs": 1}))
    assert load_checkpoint(output / "last.pth.tar").epoch == 1


def test_an_output_that_cannot_be_made_is_refused(tiny_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        train(tiny_config(output=tmp_path / "file" / "run"))


def test_damaged_clips_are_counted_and_reported_in_every_epoch(tiny_config, tiny_dataset, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(tiny_dataset, root)
    (root / "train" / "action_0" / "clip_0.mp4").write_bytes(b"moov atom not found")  # its only clip
    (root / "train" / "action_1" / "clip_1.mp4").write_bytes(b"")
    result = train(tiny_config(data={"root": root}, output=tmp_path / "run"))
    assert result.histories["train/skipped_clips"] == [2, 2]
    assert result.histories["train/actions_left_out"] == [1, 1]
    out = capsys.readouterr().out
    assert out.count("train: clips skipped: 2, actions left out: 1; the first: action ") == 2


def test_a_split_without_one_good_clip_ends_the_run_with_the_reason(tiny_config, tiny_dataset, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tiny_dataset, root)
    for path in (root / "valid").rglob("*.mp4"):
        path.write_bytes(b"")
    with pytest.raises(AnnotationError, match=r"not one clip of valid could be decoded.*check_data"):
        train(tiny_config(data={"root": root}, output=tmp_path / "run"))


def test_a_class_that_train_does_not_have_is_pointed_out(tiny_config, tiny_dataset, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(tiny_dataset, root)
    path = root / "train" / "annotations.json"
    document = json.loads(path.read_text())
    document["Actions"] = {key: value for key, value in document["Actions"].items() if value["Severity"] != "5.0"}
    path.write_text(json.dumps(document))
    result = train(tiny_config(data={"root": root}, output=tmp_path / "run", loop={"epochs": 1}))
    assert "train has no offence_severity Offence + Red card: it cannot be learnt" in capsys.readouterr().out
    assert math.isfinite(result.histories["valid/loss"][0])


def test_a_diverging_run_keeps_the_checkpoints_of_the_epochs_before(tiny_config, tmp_path):
    with pytest.raises(DivergedError, match=r"epoch \d+: the loss is .*--optim\.lr.*best\.pth\.tar holds epoch"):
        train(tiny_config(output=tmp_path, optim={"lr": 0.5}, loop={"epochs": 60}))
    last = load_checkpoint(tmp_path / "last.pth.tar")
    assert 1 <= last.epoch < 60
    assert all(math.isfinite(loss) for loss in last.histories["train/loss"])
