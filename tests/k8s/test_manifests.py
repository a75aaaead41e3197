"""The manifests against the schemas of Kubernetes, in which a misspelt field is an error."""

from __future__ import annotations

import copy
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

VERSION = "1.37"
# Kinds that Kubernetes itself does not know; their schemas come with what defines them.
FOREIGN = ("serving.kserve.io/", "monitoring.coreos.com/", "keda.sh/", "kustomize.config.k8s.io/")
K8S = Path(__file__).resolve().parents[2] / "k8s"
MANIFESTS = sorted(path.relative_to(K8S).as_posix() for path in K8S.rglob("*.yaml"))


def documents(name: str) -> list[dict]:
    return [document for document in yaml.safe_load_all((K8S / name).read_text()) if document]


def _builtin(document: dict) -> bool:
    return "apiVersion" in document and not document["apiVersion"].startswith(FOREIGN)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_what_kubernetes_accepts(name):
    for document in filter(_builtin, documents(name)):
        assert kubernetes_validate.validate(document, VERSION, strict=True) == VERSION


@pytest.mark.parametrize(
    ("path", "misspelt"),
    [
        (("spec",), "ttlSecondsAfterFinish"),
        (("spec", "template", "spec"), "restartpolicy"),
        (("spec", "template", "spec", "containers", 0), "resource"),
        (("spec", "template", "spec", "containers", 0, "securityContext"), "readOnlyRootFileSystem"),
        (("spec", "podFailurePolicy", "rules", 0), "onExitCode"),
    ],
)
def test_a_misspelt_field_is_found(path, misspelt):
    (job,) = copy.deepcopy(documents("export-job.yaml"))
    place = job
    for step in path:
        place = place[step]
    place[misspelt] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match=misspelt):
        kubernetes_validate.validate(job, VERSION, strict=True)


def test_a_value_of_another_type_is_found():
    (job,) = copy.deepcopy(documents("export-job.yaml"))
    job["spec"]["backoffLimit"] = "two"
    with pytest.raises(kubernetes_validate.ValidationError, match="two"):
        kubernetes_validate.validate(job, VERSION, strict=True)
