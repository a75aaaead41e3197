"""Evaluating a checkpoint: figures, files, and what happens where something is missing."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from mvfoul.errors import AnnotationError, CheckpointError, ConfigError
from mvfoul.labels import VOCABULARIES, from_soccernet_json
from mvfoul.population import read_populations
from training.checkpoint import load_checkpoint, load_network, save_checkpoint
from training.clips import ClipReader
from training.dataset import ActionSample, MultiViewDataset, collate_actions
from training.evaluate import EvaluateConfig, main
from training.evaluation.answers import answer_all
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


def test_a_network_trained_on_spread_replays_is_evaluated_on_them_and_it_is_said(config, tmp_path, monkeypatch, capsys):
    checkpoint = load_checkpoint(config.ckpt)
    ckpt = tmp_path / "aware.pth.tar"
    changed = {**checkpoint.config, "data": {**checkpoint.config["data"], "replay_aware": True}}
    save_checkpoint(ckpt, replace(checkpoint, config=changed))
    asked = []
    read = ClipReader.read
    monkeypatch.setattr(ClipReader, "read", lambda self, *args: asked.append(self.rule) or read(self, *args))
    for path, aware in ((config.ckpt, False), (ckpt, True)):
        asked.clear()
        evaluate_checkpoint(replace(config, ckpt=path))
        assert {rule.replay_aware for rule in asked} == {aware}
        assert ("these figures do not hold for it" in capsys.readouterr().out) == aware


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
    for head, seen in read_populations(metrics).items():  # what a server compares its answers with
        assert list(seen.labels) == evaluation.answers.confusions()[head].sum(axis=0).tolist()
        assert sum(seen.confidences) == seen.answers == 8
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


def test_flipped_views_are_answered_by_the_mean_of_both_logits(config):
    network, checkpoint = load_network(config.ckpt)
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(256, (5, *checkpoint.clip.view_shape), dtype=torch.uint8, generator=generator)
    kinds = torch.zeros(5, dtype=torch.int64)
    batch = collate_actions(
        [ActionSample(views[:2], kinds[:2], 0, 0, "a", ()), ActionSample(views[2:], kinds[2:], 1, 1, "b", ())]
    )
    straight, mirrored = (answer_all(network, [replace(batch, views=v)]) for v in (views, views.flip(-1)))
    found = answer_all(network, [batch], augmentation="flip")
    for head in VOCABULARIES:
        mean = (straight.logits(head) + mirrored.logits(head)) / 2
        assert found.logits(head) == pytest.approx(mean, abs=1e-6)
        assert not np.allclose(mean, straight.logits(head))
    evaluate_checkpoint(replace(config, tta="flip"))
    assert _metrics(config)["test_time_augmentation"] == "flip"


def test_each_class_has_its_precision_recall_f1_and_support(config):
    evaluate_checkpoint(config)
    metrics = _metrics(config)
    for head in ("action", "offence_severity"):
        matrix = np.array(metrics["confusion"][head])
        for index, row in enumerate(metrics["classes"][head].values()):
            hits, labelled, answered = matrix[index, index], matrix[index].sum(), matrix[:, index].sum()
            assert row["support"] == labelled
            assert row["recall"] == pytest.approx(hits / labelled)
            assert row["precision"] == (pytest.approx(hits / answered) if answered else None)
            assert row["f1"] == pytest.approx(2 * hits / (labelled + answered))


def test_actions_are_also_counted_by_their_number_of_views(config):
    evaluation = evaluate_checkpoint(config)
    groups = _metrics(config)["by_view_count"]
    assert {views: group["count"] for views, group in groups.items()} == {"1": 3, "2": 3, "3": 2}
    right = evaluation.answers.rankings("action")[:, 0] == evaluation.answers.labels("action")
    assert groups["3"]["action"]["accuracy"] == pytest.approx(np.mean([right[2], right[5]]))


def test_views_are_also_counted_by_their_camera(config, tiny_dataset, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tiny_dataset, root)
    path = root / "test" / "annotations.json"
    document = json.loads(path.read_text())
    for fields in document["Actions"].values():
        for clip, camera in zip(fields["Clips"], ("Main", "Close-up", ""), strict=False):
            clip["Camera type"] = camera
    path.write_text(json.dumps(document))
    (root / "test" / "action_4" / "clip_0.mp4").write_bytes(b"damaged: its close-up is the first usable view")
    evaluation = evaluate_checkpoint(replace(config, root=root))
    groups = _metrics(config)["by_camera"]
    assert {camera: group["count"] for camera, group in groups.items()} == {"Main": 7, "Close-up": 5, "(not named)": 2}
    closeups = [row for row, camera in enumerate(evaluation.cameras) if camera == "Close-up"]
    right = evaluation.answers.view_answers("action") == evaluation.answers.view_labels("action")
    assert groups["Close-up"]["action"]["accuracy"] == pytest.approx(right[closeups].mean())


def test_the_interval_of_the_score_holds_the_score_and_can_be_left_out(config, capsys):
    evaluation = evaluate_checkpoint(config)
    interval = _metrics(config)["intervals"]["score"]
    assert interval["low"] <= evaluation.metrics.score <= interval["high"]
    assert f"score {100 * interval['low']:.1f} to {100 * interval['high']:.1f}" in capsys.readouterr().out
    evaluate_checkpoint(replace(config, resamples=0))
    assert _metrics(config)["intervals"] is None
    with pytest.raises(ConfigError, match="--resamples is 5"):
        replace(config, resamples=5)


def test_the_report_is_one_file_with_every_picture_and_the_worst_mistakes(config):
    evaluation = evaluate_checkpoint(config)
    text = (config.output / "report.html").read_text()
    for name in ("confusion_action", "confusion_offence_severity", "reliability"):
        assert base64.b64encode((config.output / f"{name}.png").read_bytes()).decode() in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    mistakes = evaluation.mistakes(20)
    assert mistakes
    assert [m.confidence for m in mistakes] == sorted((m.confidence for m in mistakes), reverse=True)
    for mistake in mistakes:
        row = evaluation.answers.action_ids.index(mistake.action_id)
        assert VOCABULARIES[mistake.head][evaluation.answers.labels(mistake.head)[row]] == mistake.labelled
        assert mistake.labelled != mistake.answered
    assert f"Action {mistakes[0].action_id}, the middle frame of each view" in text


def test_what_annotations_and_folders_say_is_escaped_in_the_report(config, tiny_dataset, tmp_path):
    root = tmp_path / "<script>alert(1)</script>"
    shutil.copytree(tiny_dataset, root)
    path = root / "test" / "annotations.json"
    path.write_text(path.read_text().replace("Main camera center", "<img src=x onerror=alert(2)>"))
    (root / "test" / "action_3" / "clip_0.mp4").write_bytes(b"damaged")
    evaluate_checkpoint(replace(config, root=root))
    text = (config.output / "report.html").read_text()
    assert "<script" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "&lt;img src=x onerror" in text


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
