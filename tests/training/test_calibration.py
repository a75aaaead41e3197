"""Confidences: how they are measured, and the temperature that makes them right."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from mvfoul.errors import AnnotationError, ConfigError
from mvfoul.labels import VOCABULARIES
from training.calibrate import CalibrateConfig
from training.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, fit_temperature, probabilities, reliability
from training.checkpoint import load_checkpoint, save_checkpoint
from training.evaluate import EvaluateConfig
from training.evaluation.run import evaluate_checkpoint
from training.evaluation.temperature import calibrate_checkpoint
from training.plots import plot_reliability


def _drawn(actions=4000, *, temperature=1.0, seed=0):
    """Logits whose softmax at `temperature` is the truth that the labels are drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(actions, 4))
    shares = probabilities(logits, temperature)
    labels = (shares.cumsum(axis=1) < rng.random((actions, 1))).sum(axis=1)
    return logits, labels


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found_again(truth):
    logits, labels = _drawn(temperature=truth)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(truth, rel=0.08)
    before, after = reliability(logits, labels), reliability(logits, labels, found)
    assert after.nll <= before.nll
    assert after.ece < 0.03


def test_no_other_temperature_has_a_lower_negative_log_likelihood():
    logits, labels = _drawn(200, temperature=1.7)
    found = fit_temperature(logits, labels)
    best = reliability(logits, labels, found).nll
    assert all(best <= reliability(logits, labels, found * factor).nll for factor in (0.9, 0.999, 1.001, 1.1))


def test_the_negative_log_likelihood_is_that_of_torch():
    logits, labels = _drawn(50)
    wanted = torch.nn.functional.cross_entropy(torch.from_numpy(logits) / 1.3, torch.from_numpy(labels))
    assert reliability(logits, labels, 1.3).nll == pytest.approx(wanted.item())


def test_answers_that_are_all_right_end_at_the_lowest_temperature_and_not_at_0():
    logits = np.eye(4)[[0, 1, 2, 3]]
    assert fit_temperature(logits, [0, 1, 2, 3]) == MIN_TEMPERATURE
    assert fit_temperature(1000 * logits, [0, 1, 2, 3]) == MIN_TEMPERATURE


def test_answers_that_are_all_wrong_end_at_the_highest_temperature():
    assert fit_temperature(np.eye(4), [1, 2, 3, 0]) == MAX_TEMPERATURE


def test_the_calibration_error_is_the_mean_distance_of_confidence_and_accuracy():
    logits = np.log([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 2)
    found = reliability(logits, [0, 0, 1, 1, 0, 0])  # 90 % sure and half right; 60 % sure and always right
    assert found.ece == pytest.approx((4 * abs(0.9 - 0.5) + 2 * abs(0.6 - 1.0)) / 6)
    assert sum(found.counts) == 6


def test_a_confidence_of_1_is_in_the_last_bin():
    assert reliability([[1000.0, 0.0]], [0]).counts[-1] == 1


def test_without_an_action_there_is_no_calibration():
    with pytest.raises(ValueError, match="no labelled action"):
        reliability(np.zeros((0, 4)), [])
    with pytest.raises(ValueError, match="no labelled action"):
        fit_temperature(np.zeros((0, 4)), [])


def test_the_diagram_shows_both_curves(tmp_path):
    logits, labels = _drawn(300, temperature=3.0)
    before, after = reliability(logits, labels), reliability(logits, labels, 3.0)
    plot_reliability(tmp_path / "a.png", {"action": {"before": before}}, title="valid")
    plot_reliability(tmp_path / "b.png", {"action": {"before": before, "after": after}}, title="valid")
    assert not np.array_equal(imread(tmp_path / "a.png"), imread(tmp_path / "b.png"))


@pytest.fixture
def config(tiny_run, tiny_dataset, tmp_path):
    shutil.copy(tiny_run / "best.pth.tar", tmp_path / "best.pth.tar")
    ckpt = tmp_path / "best.pth.tar"
    return CalibrateConfig(ckpt=ckpt, root=tiny_dataset, min_actions=8, workers=0, device="cpu")


def test_the_checkpoint_gets_the_temperatures_and_stays_otherwise_the_same(config, tiny_run, capsys):
    temperatures = calibrate_checkpoint(config)
    before, after = load_checkpoint(tiny_run / "best.pth.tar"), load_checkpoint(config.ckpt)
    assert dict(before.temperatures) == dict.fromkeys(VOCABULARIES, 1.0)
    assert dict(after.temperatures) == temperatures
    counted = before.evaluation["answers"]
    assert {**after.evaluation, "answers": counted} == before.evaluation
    for head, population in after.evaluation["answers"].items():
        assert population["temperature"] == temperatures[head]
        assert population["labels"] == counted[head]["labels"]
        assert sum(population["confidences"]) == sum(counted[head]["confidences"]) == 8
    assert all(torch.equal(after.state_dict[name], value) for name, value in before.state_dict.items())
    assert "note: 8 actions are few" in capsys.readouterr().out
    assert [path.name for path in config.ckpt.parent.iterdir()] == ["best.pth.tar"]


def test_where_every_answer_is_right_the_temperature_stays_1_and_the_reason_is_said(config, capsys):
    checkpoint = load_checkpoint(config.ckpt)
    state = {name: torch.zeros_like(value) for name, value in checkpoint.state_dict.items()}
    for name, value in {"action_head.3.bias": torch.eye(8)[0], "offence_severity_head.3.bias": torch.eye(4)[0]}.items():
        assert state[name].shape == value.shape
        state[name] = value  # always says Tackling, no offence
    root = config.ckpt.parent / "data"
    shutil.copytree(config.root, root)
    path = root / "valid" / "annotations.json"
    document = json.loads(path.read_text())
    for fields in document["Actions"].values():
        fields |= {"Action class": "Tackling", "Offence": "No offence", "Severity": ""}
    path.write_text(json.dumps(document))
    save_checkpoint(config.ckpt, replace(checkpoint, state_dict=state))
    assert calibrate_checkpoint(replace(config, root=root)) == dict.fromkeys(VOCABULARIES, 1.0)
    assert "note: action keeps the temperature 1: with 0 mistakes here" in capsys.readouterr().out


def test_an_evaluation_tells_both_sides_of_the_calibration_and_the_same_answers(
    config, tiny_run, tiny_dataset, tmp_path
):
    temperatures = calibrate_checkpoint(config)
    evaluation = EvaluateConfig(
        ckpt=config.ckpt, root=tiny_dataset, split="valid", output=tmp_path / "out", workers=0, device="cpu"
    )
    after = evaluate_checkpoint(evaluation)
    before = evaluate_checkpoint(replace(evaluation, ckpt=tiny_run / "best.pth.tar"))
    assert after.document == before.document
    assert after.temperatures == temperatures
    for head, curves in after.calibration().items():
        assert curves["before"] == before.calibration()[head]["before"]
        assert curves["after"].nll <= curves["before"].nll
    assert "after" not in before.calibration()["action"]


def test_too_few_actions_are_refused_with_the_reason_and_nothing_is_written(config):
    with pytest.raises(ConfigError, match=r"--split valid of .* has 8 labelled actions .* --min-actions 50"):
        calibrate_checkpoint(replace(config, min_actions=50))
    with pytest.raises(ConfigError, match=r"--split challenge of .* has 0 labelled actions"):
        calibrate_checkpoint(replace(config, split="challenge"))
    assert load_checkpoint(config.ckpt).temperatures["action"] == 1.0


def test_the_training_split_and_an_unknown_one_are_refused(config):
    with pytest.raises(ConfigError, match="knows these actions by heart"):
        replace(config, split="Train")
    with pytest.raises(AnnotationError, match="unknown split"):
        replace(config, split="x")
