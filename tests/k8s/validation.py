"""What Kubernetes, or the operator that defines a kind, would not understand of an object."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate

from tests.k8s import manifests

VERSION = "1.37"
SCHEMAS = Path(__file__).parent / "schemas"


@cache
def _schema(kind: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{kind}.json").read_text())["schema"])


def faults(document: manifests.Document) -> list[str]:
    """Return what Kubernetes, or the operator that defines this kind, would not understand."""
    if missing := [f"no {name}" for name in ("apiVersion", "kind") if name not in document]:
        return missing
    kind, group = document["kind"], document["apiVersion"].partition("/")[0]
    if "." not in group or (group.endswith(".k8s.io") and "x-k8s" not in group):
        try:
            kubernetes_validate.validate(document, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [error.message]
        return []
    if not (SCHEMAS / f"{kind}.json").is_file():
        return [f"no schema of {kind}: add its source to scripts/crd_schemas.py"]
    return [f"{error.json_path}: {error.message}" for error in _schema(kind).iter_errors(document)]
