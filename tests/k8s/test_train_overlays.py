"""JobSet and Kubeflow's TrainJob run the pod of k8s/train-job.yaml, but for the names that each of them gives."""

from __future__ import annotations

import copy

import pytest

from tests.k8s import manifests
from training.launch import node_names


@pytest.fixture(scope="module")
def job():
    return manifests.document("train-job.yaml", "Job")


def _objects(overlay: str) -> dict[str, manifests.Document]:
    return {document["kind"]: document for document in manifests.documents(f"overlays/{overlay}/{overlay}.yaml")}


def _pod(job) -> manifests.Document:
    """The train job's pod, without what names it."""
    pod = copy.deepcopy(job["spec"]["template"]["spec"])
    del pod["subdomain"]  # JobSet sets it
    (spread,) = pod["topologySpreadConstraints"]
    spread["labelSelector"]["matchLabels"] = {"app.kubernetes.io/name": "mvfoul-training"}
    return pod


def test_a_jobset_runs_the_pod_of_the_train_job(job):
    jobset = _objects("jobset")["JobSet"]
    (replicated,) = jobset["spec"]["replicatedJobs"]
    spec, pod = replicated["template"]["spec"], _pod(job)
    # JobSet names pod k of job j <jobset>-<replicated job>-<j>-<k>, in a domain with its own name.
    name = jobset["metadata"]["name"]
    host = f"{name}-{replicated['name']}-0-0.{name}"
    (container,) = pod["containers"]
    container["args"] = [a.replace("mvfoul-train-0.mvfoul-train", host) for a in container["args"]]
    assert any(f"--rdzv-endpoint={host}." in argument for argument in container["args"])
    assert node_names(f"{host}.vars.svc", 2)[1] == f"{name}-{replicated['name']}-0-1.{name}.vars.svc"
    assert spec["template"]["spec"] == pod
    assert jobset["spec"]["network"]["publishNotReadyAddresses"] is True
    for field in ("completionMode", "parallelism", "completions", "backoffLimit", "podFailurePolicy"):
        assert spec[field] == job["spec"][field]


def test_a_trainjob_runs_the_pod_of_the_train_job(job):
    objects = _objects("trainjob")
    runtime, trainjob = objects["TrainingRuntime"], objects["TrainJob"]
    assert trainjob["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    labels = replicated["template"]["metadata"]["labels"]
    assert labels["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    pod, expected = replicated["template"]["spec"]["template"]["spec"], _pod(job)
    (container,), (ours,) = pod["containers"], expected["containers"]
    assert container["name"] == replicated["name"] == "node", "Kubeflow's name of the container that trains"
    # Kubeflow says how many nodes and processes there are, and where the first one is (PET_..., which torchrun reads).
    told = ("--nnodes", "--nproc-per-node", "--rdzv-endpoint")
    assert [a for a in container["args"] if not a.startswith(told)] == [
        a for a in ours["args"] if not a.startswith(told)
    ]
    assert "--rdzv-endpoint=$(PET_MASTER_ADDR):$(PET_MASTER_PORT)" in container["args"]
    assert not any(argument.startswith(told[:2]) for argument in container["args"])
    assert trainjob["spec"]["trainer"] == {"numNodes": 1, "resourcesPerNode": ours["resources"]}
    for field in ("name", "args", "env", "ports"):
        del container[field], ours[field]
    assert pod == expected
    rules = replicated["template"]["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["FailJob", "Ignore", "Ignore"]
    assert {rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule} == {"node"}


@pytest.mark.parametrize("overlay", ["jobset", "trainjob"])
def test_their_claims_are_those_of_the_train_job(overlay):
    of_job = {manifests.where(d): d for d in manifests.documents("train-job.yaml")}
    claims = [
        d for d in manifests.documents(f"overlays/{overlay}/{overlay}.yaml") if d["kind"] == "PersistentVolumeClaim"
    ]
    assert len(claims) == 2
    for claim in claims:
        assert claim == of_job[manifests.where(claim)]
