"""Pod Security Standard `restricted`, and a little more, for every pod of every file and of every rendered overlay.

Written after https://kubernetes.io/docs/concepts/security/pod-security-standards/. KServe takes the pod's part of a
predictor's security context from the InferenceService, and the container's part from the ServingRuntime: each of them
is looked at for what it can hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import pytest

from tests.k8s import manifests

ALLOWED_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret")
}
HOST = ("hostNetwork", "hostPID", "hostIPC", "hostUsers")


def every_pod() -> Iterator[tuple[str, Mapping[str, str], manifests.Document]]:
    for name in manifests.FILES:
        for document in manifests.documents(name):
            for place, labels, pod in manifests.pods(document):
                yield f"{name} {place}", labels, pod


def rendered_pods(overlay: str) -> Iterator[tuple[str, Mapping[str, str], manifests.Document]]:
    for document in manifests.render(overlay):
        for place, labels, pod in manifests.pods(document):
            yield f"{overlay} {place}", labels, pod


def violations(place: str, pod: manifests.Document) -> Iterator[str]:
    if "ServingRuntime" not in place:
        yield from _of_pod(pod)
    for container in manifests.containers(pod):
        # What a predictor's model leaves out, its runtime says.
        if "image" in container or container.get("securityContext"):
            yield from _of_container(container)


def _of_pod(pod: manifests.Document) -> Iterator[str]:
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if not security.get("runAsUser", 0) > 0:
        yield "runAsUser is root or missing"
    if security.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccomp profile"
    if pod.get("automountServiceAccountToken") is not False:
        yield "a token for the cluster's API is mounted"
    yield from (name for name in HOST if pod.get(name))
    for volume in pod.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= ALLOWED_VOLUMES:
            yield f"volume {volume['name']} is of {kinds}"


def _of_container(container: manifests.Document) -> Iterator[str]:
    name, security = container.get("name", "model"), container.get("securityContext", {})
    expected = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    for field, value in expected.items():
        if security.get(field) != value:
            yield f"{name}: {field} is {security.get(field)}"
    if security.get("privileged") or security.get("runAsUser") == 0 or security.get("procMount"):
        yield f"{name}: privileged"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield f"{name}: hostPort"
    if "memory" not in container.get("resources", {}).get("limits", {}):
        yield f"{name}: no memory limit"


def test_every_pod_is_restricted():
    found = {place: list(violations(place, pod)) for place, _, pod in every_pod()}
    assert len(found) >= 3
    assert not {place: what for place, what in found.items() if what}


@pytest.mark.parametrize("overlay", manifests.OVERLAYS)
def test_every_pod_of_an_overlay_is_restricted(overlay):
    found = {place: list(violations(place, pod)) for place, _, pod in rendered_pods(overlay)}
    assert not {place: what for place, what in found.items() if what}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda pod: pod["securityContext"].pop("runAsNonRoot"), "runAsNonRoot is not true"),
        (lambda pod: pod["securityContext"].update(runAsUser=0), "runAsUser is root or missing"),
        (lambda pod: pod["securityContext"].pop("seccompProfile"), "no seccomp profile"),
        (lambda pod: pod.update(hostNetwork=True), "hostNetwork"),
        (lambda pod: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "volume x is of {'hostPath'}"),
        (lambda pod: pod["containers"][0]["securityContext"].pop("capabilities"), "train: capabilities is None"),
        (lambda pod: pod["containers"][0]["securityContext"].update(privileged=True), "train: privileged"),
        (lambda pod: pod["containers"][0]["ports"][0].update(hostPort=80), "train: hostPort"),
    ],
)
def test_the_policy_finds_what_it_is_for(change, told):
    pod = manifests.document("train-job.yaml", "Job")["spec"]["template"]["spec"]
    assert not list(violations("", pod))
    change(pod)
    assert list(violations("", pod)) == [told]


def test_pods_run_as_the_user_of_the_images(repo_root):
    user, group = re.search(r"^USER (\d+):(\d+)", (repo_root / "Dockerfile").read_text(), flags=re.MULTILINE).groups()
    for place, _, pod in every_pod():
        security = pod.get("securityContext", {})
        if "triton" in place or "ServingRuntime" in place or "predictor" in place:
            continue  # NVIDIA's image has a user of its own
        assert (security["runAsUser"], security["runAsGroup"]) == (int(user), int(group)), place


def test_secrets_are_named_and_never_written():
    for name in manifests.FILES:
        assert not [d for d in manifests.documents(name) if d["kind"] == "Secret"], name
    found = []
    for place, _, pod in every_pod():
        for container in manifests.containers(pod):
            for entry in container.get("env", []):
                if re.search(r"TOKEN|PASSWORD|SECRET|_KEY$", entry["name"]):
                    found.append(entry["name"])
                    assert "secretKeyRef" in entry.get("valueFrom", {}), f"{place}: {entry['name']}"
    assert {"HF_TOKEN", "SOCCERNET_PASSWORD", "WANDB_API_KEY"} <= set(found)
