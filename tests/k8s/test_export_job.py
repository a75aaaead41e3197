"""What the schemas cannot know of the export job: that its parts fit each other, the image and the command."""

from __future__ import annotations

import re

import pytest
import tyro
import yaml

from export import exit_codes
from export.config import ExportConfig


@pytest.fixture(scope="module")
def job(repo_root):
    return yaml.safe_load((repo_root / "k8s" / "export-job.yaml").read_text())


@pytest.fixture(scope="module")
def pod(job):
    return job["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod):
    (container,) = pod["containers"]
    return container


def test_its_arguments_are_flags_of_the_command(container):
    config = tyro.cli(ExportConfig, args=container["args"], config=(tyro.conf.FlagCreatePairsOff,))
    assert config.fp16
    assert not config.allow_no_plan, "without a plan the job has not done its work"


def test_what_it_reads_and_writes_is_mounted(container, pod):
    config = tyro.cli(ExportConfig, args=container["args"], config=(tyro.conf.FlagCreatePairsOff,))
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert "/" + config.ckpt.parts[1] in mounts
    for written in (config.target, config.tensorrt.timing_cache):
        assert mounts["/" + written.parts[1]].get("readOnly") is not True
    assert "/tmp" in mounts, "HOME of the image, and the root is read-only"  # noqa: S108
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in pod["volumes"]}


def test_failures_that_would_repeat_are_not_retried(job, pod, container):
    fail, ignore = job["spec"]["podFailurePolicy"]["rules"]
    assert fail["action"] == "FailJob"
    assert fail["onExitCodes"]["containerName"] == container["name"]
    codes = {exit_codes.REFUSED, exit_codes.PARITY_FAILED, exit_codes.NO_PLAN}
    assert set(fail["onExitCodes"]["values"]) == codes
    assert ignore["action"] == "Ignore"
    assert pod["restartPolicy"] == "Never", "Kubernetes demands it where there is a podFailurePolicy"
    assert job["spec"]["backoffLimit"] > 0


def test_it_asks_for_one_gpu_and_ends(job, container):
    resources = container["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
    assert resources["limits"]["memory"] == resources["requests"]["memory"]
    assert job["spec"]["activeDeadlineSeconds"] > 0
    assert job["spec"]["ttlSecondsAfterFinished"] > 0


def test_its_image_has_the_projects_version(repo_root, container):
    version = re.search(r'^version = "(.+)"', (repo_root / "pyproject.toml").read_text(), flags=re.MULTILINE)[1]
    assert container["image"] == f"vars-export:{version}"
