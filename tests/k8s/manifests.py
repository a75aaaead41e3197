"""The manifests as tests read them: documents, rendered overlays, the pods of every kind, a container's command."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

K8S = Path(__file__).resolve().parents[2] / "k8s"


def _is_manifest(path: Path) -> bool:
    return path.name != "kustomization.yaml" and not path.is_symlink()


FILES = sorted(path.relative_to(K8S).as_posix() for path in K8S.rglob("*.yaml") if _is_manifest(path))
OVERLAYS = sorted(
    path.parent.relative_to(K8S).as_posix()
    for path in K8S.rglob("kustomization.yaml")
    if "components" not in path.parts
)
Document = dict[str, Any]


def documents(name: str) -> list[Document]:
    """Return the documents of a file below k8s/."""
    return [document for document in yaml.safe_load_all((K8S / name).read_text()) if document]


def document(name: str, kind: str, called: str = "") -> Document:
    """Return the one document of a file with this kind, and name if one is given."""
    (found,) = (d for d in documents(name) if d["kind"] == kind and called in ("", d["metadata"]["name"]))
    return found


@cache
def _rendered(overlay: str) -> str:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs the command kubectl, for `kubectl kustomize`; no cluster")
    done = subprocess.run([kubectl, "kustomize", str(K8S / overlay)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(overlay: str) -> list[Document]:
    """Return what `kubectl apply -k` would send for a folder below k8s/."""
    return [document for document in yaml.safe_load_all(_rendered(overlay)) if document]


def where(document: Document) -> str:
    """Return kind and name, for messages."""
    return f"{document['kind']}/{document['metadata']['name']}"


def pods(document: Document) -> Iterator[tuple[str, Mapping[str, str], Document]]:
    """Yield place, labels and specification of every pod that an object makes, of operators' kinds too."""
    kind, spec, place = document["kind"], document.get("spec", {}), where(document)
    if kind in ("Job", "Deployment"):
        yield place, spec["template"]["metadata"]["labels"], spec["template"]["spec"]
    elif kind == "InferenceService":
        for part in ("predictor", "transformer"):
            if part in spec:
                yield f"{place} {part}", spec[part].get("labels", {}), spec[part]
    elif kind == "ServingRuntime":
        yield place, spec.get("labels", {}), spec
    elif kind in ("JobSet", "TrainingRuntime"):
        jobs = (spec if kind == "JobSet" else spec["template"]["spec"])["replicatedJobs"]
        for job in jobs:
            template = job["template"]["spec"]["template"]
            yield f"{place} {job['name']}", template["metadata"]["labels"], template["spec"]


def containers(pod: Document) -> list[Document]:
    """Return the containers of a pod; of a KServe predictor the model too, which is one."""
    model = [pod["model"]] if "model" in pod else []
    return [*pod.get("initContainers", []), *pod.get("containers", []), *model]


def expanded(arguments: list[str], environment: Mapping[str, str]) -> list[str]:
    """Replace $(NAME) as the kubelet does; an unknown name stays."""
    return [re.sub(r"\$\((\w+)\)", lambda m: environment.get(m[1], m[0]), argument) for argument in arguments]


def environment(container: Document, **known: str) -> dict[str, str]:
    """Return a container's variables, without optional secrets; what the downward API fills in must be in `known`."""
    entries = [entry for entry in container.get("env", []) if not _optional(entry)]
    values = {entry["name"]: entry.get("value", known.get(entry["name"])) for entry in entries}
    assert None not in values.values(), values
    return {**values, **known}


def _optional(entry: Document) -> bool:
    return bool(entry.get("valueFrom", {}).get("secretKeyRef", {}).get("optional"))
