"""The examples of docs/serving.md are run as they stand, against a real server."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mvfoul.labels import ACTION_CLASSES
from serving.door import Door, Shown


def page(repo_root):
    return (repo_root / "docs" / "serving.md").read_text()


@pytest.fixture(scope="module")
def example(repo_root, server):
    """`example("bash", "curl --silent")`: the block of that language with these words, with the server's addresses."""
    text = page(repo_root)

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
    stand_in = tmp_path / "bin" / "grpcurl"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("grpcurl.py")} "$@"\n')
    stand_in.chmod(0o755)
    path = f"{stand_in.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(repo_root)}
    return lambda command: (
        subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
        ).stdout
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_example_prints_a_decision(example, run):
    decision = json.loads(run(["bash", "-c", example("bash", "curl --silent")]))
    assert decision["action"]["label"] in ACTION_CLASSES
    assert len(decision["view_weights"]) == 2


def test_the_client_example_prints_a_decision(example, run):
    assert "view weights      clip_0.mp4 " in run(["bash", "-c", example("bash", "serving.client")])


def test_the_python_example_prints_a_decision(example, run):
    printed = run([sys.executable, "-c", example("python", "FoulClient")])
    assert any(label in printed for label in ACTION_CLASSES)


def test_the_grpcurl_example_gets_a_decision(example, run):
    answer = json.loads(run(["bash", "-c", example("bash", "grpcurl")]))
    (output,) = answer["outputs"]
    data = output["contents"]["bytesContents"] if "contents" in output else answer["rawOutputContents"]
    decision = json.loads(base64.b64decode(data[0])[0 if "contents" in output else 4 :])
    assert (decision["id"], len(decision["view_weights"])) == ("from grpcurl", 2)


def test_the_bulk_example_writes_predictions(example, run, tmp_path):
    (tmp_path / "data/test/action_0").mkdir(parents=True)
    (tmp_path / "clip_0.mp4").rename(tmp_path / "data/test/action_0/clip_0.mp4")
    document = {"Actions": {"0": {"Clips": [{"Url": "test/action_0/clip_0"}]}}}
    (tmp_path / "data/test/annotations.json").write_text(json.dumps(document))
    assert "1 actions, 1 predictions" in run(["bash", "-c", example("bash", "serving.bulk")])


def test_the_token_file_example_is_one(repo_root, tmp_path):
    blocks = [block for _, block in re.findall(r"```(\w*)\n(.*?)```", page(repo_root), re.DOTALL)]
    (block,) = [block for block in blocks if "max_in_flight" in block]
    (tmp_path / "tokens").write_text(block)
    client = Door(tmp_path / "tokens").client(Shown(authorization=f"Bearer {block.split()[3]}"))
    assert (client.name, client.max_in_flight) == ("bulk", 4)


def test_every_flag_and_metric_on_the_page_exists(repo_root, rest):
    golden = Path(__file__).parent / "golden"
    helps = "".join(path.read_text() for path in golden.glob("*help.txt"))
    others = {"--silent", "--data-binary", "--trace-config", "--evaluation"}  # of curl, Triton and the export
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page(repo_root))) - others
    assert not [flag for flag in flags if f"{flag} " not in helps and f"{flag}," not in helps]
    text = rest.get("/metrics").text
    scraped = re.findall(r"^# TYPE (mvfoul_\w+) ", text, re.MULTILINE)
    names = set(re.findall(r"`(mvfoul_\w+)", page(repo_root).split("## Metrics")[1]))
    assert names == {name for name in scraped if not name.endswith("_created")}
