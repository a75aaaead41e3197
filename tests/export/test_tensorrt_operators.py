"""Whether TensorRT's ONNX parser knows what is in our float16 encoders, by its own table.

https://github.com/onnx/onnx-tensorrt/blob/10.1-GA/docs/operators.md; the rows that our graphs need.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import pytest
import torch
from onnx import TensorProto

from export.to_onnx import export_encoder
from mvfoul.artifact import VIEWS
from mvfoul.clip import preset
from training.model.network import FoulNetwork

SUPPORTED = {
    *("Add", "Cast", "Concat", "Constant", "Conv", "Div", "Einsum", "Erf", "Expand", "Gather", "Gemm", "Identity"),
    *("LayerNormalization", "MatMul", "MaxPool", "Mul", "Pad", "ReduceMean", "Relu", "Reshape", "Shape", "Sigmoid"),
    *("Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze"),
}
AXES_INPUT = {"Pad": 3, "ReduceMean": 1, "Slice": 3, "Squeeze": 1, "Unsqueeze": 1}
"""The input that must be a constant, where there is one."""
BACKBONES = ("mc3_18", "r3d_18", "r2plus1d_18", "s3d", "mvit_v2_s")


def breaches(graph: onnx.GraphProto) -> Iterator[str]:
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    doubles = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.DOUBLE}
    for node in graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        axes = node.input[AXES_INPUT[node.op_type]] if len(node.input) > AXES_INPUT.get(node.op_type, 99) else ""
        if node.op_type not in SUPPORTED:
            yield f"{node.name}: {node.op_type} is not in the table"
        if axes and axes not in constants:
            yield f"{node.name}: axes must be constant"
        if node.op_type == "MaxPool" and (len(node.output) > 1 or set(attributes.get("dilations", _Ones).ints) - {1}):
            yield f"{node.name}: indices or dilations"
        if node.op_type == "LayerNormalization" and len([name for name in node.output if name]) > 1:
            yield f"{node.name}: only the first output"
        if node.op_type == "Einsum" and b"..." in attributes["equation"].s:
            yield f"{node.name}: ellipsis"
        if VIEWS in node.input and node.op_type != "Cast":
            yield f"{node.name}: uint8 must be cast first"
        if doubles & set(node.input):
            yield f"{node.name}: float64 is cut down to float32"


class _Ones:
    ints = (1,)


def _slow_where_large(name: str):
    return pytest.param(name, marks=pytest.mark.slow) if name in ("mvit_v2_s", "s3d") else name


@pytest.mark.parametrize("backbone", [_slow_where_large(name) for name in BACKBONES])
def test_every_operator_of_a_float16_encoder_is_one_that_tensorrt_parses(backbone):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = preset("two-second", num_frames=16, size_px=64 if backbone in ("mvit_v2_s", "s3d") else 16)
        network = FoulNetwork(backbone, "max", clip=clip).eval()
    assert not list(breaches(export_encoder(network, opset=18, precision="fp16").graph))


def test_what_tensorrt_does_not_parse_is_found():
    helper = onnx.helper
    nodes = [
        helper.make_node("Squeeze", ["x", "axes"], ["y"], name="a"),
        helper.make_node("MaxPool", ["y"], ["z", "indices"], name="b", kernel_shape=[2, 2]),
        helper.make_node("Einsum", ["z"], ["w"], name="c", equation="...i->..."),
        helper.make_node("NonMaxSuppression", [VIEWS], ["v"], name="d"),
    ]
    found = list(breaches(helper.make_graph(nodes, "g", [], [])))
    assert [sentence.split(":")[0] for sentence in found] == ["a", "b", "c", "d", "d"]
