"""Writes tests/k8s/schemas/: what KServe, KEDA, Prometheus's operator, JobSet and Kubeflow say of their objects.

    git clone --bare https://github.com/kserve/kserve clones/kserve.git          # and so on, see SOURCES
    python scripts/crd_schemas.py --clones clones

Each file is the schema of one kind, taken from the project's CustomResourceDefinition at a released version (all are
Apache-2.0) and made compact: no descriptions, no status, no frameworks that are not served here, and what occurs twice
stands once under `$defs`. It is made strict too: a field that the definition does not name is refused, where Kubernetes
drops it without a word. Rules in CEL are not kept: nothing here could evaluate them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TARGET = Path(__file__).resolve().parent.parent / "tests" / "k8s" / "schemas"
Schema = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a kind is defined."""

    kind: str
    repository: str
    version: str
    path: str
    api_version: str


_KSERVE = "config/crd/full/serving.kserve.io_"
_OPERATOR = "example/prometheus-operator-crd/monitoring.coreos.com_"
_TRAINER = "manifests/base/crds/trainer.kubeflow.org_"
SOURCES = (
    Source("InferenceService", "kserve/kserve", "v0.20.0", f"{_KSERVE}inferenceservices.yaml", "v1beta1"),
    Source("ServingRuntime", "kserve/kserve", "v0.20.0", f"{_KSERVE}servingruntimes.yaml", "v1alpha1"),
    Source("ScaledObject", "kedacore/keda", "v2.20.2", "config/crd/bases/keda.sh_scaledobjects.yaml", "v1alpha1"),
    Source(
        "TriggerAuthentication",
        "kedacore/keda",
        "v2.20.2",
        "config/crd/bases/keda.sh_triggerauthentications.yaml",
        "v1alpha1",
    ),
    Source("PodMonitor", "prometheus-operator/prometheus-operator", "v0.93.0", f"{_OPERATOR}podmonitors.yaml", "v1"),
    Source(
        "ServiceMonitor", "prometheus-operator/prometheus-operator", "v0.93.0", f"{_OPERATOR}servicemonitors.yaml", "v1"
    ),
    Source(
        "PrometheusRule", "prometheus-operator/prometheus-operator", "v0.93.0", f"{_OPERATOR}prometheusrules.yaml", "v1"
    ),
    Source(
        "JobSet",
        "kubernetes-sigs/jobset",
        "v0.12.0",
        "config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml",
        "v1alpha2",
    ),
    Source("TrainJob", "kubeflow/trainer", "v2.3.0", f"{_TRAINER}trainjobs.yaml", "v1alpha1"),
    Source("TrainingRuntime", "kubeflow/trainer", "v2.3.0", f"{_TRAINER}trainingruntimes.yaml", "v1alpha1"),
)
_NOT_SERVED = {"sklearn", "xgboost", "lightgbm", "paddle", "pmml", "tensorflow", "pytorch", "onnx", "triton"}
_NOT_SERVED |= {"huggingface", "mlserver", "explainer", "workerSpec"}
_NOT_JUDGING = {"description", "default", "format"}
_KEPT_MARKS = ("x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string")
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
OBJECT_META: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "generateName": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": _STRINGS,
        "annotations": _STRINGS,
    },
}


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clones", type=Path, required=True, help="Folder of git repositories, <name>.git or <name>.")
    clones = parser.parse_args().clones
    TARGET.mkdir(exist_ok=True)
    for source in SOURCES:
        document = {
            "source": f"https://github.com/{source.repository}/blob/{source.version}/{source.path}",
            "licence": "Apache-2.0",
            "schema": compact(strict(_read(source, clones))),
        }
        target = TARGET / f"{source.kind}.json"
        target.write_text(json.dumps(document, separators=(",", ":"), sort_keys=True) + "\n")
        print(f"{target.name}: {target.stat().st_size // 1024} KiB")


def _read(source: Source, clones: Path) -> Schema:
    name = source.repository.partition("/")[2]
    clone = next(path for path in (clones / f"{name}.git", clones / name) if path.exists())
    text = subprocess.run(
        ["git", "-C", str(clone), "show", f"{source.version}:{source.path}"],  # noqa: S607 - git is found on PATH
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    definition = yaml.safe_load(text)["spec"]
    (version,) = (v for v in definition["versions"] if v["name"] == source.api_version)
    schema: Schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["apiVersion"] = {"const": f"{definition['group']}/{source.api_version}"}
    schema["properties"]["kind"] = {"const": source.kind}
    schema["properties"].pop("status", None)
    schema["required"] = [*schema.get("required", []), "apiVersion", "kind", "metadata"]
    return schema


def strict(schema: Any, name: str = "") -> Any:
    """Return a schema without what does not judge, in which unknown fields are refused."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if (
        name == "metadata"
        and schema.get("type") == "object"
        and not {"properties", "additionalProperties"} & set(schema)
    ):
        return OBJECT_META
    kept = {
        key: strict(value)
        for key, value in schema.items()
        if key not in _NOT_JUDGING and key != "properties" and (not key.startswith("x-") or key in _KEPT_MARKS)
    }
    if "properties" in schema:
        kept["properties"] = {k: strict(v, k) for k, v in schema["properties"].items() if k not in _NOT_SERVED}
        if "additionalProperties" not in kept and not kept.get("x-kubernetes-preserve-unknown-fields"):
            kept["additionalProperties"] = False
    return kept


def compact(schema: Schema) -> Schema:
    """Return the schema with everything that occurs twice under `$defs`."""
    counts: Counter[str] = Counter()
    _count(schema, counts)
    shared = {text for text, count in counts.items() if count > 1 and len(text) > 120}
    definitions: Schema = {}
    root: Schema = _replace(schema, shared, definitions, top=True)
    return {**root, "$defs": definitions}


def _text(schema: Any) -> str:
    return json.dumps(schema, sort_keys=True)


def _count(schema: Any, counts: Counter[str]) -> None:
    children = schema if isinstance(schema, list) else schema.values() if isinstance(schema, dict) else ()
    for child in children:
        _count(child, counts)
    if isinstance(schema, dict) and isinstance(
        schema.get("type"), str
    ):  # not the properties of something with a "type"
        counts[_text(schema)] += 1


def _replace(schema: Any, shared: set[str], definitions: Schema, *, top: bool = False) -> Any:
    if isinstance(schema, list):
        return [_replace(item, shared, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    text = _text(schema)
    if top or text not in shared:
        return {key: _replace(value, shared, definitions) for key, value in schema.items()}
    name = hashlib.sha256(text.encode()).hexdigest()[:8]
    if name not in definitions:
        definitions[name] = {}
        definitions[name] = _replace(schema, shared, definitions, top=True)
    return {"$ref": f"#/$defs/{name}"}


if __name__ == "__main__":
    main()
