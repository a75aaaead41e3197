"""Settings: nonsense is refused with value, flag and cure; nothing is silently ignored; `--help` is frozen."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from mvfoul.clip import preset
from mvfoul.errors import ClipSpecError, ConfigError
from training import config as config_module
from training.config import (
    AugmentConfig,
    ClipConfig,
    DataConfig,
    LoopConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)

GOLDEN = Path(__file__).parent / "golden"
DATA = DataConfig(root=Path("data"))


def _leaves(kind, prefix=""):
    for field in fields(kind):
        hint = get_type_hints(kind)[field.name]
        if is_dataclass(hint):
            yield from _leaves(hint, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (DataConfig, {"root": Path("x"), "num_views": 0}, r"--data\.num-views is 0\. Use 1 or more"),
        (DataConfig, {"root": Path("x"), "workers": -1}, r"--data\.workers is -1"),
        (DataConfig, {"root": Path("x"), "preload_gib": -1.0}, r"--data\.preload-gib is -1\.0"),
        (ClipConfig, {"frames": (1, 2)}, r"--clip\.frames is \(1, 2\)\. It goes with --clip\.preset custom"),
        (ClipConfig, {"preset": "custom"}, r"--clip\.frames is None"),
        (ClipConfig, {"preset": "custom", "frames": (1, 2)}, r"--clip\.num-frames is 16.*names 2 frames"),
        (ModelConfig, {"dropout": 1.0}, r"--model\.dropout is 1\.0"),
        (LossConfig, {"offence_severity_weights": (0.0, 1.0, 1.0, 1.0)}, r"--loss\.offence-severity-weights is \(0\.0"),
        (LossConfig, {"label_smoothing": -0.1}, r"--loss\.label-smoothing is -0\.1"),
        (LossConfig, {"focal_gamma": 2.0}, r"--loss\.focal-gamma is 2\.0\. cross-entropy has none"),
        (LossConfig, {"name": "focal", "focal_gamma": 0.0}, r"--loss\.focal-gamma is 0\.0\. Use a value above 0"),
        (LossConfig, {"effective_beta": 0.9}, r"--loss\.effective-beta is 0\.9\. No class weights are effective"),
        (LossConfig, {"action_weights": "effective", "effective_beta": 1.0}, r"--loss\.effective-beta is 1\.0"),
        (LossConfig, {"action_task_weight": 0.0}, r"--loss\.action-task-weight is 0\.0"),
        (OptimConfig, {"lr": 0.0}, r"--optim\.lr is 0\.0\. Nothing is learnt"),
        (OptimConfig, {"lr": float("nan")}, r"--optim\.lr is nan"),
        (OptimConfig, {"weight_decay": -1.0}, r"--optim\.weight-decay is -1\.0"),
        (OptimConfig, {"momentum": 0.9}, r"--optim\.momentum is 0\.9\. adamw has none"),
        (OptimConfig, {"name": "sgd", "momentum": 1.0}, r"--optim\.momentum is 1\.0"),
        (OptimConfig, {"max_grad_norm": -1.0}, r"--optim\.max-grad-norm is -1\.0"),
        (ScheduleConfig, {"name": "cosine", "step_size": 3}, r"--schedule\.step-size is 3\. cosine does not use it"),
        (ScheduleConfig, {"name": "constant", "gamma": 0.5}, r"--schedule\.gamma None"),
        (ScheduleConfig, {"name": "step", "min_lr": 0.1}, r"--schedule\.min-lr is 0\.1\. step does not use it"),
        (ScheduleConfig, {"name": "step", "step_size": 0}, r"--schedule\.step-size is 0"),
        (ScheduleConfig, {"name": "step", "gamma": 1.0}, r"--schedule\.gamma is 1\.0"),
        (ScheduleConfig, {"name": "plateau", "patience": 0}, r"--schedule\.patience is 0"),
        (ScheduleConfig, {"name": "plateau", "warmup_epochs": 1}, r"--schedule\.warmup-epochs is 1.*plateau"),
        (LoopConfig, {"epochs": 0}, r"--loop\.epochs is 0"),
        (LoopConfig, {"batch_size": 0}, r"--loop\.batch-size is 0"),
        (LoopConfig, {"patience": -1}, r"--loop\.patience is -1"),
        (TrainConfig, {"data": DATA, "seed": -1}, r"--seed is -1"),
        (TrainConfig, {"data": DATA, "weights": ""}, r"--weights is ''"),
        (
            TrainConfig,
            {"data": DataConfig(root=Path("x"), num_views=6)},
            r"--data\.num-views is 6.*--clip\.max-views 5",
        ),
        (
            TrainConfig,
            {"data": DATA, "loop": LoopConfig(epochs=3), "schedule": ScheduleConfig(warmup_epochs=3)},
            r"--schedule\.warmup-epochs is 3\. There are --loop\.epochs 3",
        ),
        (
            TrainConfig,
            {"data": DATA, "schedule": ScheduleConfig(name="cosine", min_lr=0.1)},
            r"--schedule\.min-lr is 0\.1\. Use less than --optim\.lr 0\.0001",
        ),
        (
            TrainConfig,
            {"data": DATA, "device": "cpu", "loop": LoopConfig(amp="fp16")},
            r"--loop\.amp is 'fp16'\. It needs a GPU; use bf16 or none",
        ),
    ],
)
def test_nonsense_is_refused_with_the_flag_the_value_and_the_cure(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind(**settings)


def test_a_clip_that_contradicts_itself_is_refused_before_training():
    with pytest.raises(ClipSpecError, match="vars-2023 yields 16 frames, not 8"):
        ClipConfig(preset="vars-2023", num_frames=8)
    with pytest.raises(ClipSpecError, match="cannot pick 51 frames"):
        ClipConfig(num_frames=51)
    with pytest.raises(ClipSpecError, match="run backwards"):
        ClipConfig(preset="custom", num_frames=2, frames=(7, 3))


def test_the_clip_settings_become_the_clip_specification():
    assert ClipConfig().spec() == preset("two-second")
    assert ClipConfig(preset="vars-2023").spec() == preset("vars-2023")
    small = ClipConfig(num_frames=8, size_px=112, resize="center_crop", max_views=3).spec(mean=(0.5, 0.5, 0.5))
    assert small == preset(
        num_frames=8, size_px=112, short_side_px=128, resize="center_crop", max_views=3, mean=(0.5, 0.5, 0.5)
    )
    custom = ClipConfig(preset="custom", num_frames=3, frames=(10, 20, 20)).spec()
    assert (custom.window, custom.frame_indices, custom.resize) == ((10, 21), (10, 20, 20), "squash")


def test_the_config_as_json_holds_every_setting_in_plain_types():
    document = json.loads(json.dumps(TrainConfig(data=DATA, loss=LossConfig(action_weights=(1.0,) * 8)).to_json()))
    assert document["data"]["root"] == "data"
    assert document["loss"]["action_weights"] == [1.0] * 8
    assert document["output"] is None
    for name in _leaves(TrainConfig):
        group = document
        for key in name.split("."):
            assert key in group
            group = group[key]


def test_every_setting_is_read_by_the_code_that_trains(repo_root):
    own = Path(config_module.__file__).name
    code = "\n".join(path.read_text() for path in (repo_root / "training").glob("*.py") if path.name != own)
    # Some are read through a method of their group; the tests of these look at each setting's effect.
    through = {"optim.momentum": "sgd_momentum", "loss.action_weights": "weights"}
    through |= {"loss.offence_severity_weights": "weights", "loss.focal_gamma": "gamma", "loss.effective_beta": "beta"}
    through |= {f"loss.{head}_task_weight": "task_weight" for head in ("action", "offence_severity")}
    through |= {f"clip.{field.name}": "clip.spec" for field in fields(ClipConfig)}
    through |= {f"augment.{field.name}": "augment.resolved" for field in fields(AugmentConfig)}
    names = [(name, through.get(name, name.split(".")[-1])) for name in _leaves(TrainConfig)]
    assert not [name for name, attribute in names if not re.search(rf"\.{re.escape(attribute)}\b", code)]


@pytest.mark.parametrize(
    ("module", "golden"),
    [
        ("training", "help.txt"),
        ("training.evaluate", "evaluate_help.txt"),
        ("training.calibrate", "calibrate_help.txt"),
        ("training.compare", "compare_help.txt"),
        ("training.sweep", "sweep_help.txt"),
        ("training.download", "download_help.txt"),
        ("training.legacy", "legacy_help.txt"),
        ("training.cache", "cache_help.txt"),
        ("training.preview", "preview_help.txt"),
    ],
)
def test_the_help_is_the_golden_one(repo_root, module, golden):
    # After a change on purpose: COLUMNS=110 python -m training --help > tests/training/golden/help.txt
    environment = {**os.environ, "COLUMNS": "110", "PYTHONPATH": str(repo_root), "NO_COLOR": "1"}
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines() == (GOLDEN / golden).read_text().splitlines()


def test_every_flag_is_explained():
    text = (GOLDEN / "help.txt").read_text()
    for name in _leaves(TrainConfig):
        flag = "--" + name.replace("_", "-")
        assert re.search(rf"{re.escape(flag)}\b[^\n]*\n│ +[A-Za-z]", text), flag
