"""Comparing runs."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from mvfoul.errors import ConfigError
from training.compare import CompareConfig, main, names
from training.history import read_run


def _row(score, *, loss=1.0, accuracy=0.5, **more):
    heads = {
        f"valid/{h}/{k}": accuracy for h in ("action", "offence_severity") for k in ("accuracy", "balanced_accuracy")
    }
    return {"valid/score": score, "valid/loss": loss, "train/loss": loss, "lr": 0.1, "seconds": 60.0, **heads, **more}


def _run(folder, rows, *, epochs=3, patience=0, select="score", lr=0.1, **settings):
    folder.mkdir(parents=True)
    config = {
        "output": str(folder),
        "loop": {"epochs": epochs, "patience": patience, "select": select},
        "optim": {"lr": lr},
    }
    (folder / "config.json").write_text(json.dumps({"config": {**config, **settings}}))
    lines = [json.dumps({"epoch": number, **row}) + "\n" for number, row in enumerate(rows, start=1)]
    (folder / "history.jsonl").write_text("".join(lines))
    return folder


def _main(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, args)])
    return main()


def test_the_better_run_is_above_and_what_differs_is_listed(tmp_path, monkeypatch, capsys):
    worse = _run(tmp_path / "worse", [_row(0.2), _row(0.3), _row(0.25)], seed=0)
    better = _run(tmp_path / "better", [_row(0.4, **{"system/clips_per_second": 12.0})] * 3, lr=0.01, seed=0)
    assert _main(monkeypatch, worse, better, "--output", tmp_path / "x.png") == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in out[1:3]] == [["better", "1", "3/3", "40.0"], ["worse", "2", "3/3", "30.0"]]
    assert out[1].split()[-3:] == ["3.0", "min", "12.0"]
    assert [line.split() for line in out if line.startswith("--")] == [["--optim.lr", "0.1", "0.01"]]
    assert imread(tmp_path / "x.png").shape[0] > 400


def test_each_run_is_a_line_of_the_picture(tmp_path, monkeypatch):
    for name, score in (("a", 0.1), ("b", 0.9)):
        _run(tmp_path / name, [_row(score)] * 2)
    _main(monkeypatch, tmp_path / "a", "--output", tmp_path / "one.png")
    _main(monkeypatch, tmp_path / "a", tmp_path / "b", "--output", tmp_path / "two.png")
    assert not np.array_equal(imread(tmp_path / "one.png"), imread(tmp_path / "two.png"))


@pytest.mark.parametrize(("select", "best"), [("score", 1), ("accuracy", 2), ("loss", 3)])
def test_the_best_epoch_is_what_the_run_selects_by(tmp_path, select, best):
    rows = [_row(0.9, loss=3, accuracy=0.1), _row(0.5, loss=2, accuracy=0.8), _row(0.1, loss=1, accuracy=0.2)]
    assert read_run(_run(tmp_path / "run", rows, select=select)).best_epoch == best


@pytest.mark.parametrize(
    ("count", "patience", "state"), [(3, 0, "done"), (2, 0, "unfinished"), (2, 1, "early"), (2, 2, "unfinished")]
)
def test_a_run_in_progress_is_told_from_one_that_stopped_early(tmp_path, count, patience, state):
    rows = [_row(0.9 - epoch / 10) for epoch in range(count)]
    assert read_run(_run(tmp_path / "run", rows, patience=patience)).state == state


def test_a_real_run_can_be_compared_and_without_its_history_too(tiny_run, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run, copy)
    (copy / "history.jsonl").unlink()
    assert read_run(copy).rows == read_run(tiny_run).rows
    assert _main(monkeypatch, tiny_run, copy, "--output", tmp_path / "x.png") == 0
    assert "the settings are the same" in capsys.readouterr().out


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    run = _run(tmp_path / "run", [_row(0.5)])
    with (run / "history.jsonl").open("a") as stream:
        stream.write('{"epoch": 2, "valid/sc')
    assert len(read_run(run).rows) == 1


def test_what_is_no_run_is_refused_with_the_reason(tmp_path, monkeypatch, capsys):
    assert _main(monkeypatch, tmp_path / "none") == 2
    assert "is no folder of a run: it has no config.json" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no finished epoch yet"):
        read_run(_run(tmp_path / "empty", []))
    run = _run(tmp_path / "gap", [_row(0.5), _row(0.6), _row(0.7)])
    lines = (run / "history.jsonl").read_text().splitlines(keepends=True)
    (run / "history.jsonl").write_text(lines[0] + lines[2] + lines[2])
    with pytest.raises(ConfigError, match="line 2, is of epoch 3"):
        read_run(run)
    (run / "history.jsonl").write_text("{\n" + lines[1])
    with pytest.raises(ConfigError, match="line 1, is damaged"):
        read_run(run)
    (run / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config\.json is damaged"):
        read_run(run)


def test_flags_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="Name the folders"):
        CompareConfig(runs=())
    with pytest.raises(ConfigError, match="Name each run once"):
        CompareConfig(runs=(tmp_path, tmp_path / "x" / ".."))
    with pytest.raises(ConfigError, match=r"ends in \.png"):
        CompareConfig(runs=(tmp_path,), output=tmp_path / "x.jpg")


def test_runs_are_called_by_the_shortest_names_that_differ(tmp_path):
    records = [read_run(_run(tmp_path / name / "seed-0", [_row(0.5)])) for name in ("a", "b")]
    assert names(records) == ["a/seed-0", "b/seed-0"]
    assert names(records[:1]) == ["seed-0"]
