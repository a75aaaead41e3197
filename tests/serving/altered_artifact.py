"""A second artifact in a second: a copy of another whose graphs answer differently, sound in every check."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from mvfoul.artifact import ENCODER, FEATURES, GOLDEN, GOLDEN_TENSORS, HEAD, VIEWS, load_artifact, write_manifest


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


def _write_golden(directory: Path) -> None:
    with np.load(directory / GOLDEN) as archive:
        views = archive[VIEWS]
    encoder, head = (onnxruntime.InferenceSession(directory / name) for name in (ENCODER, HEAD))
    (features,) = encoder.run([FEATURES], {VIEWS: views})
    answers = [name for name in GOLDEN_TENSORS if name not in (VIEWS, FEATURES)]
    outputs = head.run(answers, {FEATURES: features})
    np.savez(directory / GOLDEN, **{VIEWS: views, FEATURES: features, **dict(zip(answers, outputs, strict=True))})
