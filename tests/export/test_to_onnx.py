from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from export.config import MAX_OPSET
from export.runners import graph_specs
from export.to_onnx import HEAD_OUTPUTS, export_encoder, export_head
from export.torch_runner import TorchRunner
from mvfoul.artifact import FEATURES, VIEW_WEIGHTS, VIEWS
from mvfoul.clip import preset
from training.model.network import FoulNetwork

# The smallest clips that each backbone takes; MViT at 32 px has a single token left in its last stage.
SMALLEST = {
    "mvit_v2_s": (2, 64),
    "r3d_18": (2, 32),
    "r2plus1d_18": (2, 32),
    "mc3_18": (2, 32),
    "s3d": (8, 32),
}
FULL_SIZE = (16, 224)
TEMPERATURES = {"action": 1.7, "offence_severity": 0.6}


def _network(backbone: str, aggregation: str = "max", *, size: tuple[int, int] | None = None) -> FoulNetwork:
    frames, size_px = size or SMALLEST[backbone]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = FoulNetwork(
            backbone, aggregation, clip=preset("two-second", num_frames=frames, size_px=size_px), dropout=0.5
        )
        _settle(network)
    return network.eval()


def _settle(network: FoulNetwork) -> None:
    """Give normalisation layers statistics and scales of their own: fresh ones are the identity and hide mistakes."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, (nn.BatchNorm3d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _check_encoder(network: FoulNetwork, sizes: tuple[int, ...]) -> None:
    session = _session(export_encoder(network, opset=18))
    promised, _ = graph_specs(network.clip, network.feature_dim)
    tensors = [(tensor.name, tuple(tensor.shape)) for tensor in (*session.get_inputs(), *session.get_outputs())]
    assert tensors == [(tensor.name, tensor.shape) for tensor in (*promised.inputs, *promised.outputs)]
    views = np.random.default_rng(0).integers(0, 256, (max(sizes), *network.clip.view_shape), dtype=np.uint8)
    for n in sizes:
        (found,) = session.run(None, {VIEWS: views[:n]})
        expected = TorchRunner(network, TEMPERATURES).encode(views[:n])[FEATURES]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("backbone", SMALLEST)
def test_every_backbone_exports_with_a_dynamic_number_of_views(backbone):
    _check_encoder(_network(backbone), sizes=(1, 2, 5))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backbone", SMALLEST)
def test_every_backbone_exports_at_full_size(backbone):
    _check_encoder(_network(backbone, size=FULL_SIZE), sizes=(1, 2))


@pytest.mark.parametrize(
    ("backbone", "aggregation"),
    [("mc3_18", "max"), ("mc3_18", "mean"), ("mc3_18", "attention"), ("s3d", "attention"), ("mvit_v2_s", "attention")],
)
def test_every_aggregation_exports_with_a_dynamic_number_of_views(backbone, aggregation):
    network = _network(backbone, aggregation)
    session = _session(export_head(network, TEMPERATURES, opset=18))
    assert [output.name for output in session.get_outputs()] == list(HEAD_OUTPUTS)
    rng = np.random.default_rng(0)
    for views in (1, 2, 5, 7):
        features = rng.standard_normal((views, network.feature_dim), dtype=np.float32)
        found = dict(zip(HEAD_OUTPUTS, session.run(list(HEAD_OUTPUTS), {FEATURES: features}), strict=True))
        expected = TorchRunner(network, TEMPERATURES).classify(features)
        for name in HEAD_OUTPUTS:
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=2e-5, err_msg=f"{name} at V={views}")


def test_a_head_of_features_that_are_all_zero_gives_uniform_weights():
    session = _session(export_head(_network("mc3_18", "attention"), TEMPERATURES, opset=18))
    (weights,) = session.run([VIEW_WEIGHTS], {FEATURES: np.zeros((4, 512), np.float32)})
    np.testing.assert_allclose(weights, 0.25)


def test_the_same_network_gives_the_same_bytes_without_a_trace_of_the_machine():
    network = _network("mc3_18", "attention")
    for export in (lambda: export_encoder(network, opset=18), lambda: export_head(network, TEMPERATURES, opset=18)):
        first, second = (export() for _ in range(2))
        assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
        assert not [n.name for n in first.graph.node if n.metadata_props or n.doc_string]
        assert not first.metadata_props
        assert len({n.name for n in first.graph.node}) == len(first.graph.node)


def test_nodes_are_named_by_the_layer_that_they_come_from():
    names = [node.name for node in export_encoder(_network("mc3_18"), opset=18).graph.node]
    assert any(name.startswith("backbone.network.layer4.1.") for name in names)


def test_the_newest_opset_is_written_where_it_is_asked_for():
    network = _network("mc3_18")
    for model in (export_encoder(network, opset=MAX_OPSET), export_head(network, TEMPERATURES, opset=MAX_OPSET)):
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", MAX_OPSET)]
        _session(model)
