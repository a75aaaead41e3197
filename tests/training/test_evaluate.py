"""Evaluating a checkpoint: figures, files, and what happens where something is missing."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from matplotlib.image import imread

from mvfoul.errors import AnnotationError, CheckpointError, ConfigError
from mvfoul.labels import from_soccernet_json
from training.checkpoint import load_network
from training.dataset import MultiViewDataset, collate_actions
from training.evaluate import EvaluateConfig, main
from training.evaluation.run import evaluate_checkpoint


@pytest.fixture
def config(tiny_run, tiny_dataset, tmp_path):
    output = tmp_path / "evaluation"
    return EvaluateConfig(ckpt=tiny_run / "best.pth.tar", root=tiny_dataset, output=output, workers=0, device="cpu")


def _metrics(config):
    return json.loads((config.output / "metrics.json").read_text())


def _logits(config, split, **options):
    """The network's logits, action by action."""
    network, checkpoint = load_network(config.ckpt)
    data = MultiViewDataset(config.root, split, clip=checkpoint.clip, **options)
    batches = [collate_actions([data[index]]) for index in range(len(data))]
    with torch.inference_mode():
        return {batch.action_ids[0]: network(batch.views, batch.view_counts) for batch in batches}


def test_the_predictions_are_the_networks_most_probable_labels(config):
    evaluate_checkpoint(config)
    predictions = from_soccernet_json(json.loads((config.output / "predictions_test.json").read_text()))
    logits = _logits(config, "test")
    assert set(predictions) == set(logits)
    for action_id, labels in predictions.items():
        assert labels.action == logits[action_id].action.argmax().item()
        assert labels.offence_severity == logits[action_id].offence_severity.argmax().item()


def test_the_answers_do_not_depend_on_the_batch_size(config):
    one = evaluate_checkpoint(replace(config, batch_size=1))
    many = evaluate_checkpoint(replace(config, batch_size=5))
    assert one.document == many.document
    assert one.single_view == many.single_view


def test_each_view_is_also_answered_alone(config):
    evaluation = evaluate_checkpoint(config)
    first_views = _logits(config, "test", num_views=1)
    views = iter(zip(evaluation.answers.view_labels("action"), evaluation.answers.view_answers("action"), strict=True))
    for number, action_id in enumerate(evaluation.answers.action_ids):
        label, answer = next(views)
        assert label == number % 8
        assert answer == first_views[action_id].action.argmax().item()
        for _ in range(number % 3):  # its other views
            assert next(views)[0] == number % 8
    assert evaluation.answers.views == 15
    assert _metrics(config)["single_view"]["score"] == evaluation.single_view.score


def test_fewer_views_can_be_asked_for_and_more_than_the_contract_are_refused(config):
    assert evaluate_checkpoint(replace(config, num_views=1)).answers.views == 8
    with pytest.raises(ConfigError, match=r"--num-views is 6; .* takes 5 at most"):
        evaluate_checkpoint(replace(config, num_views=6))


def test_metrics_and_pictures_tell_the_same_as_the_table(config, capsys):
    evaluation = evaluate_checkpoint(config)
    metrics, out = _metrics(config), capsys.readouterr().out
    assert metrics["confusion"]["action"] == evaluation.answers.confusions()["action"].tolist()
    assert sum(map(sum, metrics["confusion"]["offence_severity"])) == 8
    row = next(line for line in out.splitlines() if line.startswith("offence_severity"))
    head = metrics["offence_severity"]
    shown = [head["accuracy"], head["balanced_accuracy"], metrics["top2"]["offence_severity"]]
    assert row.split()[1:4] == [f"{100 * value:.1f}" for value in shown]
    assert f"{100 * metrics['single_view']['score']:.1f}" in out
    for name in ("confusion_action.png", "confusion_offence_severity.png"):
        assert imread(config.output / name).shape[0] > 200
    assert "python -m export --ckpt" in out


def test_top2_counts_labels_in_either_place(config):
    evaluation = evaluate_checkpoint(config)
    logits = _logits(config, "test")
    hits = [int(a) % 8 in logits[a].action[0].topk(2).indices.tolist() for a in evaluation.answers.action_ids]
    assert evaluation.answers.top2("action") == pytest.approx(sum(hits) / 8)


def test_a_split_without_labels_gets_predictions_only(config, capsys):
    evaluate_checkpoint(replace(config, split="chall"))
    assert sorted(path.name for path in config.output.iterdir()) == ["metrics.json", "predictions_challenge.json"]
    assert _metrics(config)["score"] is None
    document = json.loads((config.output / "predictions_challenge.json").read_text())
    assert (document["Set"], len(document["Actions"])) == ("challenge", 4)
    assert "no labels in this split: predictions only" in capsys.readouterr().out


def test_an_action_without_a_usable_clip_counts_as_wrong_and_is_named(config, tiny_dataset, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(tiny_dataset, root)
    (root / "test" / "action_3" / "clip_0.mp4").write_bytes(b"moov atom not found")
    evaluation = evaluate_checkpoint(replace(config, root=root))
    out = capsys.readouterr().out
    assert evaluation.official.unanswered == ("3",)
    assert evaluation.official.occurrences["action"].tolist() == [1] * 8
    assert evaluation.answers.confusions()["action"].sum() == 7
    assert "no prediction, for want of a usable clip: actions 3" in out
    assert "clips skipped: 1; the first: action 3" in out


def test_annotations_in_another_spelling_are_counted_as_officially_and_pointed_out(
    config, tiny_dataset, tmp_path, capsys
):
    root = tmp_path / "data"
    shutil.copytree(tiny_dataset, root)
    path = root / "test" / "annotations.json"
    path.write_text(path.read_text().replace('"No offence"', '"No Offence"'))
    evaluation = evaluate_checkpoint(replace(config, root=root))
    assert evaluation.metrics.heads["offence_severity"].recalls[0] == 0
    assert list(evaluation.official.never_right) == ["0", "4"]
    assert (
        "as wrong whatever is predicted: 2 here; action 0, for one, because its offence is annotated as"
        in capsys.readouterr().out
    )
    same = evaluate_checkpoint(config)
    assert evaluation.plain == same.plain == same.metrics


def test_without_an_output_the_files_lie_beside_the_checkpoint(config, tmp_path):
    shutil.copy(config.ckpt, tmp_path / "best.pth.tar")
    evaluate_checkpoint(replace(config, ckpt=tmp_path / "best.pth.tar", output=None, split="Valid"))
    assert (tmp_path / "evaluation_valid" / "predictions_valid.json").exists()


def test_what_cannot_be_evaluated_is_refused(config, tiny_dataset, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        evaluate_checkpoint(replace(config, ckpt=tmp_path / "none.pth.tar"))
    with pytest.raises(AnnotationError, match="unknown split 'tset'"):
        replace(config, split="tset")
    with pytest.raises(ConfigError, match="--batch-size is 0"):
        replace(config, batch_size=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to"):
        evaluate_checkpoint(replace(config, output=tmp_path / "file" / "x"))
    root = tmp_path / "data"
    shutil.copytree(tiny_dataset, root)
    for path in (root / "test").rglob("*.mp4"):
        path.write_bytes(b"")
    with pytest.raises(AnnotationError, match="not one clip of"):
        evaluate_checkpoint(replace(config, root=root))


def test_the_command_ends_with_the_message_and_an_exit_code(config, monkeypatch, capsys):
    flags = ["--ckpt", str(config.ckpt), "--data.root", str(config.root), "--output", str(config.output)]
    monkeypatch.setattr(sys, "argv", ["evaluate", *flags, "--workers", "0", "--device", "cpu"])
    assert main() == 0
    assert _metrics(config)["split"] == "test"
    monkeypatch.setattr(sys, "argv", ["evaluate", "--ckpt", "none.pth.tar", *flags[2:]])
    assert main() == 2
    assert "error: no checkpoint at none.pth.tar" in capsys.readouterr().err


def test_the_real_sample_gets_a_prediction_for_each_action(config, sample_root):
    evaluation = evaluate_checkpoint(replace(config, root=sample_root))
    annotated = json.loads((sample_root / "test" / "annotations.json").read_text())["Actions"]
    assert list(evaluation.document["Actions"]) == sorted(annotated)
    assert evaluation.answers.skipped == []
    assert _metrics(config)["official"]["leaderboard_value"] is None
