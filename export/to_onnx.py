"""The network as two ONNX graphs.

    encoder   VIEWS uint8 [N,3,T,H,W] -> FEATURES f32 [N,D]                     N dynamic
    head      FEATURES f32 [V,D]      -> the tensors of `HEAD_OUTPUTS`          V dynamic; one action, no padding

The same network gives the same bytes, in any process: names come from the network's structure, and what the exporter
notes of the machine (paths, stack traces) is removed.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import onnx
import torch
from torch import Tensor, nn

from export.config import Precision
from export.graphs import EncoderGraph, HeadGraph
from export.precision import HalfEncoderGraph
from mvfoul.artifact import (
    ACTION_LOGITS,
    ACTION_PROBABILITIES,
    FEATURES,
    OFFENCE_SEVERITY_LOGITS,
    OFFENCE_SEVERITY_PROBABILITIES,
    VIEW_WEIGHTS,
    VIEWS,
)
from mvfoul.errors import ConfigError
from training.model.network import FoulNetwork

HEAD_OUTPUTS: Final = (
    ACTION_LOGITS,
    OFFENCE_SEVERITY_LOGITS,
    ACTION_PROBABILITIES,
    OFFENCE_SEVERITY_PROBABILITIES,
    VIEW_WEIGHTS,
)
PRODUCER: Final = "vars-platform"

# torch.export takes an axis of length 0 or 1 in the example for a constant; any other length stays dynamic.
_EXAMPLE_LENGTH = 2
_CHATTY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def export_encoder(network: FoulNetwork, *, opset: int, precision: Precision = "fp32") -> onnx.ModelProto:
    """Export `network.encode`; the network must be in evaluation mode, on the CPU.

    Raises:
        ConfigError: The network cannot be written in this opset.
    """
    views = torch.zeros(_EXAMPLE_LENGTH, *network.clip.view_shape, dtype=torch.uint8)
    encoder = EncoderGraph(network)
    graph = (HalfEncoderGraph(encoder) if precision == "fp16" else encoder).eval()
    return _export(graph, views, axis="N", names=(VIEWS, (FEATURES,)), opset=opset)


def export_head(network: FoulNetwork, temperatures: Mapping[str, float], *, opset: int) -> onnx.ModelProto:
    """Export `network.classify` for one action.

    Args:
        network: In evaluation mode, on the CPU.
        temperatures: By head; baked in as probabilities = softmax(logits / temperature).
        opset: ONNX operator set.

    Raises:
        ConfigError: The network cannot be written in this opset.
    """
    features = torch.zeros(_EXAMPLE_LENGTH, network.feature_dim)
    graph = HeadGraph(network, temperatures).eval()
    return _export(graph, features, axis="V", names=(FEATURES, HEAD_OUTPUTS), opset=opset)


def _export(
    module: nn.Module, example: Tensor, *, axis: str, names: tuple[str, Sequence[str]], opset: int
) -> onnx.ModelProto:
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=[names[0]],
            output_names=list(names[1]),
            dynamic_shapes=({0: torch.export.Dim(axis, min=1)},),
            opset_version=opset,
            verbose=False,
        )
    assert program is not None  # noqa: S101  # None only where a file name is given in the old exporter
    model: onnx.ModelProto = program.model_proto
    # Where an operator has no newer form, the exporter's converter gives up without an error.
    if (written := {entry.domain: entry.version for entry in model.opset_import}.get("")) != opset:
        raise ConfigError(
            f"--opset {opset}: this network can only be written in opset {written}. Use --opset {written}."
        )
    _cast_pixels_first(model.graph)
    _make_reproducible(model)
    onnx.checker.check_model(model, full_check=True)
    return model


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what torch's exporter says on every export; its errors still raise."""
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            # Deprecations inside torch and onnxscript, which no user of ours can act on.
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _cast_pixels_first(graph: onnx.GraphProto) -> None:
    """Take the shape of the cast pixels where the exporter takes that of the pixels, which is the same.

    TensorRT's Shape knows no uint8; in MViT the exporter asks the input itself for N.
    https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/operators/Shape.html
    """
    pixels = {port.name for port in graph.input if port.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    casts = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "Cast" and node.input[0] in pixels}
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] in casts:
            node.input[0] = casts[node.input[0]]
    graph.node.sort(
        key=lambda node: node.op_type != "Cast" or node.input[0] not in casts
    )  # stable: the casts come first


def _make_reproducible(model: onnx.ModelProto) -> None:
    """Remove traces of the machine, and name the nodes by the layer that they come from."""
    model.producer_name, model.producer_version = PRODUCER, ""
    for index, node in enumerate(model.graph.node):
        node.name = f"{_layer(node)}/{node.op_type}_{index}"
    for message in _messages(model):
        message.ClearField("doc_string")
        del message.metadata_props[:]


def _layer(node: onnx.NodeProto) -> str:
    """Return the module that a node comes from, such as "backbone.network.stem.0"; empty where it is not known."""
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
    modules = ast.literal_eval(scopes)[:-1]  # the last one is the operator
    return modules[-1] if modules else ""


def _messages(model: onnx.ModelProto) -> Iterable[Any]:
    """Yield every message of a model that can carry documentation and metadata."""
    yield model
    yield from model.functions
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        yield graph
        yield from (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
        for node in graph.node:
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs
