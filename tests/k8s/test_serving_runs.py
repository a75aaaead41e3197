"""The service's own commands, taken out of the YAML: repository job, Triton and transformer, to a decision."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pytest
import tyro

from mvfoul.errors import ConfigError
from serving.client import FoulClient
from serving.config import ServeConfig
from serving.local_triton import LocalTriton, TritonConfig, find_installation
from tests.k8s import manifests

LOOPBACK = "127.0.0.1"
# What a machine without TensorRT cannot have, and what a test's size is.
SMALL = ["--encoder=python", "--threads=1", "--max-batch=8"]
LOCAL = ("http-port", "grpc-port", "metrics-port", "model-repository", "model-control-mode", "repository-poll-secs")
"""Flags of Triton that the local one sets by itself."""


def _command(container, volume, **changed):
    """Return the container's command with /artifacts below `volume` and some flags changed."""
    words = [
        re.sub(r"(^|=)/artifacts(?=/)", rf"\1{volume}", word) for word in [*container["command"], *container["args"]]
    ]
    for flag, value in changed.items():
        assert any(word.startswith(f"--{flag}=") for word in words), flag
        words = [f"--{flag}={value}" if word.startswith(f"--{flag}=") else word for word in words]
    assert words[0] == "python"
    return [sys.executable, *words[1:]]


@pytest.fixture
def volume(tiny_artifact, tmp_path):
    (tmp_path / "mvfoul").symlink_to(tiny_artifact)
    return tmp_path


@pytest.fixture
def environment(repo_root):
    return {**os.environ, "PYTHONPATH": str(repo_root)}


@pytest.fixture
def triton(volume, environment):
    try:
        find_installation()
    except ConfigError as error:
        pytest.skip(str(error))
    (writer,) = manifests.document("repository-job.yaml", "Job")["spec"]["template"]["spec"]["containers"]
    command = _command(writer, volume)
    (repository,) = (word.partition("=")[2] for word in command if word.startswith("--output="))
    subprocess.run([*command, *SMALL], env=environment, check=True, timeout=120)
    (container,) = manifests.document("base/serving.yaml", "ServingRuntime")["spec"]["containers"]
    args = {word.partition("=")[0].removeprefix("--"): word for word in container["args"]}
    more = tuple(word for name, word in args.items() if name not in LOCAL)
    poll_s = int(args["repository-poll-secs"].partition("=")[2])
    config = TritonConfig(
        repository=Path(repository), control="poll", poll_s=poll_s, flags=more, log=volume / "triton.log"
    )
    with LocalTriton(config) as running:
        assert _status(running.http, container["readinessProbe"]["httpGet"]["path"]) == 200
        yield running


def _status(address, path):
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return answer.status
    except URLError as error:
        return getattr(error, "code", 0)


def _decide(command, environment, volume, probe, clip):
    """Start the server, wait as the probe does, ask for a decision, and stop as the kubelet does."""
    with (volume / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = server.stdout.readline()
        assert line.startswith("READY "), (volume / "server.log").read_text()
        address = dict(word.split("=", 1) for word in line.split()[1:])
        end = time.monotonic() + 60
        while _status(address["http"], probe["path"]) != 200:
            assert time.monotonic() < end, (volume / "server.log").read_text()
            time.sleep(0.2)
        with FoulClient(address["grpc"]) as client:
            decision = client.classify([clip, clip])
        server.send_signal(signal.SIGTERM)
        assert server.wait(tyro.cli(ServeConfig, args=command[3:]).grace_s) == 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    return decision


def test_the_commands_of_the_service_lead_from_an_artifact_to_a_decision(triton, volume, environment, numbered_clip):
    (server,) = manifests.document("base/serving.yaml", "InferenceService")["spec"]["transformer"]["containers"]
    flags = {"predictor_host": triton.grpc, "http_port": 0, "grpc-port": 0, "host": LOOPBACK}
    clip = numbered_clip(frames=126).read_bytes()
    probe = server["readinessProbe"]["httpGet"]
    decision = _decide(_command(server, volume, **flags), environment, volume, probe, clip)
    assert len(decision.view_weights) == 2


def test_the_command_of_the_dev_overlay_needs_no_triton(volume, environment, numbered_clip):
    (server,) = manifests.document("overlays/dev/server.yaml", "Deployment")["spec"]["template"]["spec"]["containers"]
    command = [*_command(server, volume, host=LOOPBACK), "--http-port=0", "--grpc-port=0"]
    clip = numbered_clip(frames=126).read_bytes()
    decision = _decide(command, environment, volume, server["readinessProbe"]["httpGet"], clip)
    assert len(decision.view_weights) == 2
