"""The train job's own command, taken out of the YAML, trains as two pods: two network namespaces joined by a cable."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.k8s import manifests
from training.checkpoint import load_checkpoint
from training.folder import LAST

IP = shutil.which("ip")
# What a tiny run needs; all else is the job's own.
SMALL = [
    "--recipe=cpu-demo",
    "--clip.num-frames=2",
    "--clip.size-px=32",
    "--data.workers=1",
    "--loop.batch-size=8",
    "--loop.epochs=1000",
]
JOB = manifests.document("train-job.yaml", "Job")
(CONTAINER,) = JOB["spec"]["template"]["spec"]["containers"]
IGNORED = JOB["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"]


@dataclass
class Pod:
    """One pod of the job: a network of its own, the other's name in /etc/hosts, volumes in `root`."""

    number: int
    space: str
    cable: str
    root: Path
    repo: Path
    starts: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self) -> None:
        """Run the container."""
        known = {"NODES": "2", "NAMESPACE": "vars", "JOB_COMPLETION_INDEX": str(self.number)}
        variables = manifests.environment(CONTAINER, **known)
        command = manifests.expanded([*CONTAINER["command"], *CONTAINER["args"]], variables)
        assert command[0] == "python"
        command = [sys.executable, *[self._here(argument) for argument in command[1:]], *SMALL]
        variables = {name: self._here(value) for name, value in variables.items()}
        own = {"PYTHONPATH": str(self.repo), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": self.cable}
        log = (self.root / f"log-{self.number}-{len(self.starts)}").open("w")
        with log:
            process = subprocess.Popen(
                [IP, "netns", "exec", self.space, *command],
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
                env={**os.environ, **variables, **own},
            )
        self.starts.append(process)

    def _here(self, argument: str) -> str:
        """Put volumes below `root`, and one process in the place of one per GPU."""
        if argument == "--nproc-per-node=gpu":
            return "--nproc-per-node=1"
        mounts = "|".join(mount["mountPath"] for mount in CONTAINER["volumeMounts"])
        return re.sub(rf"(^|=)({mounts})(?=/|$)", rf"\1{self.root}\2", argument)

    def end(self, number: int) -> None:
        """SIGTERM goes to the container's first process, as the kubelet sends it; SIGKILL to all, as a node dies."""
        if number == signal.SIGTERM:
            return self.starts[-1].send_signal(number)
        pids = subprocess.run([IP, "netns", "pids", self.space], capture_output=True, text=True, check=False).stdout
        for pid in pids.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), number)
        return None

    def wait(self, timeout_s: float) -> int:
        """Return the exit code, as Kubernetes writes it."""
        code = self.starts[-1].wait(timeout_s)
        return code if code >= 0 else 128 - code

    def log(self) -> str:
        return (self.root / f"log-{self.number}-{len(self.starts) - 1}").read_text()


@pytest.fixture
def two_pods(tmp_path, repo_root):
    if IP is None or os.geteuid() != 0:
        pytest.skip("needs root and the command ip, for network namespaces")
    tag = uuid.uuid4().hex[:6]
    pods = [Pod(n, f"mvk{tag}{n}", f"mk{tag}{n}", tmp_path, repo_root) for n in (0, 1)]
    names = "".join(f"10.78.0.{n + 1} mvfoul-train-{n}.mvfoul-train.vars.svc mvfoul-train-{n}\n" for n in (0, 1))

    def ip(*args):
        return subprocess.run([IP, *args], capture_output=True, text=True, check=True)

    try:
        try:
            for pod in pods:
                ip("netns", "add", pod.space)
            ip(
                "link",
                "add",
                pods[0].cable,
                "netns",
                pods[0].space,
                "type",
                "veth",
                "peer",
                pods[1].cable,
                "netns",
                pods[1].space,
            )
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        for pod in pods:
            ip("-n", pod.space, "addr", "add", f"10.78.0.{pod.number + 1}/24", "dev", pod.cable)
            ip("-n", pod.space, "link", "set", pod.cable, "up")
            ip("-n", pod.space, "link", "set", "lo", "up")
            # `ip netns exec` binds these over /etc: the names that the headless Service gives.
            folder = Path("/etc/netns") / pod.space
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        yield pods
    finally:
        for pod in pods:
            pod.end(signal.SIGKILL)
            for process in pod.starts:
                process.wait(30)
            subprocess.run([IP, "netns", "delete", pod.space], capture_output=True, check=False)
            shutil.rmtree(Path("/etc/netns") / pod.space, ignore_errors=True)


@pytest.fixture
def volumes(tmp_path):
    """The claims and folders of the pod, and a small data set in /data."""
    from training.synthetic.config import SyntheticConfig
    from training.synthetic.generate import generate

    for mount in CONTAINER["volumeMounts"]:
        (tmp_path / mount["mountPath"].lstrip("/")).mkdir(parents=True, exist_ok=True)
    generate(SyntheticConfig(out=tmp_path / "data", actions=32, width=64, height=48, workers=1))
    return tmp_path


def _wait_for(condition, pods, timeout_s=120):
    end = time.monotonic() + timeout_s
    while not condition():
        for pod in pods:
            assert pod.starts[-1].poll() is None, pod.log()
        assert time.monotonic() < end, [pod.log() for pod in pods]
        time.sleep(0.1)


def test_two_pods_train_and_go_on_after_a_lost_node_and_stop_when_preempted(two_pods, volumes):
    run = volumes / "runs" / "first"
    first, second = two_pods
    for pod in two_pods:
        pod.start()
    _wait_for((run / LAST).exists, two_pods)
    second.end(signal.SIGKILL)  # its node is gone
    assert first.wait(100) in IGNORED, first.log()
    second.wait(100)
    epoch = load_checkpoint(run / LAST).epoch

    for pod in two_pods:
        pod.start()
    _wait_for(lambda: f"{epoch + 1}/1000" in first.log(), two_pods)
    second.end(signal.SIGTERM)  # preempted
    assert {pod.wait(100) for pod in two_pods} <= set(IGNORED), [pod.log() for pod in two_pods]
    # Rank 0 talks, writes and has the metrics: it is pod 0, in every start.
    assert f"last.pth.tar, after epoch {epoch}" in first.log()
    assert "nothing is lost" in first.log()
    last = load_checkpoint(run / LAST)
    assert (last.epoch > epoch, last.world["size"]) == (True, 2)
