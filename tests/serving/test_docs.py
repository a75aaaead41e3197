"""The examples of docs/serving.md are run as they stand, against a real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mvfoul.labels import ACTION_CLASSES


@pytest.fixture(scope="module")
def example(repo_root, server):
    """`example("bash", "curl")`: the block of that language with that word in it, with the server's addresses."""
    text = (repo_root / "docs" / "serving.md").read_text()

    def find(language, word):
        blocks = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
        (block,) = [block for block in blocks if word in block]
        http = server.http.removeprefix("http://")
        return block.replace("127.0.0.1:8080", http).replace("127.0.0.1:8081", server.grpc)

    return find


@pytest.fixture
def run(repo_root, clips, tmp_path):
    """Run a command in a folder with two clips."""
    for v in range(2):
        (tmp_path / f"clip_{v}.mp4").write_bytes(clips[v])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(repo_root)}
    return lambda command: (
        subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
        ).stdout
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_example_prints_a_decision(example, run):
    decision = json.loads(run(["bash", "-c", example("bash", "curl")]))
    assert decision["action"]["label"] in ACTION_CLASSES
    assert len(decision["view_weights"]) == 2


def test_the_client_example_prints_a_decision(example, run):
    assert "view weights      clip_0.mp4 " in run(["bash", "-c", example("bash", "serving.client")])


def test_the_python_example_prints_a_decision(example, run):
    printed = run([sys.executable, "-c", example("python", "FoulClient")])
    assert any(label in printed for label in ACTION_CLASSES)
