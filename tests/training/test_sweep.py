"""The same training with several seeds."""

from __future__ import annotations

import json

import pytest
import torch
from matplotlib.image import imread

from mvfoul.errors import ConfigError
from training.history import read_run
from training.recipes import parse_config as parse_training
from training.run import train
from training.sweep import _T, FIGURES, parse_config, run_sweep, spread


def _flags(root):
    return [
        *("--recipe", "cpu-demo", "--data.root", str(root), "--clip.num-frames", "2", "--model.aggregation", "max"),
        *("--loop.epochs", "1", "--schedule.name", "constant", "--schedule.warmup-epochs", "0"),
    ]


def test_a_sweep_trains_each_seed_goes_on_with_what_is_there_and_reports_a_failed_one(tiny_dataset, tmp_path, capfd):
    config = parse_config(["--seeds", "3", "--seed", "5", "--output", str(tmp_path), *_flags(tiny_dataset)])
    train(parse_training(config.command(5)[3:]))  # as an interrupted sweep leaves it
    (tmp_path / "seed-6").write_text("a file where a folder must be")
    assert run_sweep(config) == 1
    out, document = capfd.readouterr().out, json.loads((tmp_path / "sweep.json").read_text())
    assert "holds a finished run: nothing to do" in out
    assert "seed 6 failed with exit code 2; the others go on" in out
    assert list(document["seeds"]) == ["5", "7"]
    assert document["failed"] == {"6": {"exit_code": 2}}
    scores = [read_run(tmp_path / f"seed-{seed}").best["valid/score"] for seed in (5, 7)]
    wanted = spread(scores)
    assert document["figures"]["valid/score"] == pytest.approx(vars(wanted))
    assert list(document["figures"]) == list(FIGURES)
    assert f"{100 * wanted.mean:.1f}" in next(line for line in out.splitlines() if line.startswith("valid/score"))
    assert imread(tmp_path / "sweep.png").shape[0] > 200


def test_the_interval_is_that_of_students_t():
    found = spread([1.0, 2.0, 3.0])
    assert (found.mean, found.std) == (2.0, 1.0)
    assert found.high - found.mean == pytest.approx(4.303 / 3**0.5)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_the_quantiles_leave_one_in_forty_above_them():
    # The density of Student's t, integrated from 0 to the quantile.
    for freedom, quantile in enumerate(_T, start=1):
        points = torch.linspace(0, quantile, 20001, dtype=torch.float64)
        density = torch.distributions.StudentT(torch.tensor(float(freedom), dtype=torch.float64)).log_prob(points).exp()
        assert 0.5 + torch.trapezoid(density, points).item() == pytest.approx(0.975, abs=4e-5), freedom


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--seeds", "1"], "--seeds is 1"),
        (["--seeds", "99"], "Use 2 to 30"),
        (["--resume"], "--resume is 'given'"),
        (["--overwrite"], "--overwrite is 'given'"),
    ],
)
def test_flags_are_refused_before_anything_is_trained(args, message, tiny_dataset, tmp_path):
    with pytest.raises(ConfigError, match=message):
        parse_config(["--output", str(tmp_path), *_flags(tiny_dataset), *args])
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_flag_ends_the_sweep_before_it_begins(tiny_dataset, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_config(["--output", str(tmp_path), *_flags(tiny_dataset), "--optim.lrr", "1"])
    assert "--optim.lrr" in capsys.readouterr().err
