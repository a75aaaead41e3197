"""The launcher that people use: one machine, and two of them in network namespaces of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress

import pytest

from training.checkpoint import load_checkpoint
from training.folder import LAST

IP = shutil.which("ip")
FLAGS = ["--recipe", "cpu-demo", "--clip.num-frames", "2", "--optim.name", "sgd", "--optim.momentum", "0"]
FLAGS += ["--data.workers", "1"]


def _command(launcher, root, output, *more):
    flags = ["-m", "training", *FLAGS, "--data.root", root, "--output", output, *more]
    return [sys.executable, "-m", "torch.distributed.run", *launcher, *map(str, flags)]


def _local(launcher, number):
    """Say which machine hosts the rendezvous: both have the name of this one, by which torchrun would tell."""
    return [*launcher, "--local-addr", f"10.77.0.{number}", "--rdzv-conf", f"is_host={number == 1},join_timeout=60"]


def _start(command, repo_root, **more):
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "OMP_NUM_THREADS": "1", **more}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)


def _end(process):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def test_torchrun_trains_and_hands_sigterm_on_and_the_run_goes_on(tiny_dataset, tmp_path, repo_root):
    output = tmp_path / "run"
    launcher = ["--standalone", "--nproc-per-node", "2"]
    first = _start(_command(launcher, tiny_dataset, output, "--loop.epochs", "1000"), repo_root)
    try:
        while not (output / LAST).exists():
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.1)
        sent = time.monotonic()
        first.send_signal(signal.SIGTERM)
        out, err = first.communicate(timeout=60)
        took = time.monotonic() - sent
    finally:
        _end(first)
    assert first.returncode != 0
    assert "nothing is lost. Go on with the same command" in out, err
    assert "is killed by signal" not in err  # the loader's workers got the signal too
    last = load_checkpoint(output / LAST)
    print(f"stopped after {took:.1f} s with exit code {first.returncode}")
    second = _start(
        _command(launcher, tiny_dataset, output, "--resume", "--loop.epochs", str(last.epoch + 2)), repo_root
    )
    try:
        out, err = second.communicate(timeout=120)
    finally:
        _end(second)
    assert second.returncode == 0, err
    assert load_checkpoint(output / LAST).world["size"] == 2


@pytest.fixture
def two_machines():
    """The prefixes of commands that run in two network namespaces, 10.77.0.1 and 10.77.0.2, joined by a cable."""
    if IP is None or os.geteuid() != 0:
        pytest.skip("needs root and the command ip, for network namespaces")
    tag = uuid.uuid4().hex[:6]
    spaces = [f"mvf{tag}{number}" for number in (1, 2)]
    cables = [f"mv{tag}{number}" for number in (1, 2)]

    def ip(*args):
        return subprocess.run([IP, *args], capture_output=True, text=True, check=True)

    try:
        try:
            for space in spaces:
                ip("netns", "add", space)
            ip("link", "add", cables[0], "netns", spaces[0], "type", "veth", "peer", cables[1], "netns", spaces[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        for number, (space, cable) in enumerate(zip(spaces, cables, strict=True), start=1):
            ip("-n", space, "addr", "add", f"10.77.0.{number}/24", "dev", cable)
            ip("-n", space, "link", "set", cable, "up")
            ip("-n", space, "link", "set", "lo", "up")
        yield [([IP, "netns", "exec", space], cable) for space, cable in zip(spaces, cables, strict=True)]
    finally:
        for space in spaces:
            subprocess.run([IP, "netns", "delete", space], capture_output=True, check=False)


def test_two_machines_train_together_and_only_the_first_needs_the_folder(
    two_machines, tiny_dataset, tmp_path, repo_root
):
    launcher = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", "10.77.0.1:29400", "--rdzv-id", "test"]
    nodes = []
    try:
        for number, (prefix, cable) in enumerate(two_machines, start=1):
            local = _local(launcher, number)
            command = [*prefix, *_command(local, tiny_dataset, tmp_path / f"run{number}", "--loop.epochs", "2")]
            nodes.append(_start(command, repo_root, GLOO_SOCKET_IFNAME=cable))
        ends = [node.communicate(timeout=200) for node in nodes]
    finally:
        for node in nodes:
            _end(node)
    assert [node.returncode for node in nodes] == [0, 0], ends
    written = [path for path in (tmp_path / "run1" / LAST, tmp_path / "run2" / LAST) if path.exists()]
    assert len(written) == 1  # rank 0 may be on either machine
    last = load_checkpoint(written[0])
    assert (last.epoch, last.world["size"]) == (2, 2)
    assert sorted("2/2" in out for out, _ in ends) == [False, True]


def test_a_machine_that_fails_ends_the_other_one_with_its_sentence(two_machines, tiny_dataset, tmp_path, repo_root):
    launcher = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", "10.77.0.1:29400", "--rdzv-id", "test"]
    nodes = []
    try:
        for number, (prefix, cable) in enumerate(two_machines, start=1):
            local = _local(launcher, number)
            root = tiny_dataset if number == 1 else tmp_path / "nothing"
            command = [*prefix, *_command(local, root, tmp_path / "run", "--loop.epochs", "100000")]
            nodes.append(_start(command, repo_root, GLOO_SOCKET_IFNAME=cable))
        ends = [node.communicate(timeout=200) for node in nodes]
    finally:
        for node in nodes:
            _end(node)
    assert all(node.returncode for node in nodes)
    assert any("nothing" in err and "error: " in err for _, err in ends), ends
