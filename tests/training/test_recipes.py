"""Recipes, and how flags override them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from mvfoul.clip import preset
from training.assembly import choose_device
from training.config import DataConfig, RecipeName, ScheduleConfig, TrainConfig
from training.model.backbone import BACKBONES
from training.recipes import RECIPES, parse_config

ROOT = ["--data.root", "data"]
GOLDEN = Path(__file__).parent / "golden"


def _resolved(name):
    """Every setting of a recipe, and the frames and pictures that they come to."""
    config = RECIPES[name](Path("data"))
    facts = BACKBONES[config.model.backbone]
    return {"config": config.to_json(), "clip": config.clip.spec(mean=facts.mean, std=facts.std).to_json()}


def _leaves(document, prefix=""):
    if not isinstance(document, dict):
        return {prefix: document}
    parts = (_leaves(value, f"{prefix}.{key}".lstrip(".")) for key, value in document.items())
    return {key: value for part in parts for key, value in part.items()}


def _refused(capsys, *flags):
    with pytest.raises(SystemExit) as stopped:
        parse_config(flags)
    assert stopped.value.code == 2
    streams = capsys.readouterr()
    # tyro draws a box around the message; only its words matter here.
    return " ".join((streams.out + streams.err).replace("│", " ").split())


def test_every_recipe_that_can_be_named_exists_and_says_its_own_name():
    assert set(RECIPES) == set(get_args(RecipeName))
    assert all(recipe(Path("data")).recipe == name for name, recipe in RECIPES.items())


@pytest.mark.parametrize("name", RECIPES)
def test_no_setting_of_a_recipe_changes_unnoticed(name):
    # After a change on purpose: PYTHONPATH=. python tests/training/test_recipes.py writes the files again.
    golden = _leaves(json.loads((GOLDEN / f"recipe_{name}.json").read_text()))
    now = _leaves(_resolved(name))
    assert {key: now.get(key, "no longer there") for key in golden} == golden
    # A flag that is newer than the file changes no recipe while it has its default.
    defaults = _leaves({"config": TrainConfig(data=DataConfig(root=Path("data"))).to_json()})
    newer = now.keys() - golden.keys()
    assert {key: now[key] for key in newer} == {key: defaults.get(key) for key in newer}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_tells_what_to_expect(name):
    text = RECIPES[name].__doc__ or ""
    assert all(word in text for word in ("Result:", "Time:", "Hardware:"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_gives_its_backbone_clips_that_it_takes(name):
    config = RECIPES[name](Path("data"))
    spec = config.clip.spec()
    facts = BACKBONES[config.model.backbone]
    assert spec.num_frames >= facts.min_frames
    if config.weights == "kinetics400" and config.model.backbone == "mvit_v2_s":
        assert (spec.num_frames, spec.size_px) == (16, 224)


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_line_starts_from_the_recipe(name):
    assert parse_config(["--recipe", name, *ROOT]) == RECIPES[name](Path("data"))
    assert parse_config([*ROOT, f"--recipe={name}"]) == RECIPES[name](Path("data"))


def test_without_a_recipe_it_is_two_second():
    assert parse_config(ROOT) == RECIPES["two-second"](Path("data"))


def test_two_second_is_what_the_guide_asks_for():
    config = RECIPES["two-second"](Path("data"))
    assert (config.optim.name, config.optim.lr) == ("adamw", 1e-4)
    assert config.schedule == ScheduleConfig(name="step", step_size=10, gamma=0.5)
    assert (config.loop.epochs, config.loop.batch_size, config.loop.patience) == (50, 8, 10)
    assert config.clip.spec() == preset("two-second")


def test_the_frames_of_mvit_2024_are_those_of_the_original_rule():
    factor = 34 / (34 / 25 * 12)
    frames = tuple(58 + j for j in range(34) if j % factor < 1)
    assert RECIPES["mvit-2024"](Path("data")).clip.spec().frame_indices == frames


def test_flags_override_the_recipe():
    flags = ["--recipe", "cpu-demo", *ROOT, "--model.aggregation", "mean", "--loop.epochs", "3", "--weights", "w.pth"]
    config = parse_config(flags)
    assert (config.model.aggregation, config.loop.epochs, config.weights) == ("mean", 3, "w.pth")
    assert config.model.backbone == RECIPES["cpu-demo"](Path("data")).model.backbone


def test_a_setting_of_the_recipe_can_be_taken_back():
    flags = ["--schedule.name", "cosine", "--schedule.step-size", "None", "--schedule.gamma", "None"]
    config = parse_config([*ROOT, *flags])
    assert config.schedule == ScheduleConfig(name="cosine")


def test_class_weights_are_a_word_or_one_value_per_class(capsys):
    values = ["--loss.offence-severity-weights", "1", "2", "3", "4"]
    assert parse_config([*ROOT, *values]).loss.offence_severity_weights == (1.0, 2.0, 3.0, 4.0)
    assert parse_config([*ROOT, "--loss.action-weights", "none"]).loss.action_weights == "none"
    assert "offence-severity-weights" in _refused(capsys, *ROOT, "--loss.offence-severity-weights", "1", "2")


def test_what_is_wrong_with_the_flags_is_said(capsys):
    assert "--data.root" in _refused(capsys)
    assert "two-second" in _refused(capsys, *ROOT, "--recipe", "tree-second")
    assert "--recipe" in _refused(capsys, *ROOT, "--recipe")
    assert "--modle.backbone" in _refused(capsys, *ROOT, "--modle.backbone", "s3d")
    assert "--optim.lr is -1.0. Nothing is learnt" in _refused(capsys, *ROOT, "--optim.lr", "-1")
    assert "cosine does not use it" in _refused(capsys, *ROOT, "--schedule.name", "cosine")


def test_an_abbreviated_flag_is_not_taken_for_the_recipe(capsys):
    assert "--rec" in _refused(capsys, *ROOT, "--rec", "cpu-demo")


def test_a_recipe_can_be_changed_from_python():
    assert isinstance(RECIPES["two-second"](Path("data")), TrainConfig)
    assert choose_device("cpu").type == "cpu"


if __name__ == "__main__":
    for recipe in RECIPES:
        (GOLDEN / f"recipe_{recipe}.json").write_text(json.dumps(_resolved(recipe), indent=2) + "\n")
