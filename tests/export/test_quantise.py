"""The encoder in 8-bit integers."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.batches import generated_batches
from export.config import DataConfig, ExportConfig, Tolerance
from export.pipeline import export_checkpoint
from export.quantise import products_of_activations, quantise_encoder
from mvfoul.artifact import ENCODER, HEAD, load_artifact
from mvfoul.errors import ConfigError
from serving.graphs import OnnxGraphs
from serving.openvino_graphs import OpenVinoGraphs


@pytest.fixture(scope="module")
def outcome(tiny_checkpoint, tmp_path_factory):
    target = tmp_path_factory.mktemp("int8") / "artifact"
    # The weights are random, so neighbouring classes differ by less than the step of an 8-bit number.
    config = ExportConfig(ckpt=tiny_checkpoint, output=target, int8=True, tolerance=Tolerance(undecided_margin=0.02))
    return export_checkpoint(config)


def test_the_published_encoder_is_int8_a_quarter_of_the_size_and_the_head_is_float32(outcome, tiny_artifact):
    assert outcome.artifact is not None, [check.failures for check in outcome.report.failed]
    artifact = load_artifact(outcome.directory)
    assert artifact.manifest.precision == "int8"
    encoder, head = (onnx.load(outcome.directory / file) for file in (ENCODER, HEAD))
    kernels = [tensor for tensor in encoder.graph.initializer if len(tensor.dims) == 5 and tensor.dims[0] > 1]
    assert {tensor.data_type for tensor in kernels} == {onnx.TensorProto.INT8}
    integers = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    assert integers.isdisjoint(tensor.data_type for tensor in head.graph.initializer)
    sizes = [(folder / ENCODER).stat().st_size for folder in (outcome.directory, tiny_artifact)]
    assert sizes[0] < 0.3 * sizes[1]


def test_each_output_channel_has_its_own_scale(outcome):
    encoder = onnx.load(outcome.directory / ENCODER)
    lengths = {tensor.name: tensor.dims for tensor in encoder.graph.initializer}
    kernels = [
        n for n in encoder.graph.node if n.op_type == "DequantizeLinear" and len(lengths.get(n.input[0], ())) == 5
    ]
    assert len(kernels) == 20
    assert all(list(lengths[n.input[1]]) == [lengths[n.input[0]][0]] for n in kernels)


@pytest.mark.parametrize("engine", [OnnxGraphs, OpenVinoGraphs])
def test_both_engines_of_the_server_pass_the_self_test_of_an_int8_artifact(outcome, engine):
    artifact = load_artifact(outcome.directory)
    engine(artifact, threads=1).self_test(artifact)


def test_generated_clips_are_named_as_a_poor_calibration(tiny_checkpoint, tmp_path, capsys):
    export_checkpoint(ExportConfig(ckpt=tiny_checkpoint, output=tmp_path / "artifact", int8=True))
    assert "WARNING: calibrated on generated clips" in capsys.readouterr().out


def test_quantising_again_gives_the_same_bytes_and_leaves_the_log_level(source, tiny_artifact):
    encoder = onnx.load(tiny_artifact / ENCODER)
    views = [batch.views for batch in generated_batches(source.network.clip)]
    level = logging.getLogger().level
    first, second = (quantise_encoder(encoder, views).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert logging.getLogger().level == level


def test_no_clips_to_calibrate_on_are_refused(source, tiny_artifact):
    empty = np.zeros((0, *source.network.clip.view_shape), np.uint8)
    with pytest.raises(ConfigError, match="needs clips"):
        quantise_encoder(onnx.load(tiny_artifact / ENCODER), [empty])


def test_products_without_a_weight_stay_float32():
    helper = onnx.helper
    float32 = onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"], name="by weight"),
        helper.make_node("MatMul", ["q", "x"], ["y"], name="of activations"),
    ]
    weight = onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    tensors = [[helper.make_tensor_value_info(name, float32, [2, 2])] for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", *tensors, [weight]))
    assert products_of_activations(model) == ["of activations"]


def test_an_int8_encoder_that_is_too_far_off_is_not_published(tiny_checkpoint, tmp_path):
    strict = Tolerance(int8_cosine=1.0)
    outcome = export_checkpoint(
        ExportConfig(ckpt=tiny_checkpoint, output=tmp_path / "artifact", int8=True, tolerance=strict)
    )
    assert outcome.artifact is None
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"fp16": True}, "--int8 is for CPUs and --fp16 for GPUs"),
        ({"int8": False, "calibration_split": "train"}, "add --int8"),
        ({"calibration_split": "train"}, "add --int8, --data.root"),
        ({"data": DataConfig(root=Path("data")), "split": "valid"}, "both 'valid'"),
    ],
)
def test_flags_that_contradict_int8_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        ExportConfig(ckpt=Path("best.pth.tar"), **{"int8": True, **flags})
