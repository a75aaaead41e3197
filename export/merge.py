"""model.onnx: encoder and head as one graph for any ONNX user. Views of one action in, probabilities out.

    VIEWS uint8 [V,3,T,H,W] -> ACTION_PROBABILITIES f32 [8], OFFENCE_SEVERITY_PROBABILITIES f32 [4],
                               VIEW_WEIGHTS f32 [V]

The file explains itself: labels and the clip specification are in its metadata, as JSON (`METADATA`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from export.batches import ViewBatch
from export.checks import Check, structure_checks, value_check
from export.config import Precision, Tolerance
from export.difference import Difference
from export.runners import Runner, onnx_session, spec_of
from export.to_onnx import PRODUCER
from mvfoul.artifact import (
    ACTION_PROBABILITIES,
    ENCODER,
    FEATURES,
    HEAD,
    MERGED,
    OFFENCE_SEVERITY_PROBABILITIES,
    VIEW_WEIGHTS,
    VIEWS,
    GraphSpec,
    TensorSpec,
    golden_limit,
)
from mvfoul.clip import ClipSpec
from mvfoul.labels import ACTION_CLASSES, OFFENCE_SEVERITIES, VOCABULARIES

OUTPUTS: Final = (ACTION_PROBABILITIES, OFFENCE_SEVERITY_PROBABILITIES, VIEW_WEIGHTS)
METADATA: Final = ("labels", "clip")
"""Keys of the metadata: the labels of both heads in order, and which frames at what size a view is."""


def merge_graphs(encoder: onnx.ModelProto, head: onnx.ModelProto, clip: ClipSpec) -> onnx.ModelProto:
    """Return both graphs as one, checked."""
    encoder, head = (_copy(model) for model in (encoder, head))
    _name_views_axis(encoder)
    merged: onnx.ModelProto = onnx.compose.merge_models(
        onnx.compose.add_prefix(encoder, "encoder/", rename_inputs=False, rename_outputs=False),
        onnx.compose.add_prefix(head, "head/", rename_inputs=False, rename_outputs=False),
        io_map=[(FEATURES, FEATURES)],
        outputs=list(OUTPUTS),
        producer_name=PRODUCER,
        producer_version="",
    )
    merged.graph.name = "model"
    labels = {str(name): list(names) for name, names in VOCABULARIES.items()}
    onnx.helper.set_model_props(merged, {"labels": json.dumps(labels), "clip": json.dumps(clip.to_json())})
    onnx.checker.check_model(merged, full_check=True)
    return merged


def write_merged(directory: Path, clip: ClipSpec) -> onnx.ModelProto:
    """Write model.onnx from the graphs in `directory`."""
    merged = merge_graphs(onnx.load(directory / ENCODER), onnx.load(directory / HEAD), clip)
    (directory / MERGED).write_bytes(merged.SerializeToString(deterministic=True))
    return merged


def merged_spec(clip: ClipSpec) -> GraphSpec:
    """Return what model.onnx must look like."""
    shapes: Mapping[str, tuple[int | str, ...]] = {
        ACTION_PROBABILITIES: (len(ACTION_CLASSES),),
        OFFENCE_SEVERITY_PROBABILITIES: (len(OFFENCE_SEVERITIES),),
        VIEW_WEIGHTS: ("V",),
    }
    return GraphSpec(
        MERGED,
        (TensorSpec(VIEWS, "uint8", ("V", *clip.view_shape)),),
        tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items()),
    )


def check_merged(
    path: Path, reference: Runner, batches: Iterable[ViewBatch], tolerance: Tolerance, precision: Precision
) -> tuple[Check, ...]:
    """Compare model.onnx with the reference, action by action: names, axes, dtypes, probabilities.

    View weights have the slack that they have in the self-test (`mvfoul.artifact.golden_limit`) in float32; with an
    encoder of lower precision only probabilities are judged.
    """
    session = onnx_session(path)
    differences = {name: Difference() for name in (OUTPUTS if precision == "fp32" else OUTPUTS[:2])}
    for batch in batches:
        for start, stop in pairwise(np.cumsum((0, *batch.view_counts))):
            views = batch.views[start:stop]
            right = reference.classify(reference.encode(views)[FEATURES])
            found = _answers(session, views)
            for name, difference in differences.items():
                difference.add(found[name], right[name], f"{batch.name}, views {start}-{stop - 1}")
    found_spec = spec_of(MERGED, session)
    return (
        *structure_checks(_spec_like(reference, found_spec), found_spec),
        *(_merged_check(name, difference, tolerance, precision) for name, difference in differences.items()),
    )


def _merged_check(name: str, difference: Difference, tolerance: Tolerance, precision: Precision) -> Check:
    if precision != "fp32":
        return value_check(f"{MERGED} {name}", difference, "min_cosine", tolerance.cosine(precision))
    return value_check(f"{MERGED} {name}", difference, "max_abs", golden_limit(tolerance.probabilities, name))


def _spec_like(reference: Runner, found: GraphSpec) -> GraphSpec:
    """Return the promise of the merged graph, from those of the two that it is made of."""
    encoder, head = reference.graphs
    outputs = {tensor.name: tensor for tensor in head.outputs}
    views = encoder.inputs[0]
    axis = TensorSpec(views.name, views.dtype, ("V", *views.shape[1:]))
    return GraphSpec(found.file, (axis,), tuple(outputs[name] for name in OUTPUTS))


def _answers(session: onnxruntime.InferenceSession, views: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {VIEWS: views}), strict=True))


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _name_views_axis(encoder: onnx.ModelProto) -> None:
    """Call the encoder's N what it is here, V: all views of one action."""
    graph = encoder.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param == "N":
                axis.dim_param = "V"
