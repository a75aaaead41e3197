"""`make live-demo`: streams, server and console together, triggered by themselves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.live.audit import verify


def _demo(repo_root: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repo_root / "scripts" / "live_demo.py"), "--http-port", "0", *flags]
    environment = {**os.environ, "PYTHONPATH": str(repo_root)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


def test_the_demo_prints_decisions_beside_what_is_true_and_ends(
    repo_root: Path, tiny_artifact: Path, tmp_path: Path, numbered_clip: Callable[..., Path]
) -> None:
    folder = tmp_path / "data" / "test" / "action_7"
    folder.mkdir(parents=True)
    for number, size in enumerate([(128, 96), (160, 96), (128, 64)]):
        shutil.copy(numbered_clip(frames=126, gop=12, size=size), folder / f"clip_{number}.mp4")
    fields: dict[str, Any] = {"Action class": "Holding", "Offence": "Offence", "Severity": "3.0"}
    (folder.parent / "annotations.json").write_text(json.dumps({"Actions": {"7": fields}}))
    where = ("--data", str(tmp_path / "data"), "--artifact", str(tiny_artifact), "--audit", str(tmp_path / "audit"))
    done = _demo(repo_root, *where, "--decisions", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "annotated: Holding, Offence, 3.0" in done.stdout
    assert "ms after the trigger, 3 views" in done.stdout
    assert "1 decisions" in done.stdout
    assert verify(tmp_path / "audit").faults == ()


def test_without_an_artifact_the_demo_says_how_to_make_one(repo_root: Path, tmp_path: Path) -> None:
    done = _demo(repo_root, "--artifact", str(tmp_path / "none"))
    assert (done.returncode, "make demo" in done.stderr) == (2, True)
