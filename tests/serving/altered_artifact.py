"""Other artifacts in a second: copies of one that are sound in every check."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from mvfoul.artifact import ENCODER, FEATURES, GOLDEN, GOLDEN_TENSORS, HEAD, VIEWS, load_artifact, write_manifest
from mvfoul.plan import PLAN, PlanSpec


def alter(source: Path, target: Path, *, factor: float = 1.25) -> Path:
    """Copy the artifact `source` to `target` and scale the largest weight of both graphs by `factor`."""
    shutil.copytree(source, target)
    for name in (ENCODER, HEAD):
        graph = onnx.load(target / name)
        largest = max(graph.graph.initializer, key=lambda weight: np.prod(weight.dims))
        largest.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(largest) * np.float32(factor), largest.name))
        onnx.save(graph, target / name)
    _write_golden(target)
    write_manifest(target, load_artifact(source).manifest)
    return target


def with_plan(source: Path, target: Path, **fields: Any) -> Path:
    """Copy the artifact `source` to `target` and add bytes that stand for a TensorRT plan; fields of `PlanSpec`."""
    shutil.copytree(source, target)
    (target / PLAN).write_text(f"a plan for {fields}")
    defaults = {"gpu_architecture": "sm_90", "tensorrt_version": "11.1.0.106", "opt_views": 4, "max_views": 16}
    plan = PlanSpec(file=PLAN, **{**defaults, **fields})
    write_manifest(target, replace(load_artifact(source).manifest, plan=plan))
    return target


def _write_golden(directory: Path) -> None:
    with np.load(directory / GOLDEN) as archive:
        views = archive[VIEWS]
    encoder, head = (onnxruntime.InferenceSession(directory / name) for name in (ENCODER, HEAD))
    (features,) = encoder.run([FEATURES], {VIEWS: views})
    answers = [name for name in GOLDEN_TENSORS if name not in (VIEWS, FEATURES)]
    outputs = head.run(answers, {FEATURES: features})
    np.savez(directory / GOLDEN, **{VIEWS: views, FEATURES: features, **dict(zip(answers, outputs, strict=True))})
