"""The whole path in one go, as `make demo` runs it, on a data set too small to learn from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TINY_DATA = "--actions 12 --splits.train 0.5 --splits.valid 0.25 --splits.test 0.25 --filtered-fraction 0"
TINY_TRAINING = "--loop.epochs 2 --loop.batch-size 3"


def _demo(repo_root: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "COLUMNS": "120"}
    command = [sys.executable, str(repo_root / "scripts" / "demo.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=repo_root, check=False)


@pytest.fixture(scope="module")
def demo(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, _demo(repo_root, "--out", str(out), "--synthetic", TINY_DATA, "--training", TINY_TRAINING)


def test_the_demo_goes_from_nothing_to_decisions(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = demo
    assert done.returncode == 0, done.stdout + done.stderr
    for path in ("run/best.pth.tar", "run/training_history.png", "evaluation/metrics.json", "artifact/manifest.json"):
        assert (out / path).is_file(), path
    assert done.stdout.count("offence severity  ") == 3
    assert "server stopped" in done.stdout


def test_the_demo_shows_what_is_true_beside_each_decision(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = demo
    actions = json.loads((out / "data" / "test" / "annotations.json").read_text())["Actions"]
    assert f"annotated: {actions['0']['Action class']}" in done.stdout


def test_the_published_artifact_passed_its_parity(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    manifest = json.loads((demo[0] / "artifact" / "manifest.json").read_text())
    assert manifest["parity"]["passed"] is True
    assert manifest["origin"]["backbone"] == "mc3_18"


def test_the_demo_classifies_the_real_sample_with_a_given_checkpoint(
    repo_root: Path,
    demo: tuple[Path, subprocess.CompletedProcess[str]],
    sample_root: Path,
    tmp_path: Path,
) -> None:
    checkpoint = demo[0] / "run" / "best.pth.tar"
    done = _demo(repo_root, "--out", str(tmp_path / "out"), "--data", str(sample_root), "--ckpt", str(checkpoint))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "annotated: Standing tackling" in done.stdout


def test_a_data_set_without_a_train_split_asks_for_a_checkpoint(
    repo_root: Path, demo: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    held_out = tmp_path / "held-out"
    held_out.mkdir()
    (held_out / "test").symlink_to(demo[0] / "data" / "test", target_is_directory=True)
    done = _demo(repo_root, "--out", str(tmp_path / "out"), "--data", str(held_out))
    assert done.returncode == 1
    assert "has no split train and valid" in done.stderr
    assert "CKPT=" in done.stderr
