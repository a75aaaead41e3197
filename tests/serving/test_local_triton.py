"""The genuine Triton without a container: how it is installed, started and stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from mvfoul.errors import ConfigError, UnavailableError
from serving.local_triton import LocalTriton, TritonConfig, TritonPorts, find_installation


def gone(pid):
    return not Path(f"/proc/{pid}").exists()


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_command_says_where_it_listens_and_ends_on_sigterm(triton_repository, start_triton):
    assert start_triton  # skips where Triton is not installed
    command = [sys.executable, "-m", "serving.local_triton", "--repository", str(triton_repository)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        word, *pairs = process.stdout.readline().split()
        said = dict(pair.split("=", 1) for pair in pairs)
        assert (word, set(said)) == ("READY", {"http", "grpc", "metrics", "pid"})
        assert all(said[name].startswith("127.0.0.1:") for name in ("http", "grpc", "metrics"))
        with urllib.request.urlopen(f"http://{said['http']}/v2/models/mvfoul/ready", timeout=30) as answer:
            assert answer.status == 200
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert gone(said["pid"])


def is_server(pid):
    return b"tritonserver" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_who_stops_it_while_the_models_load_leaves_no_server_behind(triton_repository, start_triton, wait_until, stop):
    assert start_triton  # skips where Triton is not installed
    command = [sys.executable, "-m", "serving.local_triton", "--repository", str(triton_repository)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        wait_until(lambda: any(map(is_server, children(process.pid))), "tritonserver was started")
        (server,) = children(process.pid)
    finally:
        process.send_signal(stop)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "", "it was stopped before its models were ready"
    wait_until(lambda: gone(server), "tritonserver has ended")


def test_a_signal_in_the_middle_of_the_start_leaves_no_server_behind(triton_repository, start_triton, monkeypatch):
    assert start_triton  # skips where Triton is not installed
    started, start = [], LocalTriton._start

    def start_and_interrupt(self):
        started.append(start(self))
        os.kill(os.getpid(), signal.SIGINT)
        return started[0]

    monkeypatch.setattr(LocalTriton, "_start", start_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        LocalTriton(TritonConfig(repository=triton_repository))
    assert started[0].poll() == -signal.SIGKILL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_killed_triton_leaves_no_model_behind(start_triton, triton_repository, wait_until):
    with start_triton(triton_repository) as triton:
        models = children(triton.pid)
        assert len(models) == 2
        os.kill(models[0], signal.SIGSTOP)  # it cannot notice by itself
        triton.kill()
        wait_until(lambda: all(map(gone, models)), "the models' processes have ended")
        assert not triton.is_ready()


def test_a_start_that_fails_says_why(start_triton, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.pbtxt").write_text('backend: "python" nonsense')
    with pytest.raises(UnavailableError, match=r"(?s)tritonserver ended with 1.*failed to load all models"):
        start_triton(tmp_path)


def test_what_is_not_installed_is_refused_with_its_cure(monkeypatch, tmp_path):
    monkeypatch.setenv("MVFOUL_TRITON", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no Triton in .*scripts/triton\.sh"):
        find_installation()
    with pytest.raises(ConfigError, match=r"scripts/triton\.sh"):
        LocalTriton(TritonConfig(repository=tmp_path))


def test_another_triton_on_the_same_ports_is_not_taken_for_the_own_one(start_triton, tmp_path):
    with start_triton(tmp_path, control="poll") as triton:
        ports = TritonPorts(triton.ports.http, triton.ports.grpc, triton.ports.metrics)
        with pytest.raises(UnavailableError, match="tritonserver ended with 1"):
            start_triton(tmp_path, control="poll", ports=ports)
        assert triton.is_ready()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"poll_s": 0}, "--poll-s is 0"),
        ({"response_cache_mib": -1}, "--response-cache-mib is -1"),
        ({"load": ("mvfoul",)}, r"--load is \('mvfoul',\)"),
    ],
)
def test_a_senseless_flag_is_refused_by_name_and_value(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        TritonConfig(repository=tmp_path, **fields)


@pytest.mark.parametrize(
    ("interpreter", "reason"),
    [
        ("3.13 linux-x86_64 2.36 /lib", "its models need Python 3.11 or 3.12 with numpy 1, this is 3.13"),
        ("3.11 linux-aarch64 2.36 /lib", "the wheel is for linux-x86_64"),
        ("3.11 linux-x86_64 2.31 /lib", "the wheel needs glibc 2.35, this is 2.31"),
        ("3.11 linux-x86_64 2.36 -", "libpython3.11.so.1.0 is missing"),
    ],
)
def test_where_it_cannot_run_the_installer_says_so_and_leaves_nothing(repo_root, tmp_path, interpreter, reason):
    """With an interpreter that only says what it is."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\necho '{interpreter}'\n")
    python.chmod(0o755)
    done = subprocess.run(
        [str(repo_root / "scripts" / "triton.sh"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert f"Triton: not installed ({reason}" in done.stdout
    assert "tests are skipped" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_a_model_that_is_gone_has_no_metrics(start_triton, write_repository, wait_until, tmp_path):
    """The alert MvfoulTritonHasNoModel tells by that."""
    repository = tmp_path / "models"
    write_repository(repository)

    def counted(triton):
        with urllib.request.urlopen(f"http://{triton.metrics}/metrics", timeout=10) as answer:
            return 'nv_inference_request_success{model="mvfoul_encoder"' in answer.read().decode()

    with start_triton(repository, control="poll") as triton:
        assert counted(triton), "before the first request too"
        shutil.rmtree(repository / "mvfoul_encoder")
        wait_until(lambda: not counted(triton), "Triton has dropped its model")
