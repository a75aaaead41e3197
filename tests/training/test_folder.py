"""The folder of a run: which checkpoints stay, and what happens where it cannot be written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mvfoul.errors import AnnotationError, ConfigError
from training.checkpoint import load_checkpoint
from training.config import SaveConfig
from training.folder import BEST, CONFIG, LAST, kept_epochs
from training.run import train

LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**24, 2**24))\n"


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, set()),
        ({"every_epochs": 2}, {2, 4, 6}),
        ({"keep_best": 1}, {3}),
        ({"keep_best": 2}, {3, 5}),  # of equal ones the earlier
        ({"keep_best": 3, "every_epochs": 5}, {3, 5, 6}),
        ({"keep_best": 9}, {1, 2, 3, 4, 5, 6}),
    ],
)
def test_which_epochs_keep_their_own_checkpoint(settings, kept):
    assert kept_epochs([0.1, 0.2, 0.9, 0.1, 0.5, 0.5], SaveConfig(**settings)) == kept


def test_a_run_keeps_the_epochs_it_was_asked_to_keep_and_links_what_is_the_same(tiny_config, tmp_path):
    config = tiny_config(output=tmp_path, loop={"epochs": 3}, save={"every_epochs": 2, "keep_best": 1})
    result = train(config)
    names = {f"epoch-{epoch:04d}.pth.tar" for epoch in (2, result.best_epoch)}
    assert {path.name for path in tmp_path.glob("epoch-*")} == names
    best = tmp_path / f"epoch-{result.best_epoch:04d}.pth.tar"
    assert best.samefile(tmp_path / BEST)
    assert load_checkpoint(best).epoch == result.best_epoch


def test_a_run_that_replaces_another_removes_all_its_checkpoints(tiny_config, tmp_path):
    train(tiny_config(output=tmp_path, loop={"epochs": 2}, save={"every_epochs": 1}))
    with pytest.raises(ConfigError, match=r"holds best.*epoch-0002\.pth\.tar.*--resume.*--overwrite"):
        train(tiny_config(output=tmp_path, loop={"epochs": 1}))
    train(tiny_config(output=tmp_path, loop={"epochs": 1}, overwrite=True))
    assert not list(tmp_path.glob("epoch-*"))


def test_the_settings_tell_the_revision_the_data_and_every_start(tiny_config, tmp_path):
    train(tiny_config(output=tmp_path, loop={"epochs": 1}))
    train(tiny_config(output=tmp_path, loop={"epochs": 2}, resume=True))
    document = json.loads((tmp_path / CONFIG).read_text())
    assert [(start["epoch"], start["step"]) for start in document["starts"]] == [(0, 0), (1, 0)]
    assert document["code"] == document["starts"][1]["code"] == load_checkpoint(tmp_path / LAST).code
    assert document["config"]["loop"]["epochs"] == 2
    assert document["data"]["train"]["actions"] == 16


def test_a_full_disk_ends_the_run_with_the_cure_and_leaves_what_was_saved(programs, tiny_dataset, tmp_path):
    flags = ["--recipe", "cpu-demo", "--data.root", tiny_dataset, "--output", tmp_path / "run"]
    flags += ["--clip.num-frames", "2", "--loop.epochs", "3"]
    # A limit of 16 MB per file stands for the disk; a checkpoint is larger.
    code = LIMITED + "import training.__main__ as m, sys; sys.exit(m.main())"
    program = programs.start(flags, code=code)
    assert program.wait() == 2
    assert re.search(
        r"cannot write .*last\.pth\.tar: .*File too large.*Free space.*was saved before is whole", program.err
    )
    assert "Traceback" not in program.err
    assert [path.name for path in (tmp_path / "run").glob("*.pth.tar*")] == []
    assert [path.name for path in (tmp_path / "run").glob(".*.tmp")] == []


def test_a_folder_that_cannot_be_written_is_refused(tiny_config):
    with pytest.raises(ConfigError, match=r"cannot be written: .*Choose another folder"):
        train(tiny_config(output=Path("/proc/self/task")))


def test_a_split_without_one_usable_action_is_refused_with_the_reason(tiny_config, tiny_dataset, write_split, action):
    unlabelled = {"7": action("7", {"clip_0": b""}, **{"Action class": ""})}
    root = write_split(unlabelled, "valid")
    (root / "train").symlink_to(tiny_dataset / "train")
    with pytest.raises(AnnotationError, match="valid"):
        train(tiny_config(root=root, data={"root": root}, output=root / "run"))


def test_only_weights_are_ever_loaded(repo_root):
    calls = []
    for package in ("training", "export", "serving", "benchmarks"):
        for path in (repo_root / package).rglob("*.py"):
            text = path.read_text()
            calls += [(path.name, text[m.start() : m.start() + 200]) for m in re.finditer(r"torch\.load\(", text)]
    assert calls
    assert not [call for call in calls if "weights_only=True" not in call[1]]
