"""What the schemas cannot know of the train job: that its parts fit each other, the image and the command."""

from __future__ import annotations

import itertools
import re

import pytest
import yaml

from mvfoul.command import PREEMPTED
from mvfoul.errors import ConfigError
from tests.k8s import manifests
from training.distributed import World
from training.launch import PlacementError, node_names
from training.recipes import parse_config
from training.sampler import Order, StepSampler

TEXT = (manifests.K8S / "train-job.yaml").read_text()
NODES, GPUS = 4, 8


@pytest.fixture(scope="module")
def job():
    return manifests.document("train-job.yaml", "Job")


@pytest.fixture(scope="module")
def pod(job):
    return job["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod):
    (container,) = pod["containers"]
    return container


def _split(container, nodes="1"):
    """Return torchrun's arguments and the training's, as the container gets them."""
    known = {"NAMESPACE": "vars"}
    variables = {**manifests.environment(container, **known), "NODES": nodes}
    arguments = manifests.expanded(container["args"], variables)
    return list(itertools.takewhile(lambda a: a != "-m", arguments)), arguments[arguments.index("training") + 1 :]


def test_its_arguments_are_flags_of_the_commands(container):
    from torch.distributed import run

    assert container["command"] == ["python", "-m", "training.launch"]
    launcher, flags = _split(container)
    own, *rest = launcher
    assert own.startswith("--placement-timeout-s=")
    args = run.parse_args([*rest, "-m", "training", *flags])
    assert (args.rdzv_backend, args.nnodes, args.nproc_per_node) == ("c10d", "1", "gpu")
    config = parse_config(flags)
    assert config.resume
    assert config.metrics.port == container["ports"][1]["containerPort"]


def _scaled(nodes, gpus, text=TEXT):
    """Return the job with every line marked "nodes" or "gpus" changed, as the head of the file says, and no other."""
    scaled = re.sub(r"\b1(\"?) # nodes$", rf"{nodes}\1 # nodes", text, flags=re.MULTILINE)
    scaled = re.sub(r"\b1 # gpus$", f"{gpus} # gpus", scaled, flags=re.MULTILINE)
    (job,) = (d for d in yaml.safe_load_all(scaled) if d["kind"] == "Job")
    return job


def test_two_numbers_scale_it():
    job = _scaled(NODES, GPUS)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert job["spec"]["parallelism"] == job["spec"]["completions"] == NODES
    assert f"--nnodes={NODES}" in _split(container, manifests.environment(container, NAMESPACE="x")["NODES"])[0]
    resources = container["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == GPUS


def _share_steps(job):
    """Share a step among all processes of a job, as each of them does when it starts."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    size = job["spec"]["completions"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
    loop = parse_config(_split(container)[1]).loop
    for rank in range(size):
        world = World(rank=rank, size=size)
        share = StepSampler(Order(length=64), batch_size=loop.batch_size, world=world, accumulate=loop.accumulate)
        assert all(map(len, share)), "each process has an action of every step"


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 1), (1, 8), (2, 4), (8, 1)])
def test_as_many_gpus_as_the_recipe_has_actions_need_no_other_line(nodes, gpus):
    _share_steps(_scaled(nodes, gpus))


def test_more_gpus_need_the_line_with_the_batch_size():
    with pytest.raises(ConfigError, match=f"--loop.batch-size {NODES * GPUS} or more"):
        _share_steps(_scaled(NODES, GPUS))
    _share_steps(_scaled(NODES, GPUS, TEXT.replace("# - --loop.batch-size", "- --loop.batch-size")))


def test_the_rendezvous_is_at_the_name_that_the_service_gives_pod_0(job, pod, container):
    service = manifests.document("train-job.yaml", "Service")
    launcher, _ = _split(container)
    endpoint = next(a.partition("=")[2] for a in launcher if a.startswith("--rdzv-endpoint="))
    host, port = endpoint.split(":")
    # An Indexed Job names pod k <job>-<k>; a headless Service of the pod's subdomain makes that a name in DNS.
    name = service["metadata"]["name"]
    assert pod["subdomain"] == name
    assert host == f"{job['metadata']['name']}-0.{name}.vars.svc"
    assert node_names(host, 2)[1] == f"{job['metadata']['name']}-1.{name}.vars.svc"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    ports = {entry["name"]: entry["containerPort"] for entry in container["ports"]}
    assert ports["rendezvous"] == int(port)
    assert {entry["name"]: entry["port"] for entry in service["spec"]["ports"]} == ports


def test_interruptions_are_not_counted_and_what_would_fail_again_is_not_repeated(job, pod, container):
    refused, again, disrupted = job["spec"]["podFailurePolicy"]["rules"]
    assert (refused["action"], refused["onExitCodes"]["values"]) == ("FailJob", [ConfigError.exit_code])
    assert (again["action"], again["onExitCodes"]["values"]) == ("Ignore", [PREEMPTED])
    assert {rule["onExitCodes"]["containerName"] for rule in (refused, again)} == {container["name"]}
    assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert pod["restartPolicy"] == "Never", "Kubernetes demands it where there is a podFailurePolicy"
    assert job["spec"]["podReplacementPolicy"] == "Failed", "the old pod must have left the run's folder"
    counted, others = (PlacementError("", counted=counted).exit_code for counted in (True, False))
    assert others in again["onExitCodes"]["values"], "a round without room counts once, however many nodes gave up"
    assert counted not in [*again["onExitCodes"]["values"], *refused["onExitCodes"]["values"]]
    grace = manifests.environment(container, NAMESPACE="x")["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    assert pod["terminationGracePeriodSeconds"] > int(grace) > 30


def test_what_it_reads_and_writes_is_mounted(pod, container):
    config = parse_config(_split(container)[1])
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts[str(config.data.root)]["readOnly"]
    for written in (config.output, config.data.cache_dir):
        assert not mounts["/" + written.parts[1]].get("readOnly")
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"  # noqa: S108
    gib = int(volumes[mounts["/cache"]["name"]]["emptyDir"]["sizeLimit"].removesuffix("Gi"))
    assert (
        config.data.cache_gib < gib <= int(container["resources"]["requests"]["ephemeral-storage"].removesuffix("Gi"))
    )


def test_the_claims_of_all_files_are_those_that_pods_use():
    """Each claim stands in one file, but for mvfoul-data: train job and data job work alone."""
    claims = {}
    for name in ("train-job.yaml", "data-job.yaml", "base/storage.yaml"):
        for document in manifests.documents(name):
            if document["kind"] == "PersistentVolumeClaim":
                called = document["metadata"]["name"]
                assert claims.setdefault(called, document) == document, called
    used = set()
    for name in manifests.FILES:
        for document in manifests.documents(name):
            for _, _, pod in manifests.pods(document):
                volumes = pod.get("volumes", [])
                used |= {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v}
    assert used == set(claims)


def test_the_data_job_fills_the_claim_that_training_reads(pod, repo_root):
    job = manifests.document("data-job.yaml", "Job")
    data = job["spec"]["template"]["spec"]
    (container,) = data["containers"]
    from training.download.config import parse_config as parse_download

    assert container["command"] == ["python", "-m", "training.download"]
    config = parse_download(container["args"])
    (mount,) = (m for m in container["volumeMounts"] if m["mountPath"] == str(config.out))
    claim = {v["name"]: v for v in data["volumes"]}[mount["name"]]["persistentVolumeClaim"]["claimName"]
    assert claim == {v["name"]: v for v in pod["volumes"]}["data"]["persistentVolumeClaim"]["claimName"]
    assert "[training,download," in (repo_root / "Dockerfile").read_text(), "its image needs what downloads need"
