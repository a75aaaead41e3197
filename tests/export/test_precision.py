from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.config import ExportConfig
from export.graphs import EncoderGraph
from export.pipeline import export_checkpoint
from export.precision import HalfEncoderGraph, fold_batch_norms, half_backbone
from export.runners import OnnxRunner
from export.to_onnx import export_encoder
from mvfoul.artifact import ENCODER, FEATURES, HEAD, VIEWS, load_artifact
from mvfoul.clip import preset
from training.checkpoint import save_checkpoint
from training.model.network import FoulNetwork

SMALLEST = {"mvit_v2_s": (2, 32), "r3d_18": (1, 16), "r2plus1d_18": (1, 16), "mc3_18": (1, 16), "s3d": (8, 32)}


def _network(backbone: str) -> FoulNetwork:
    frames, size_px = SMALLEST[backbone]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = FoulNetwork(backbone, "max", clip=preset("two-second", num_frames=frames, size_px=size_px))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                # Fresh ones are the identity, and folding an identity hides mistakes.
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.2, 0.2)
    return network.eval()


def _views(network: FoulNetwork, n: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, *network.clip.view_shape), dtype=np.uint8))


@pytest.mark.parametrize("backbone", SMALLEST)
def test_every_backbone_points_the_same_way_in_half_precision(backbone):
    network = _network(backbone)
    views = _views(network, 2)
    with torch.inference_mode():
        half = HalfEncoderGraph(EncoderGraph(network)).eval()(views)
        full = network.encode(views)
    assert half.dtype == torch.float32
    assert torch.cosine_similarity(half, full).min() > 0.999
    assert not torch.equal(half, full)


@pytest.mark.parametrize("backbone", ["mc3_18", "r2plus1d_18", "s3d"])
def test_folding_batch_norms_changes_no_answer_and_leaves_none(backbone):
    network = _network(backbone)
    clips = network.normalise(_views(network, 2))
    with torch.inference_mode():
        before = network.backbone(clips)
        fold_batch_norms(network.backbone)
        after = network.backbone(clips)
    assert not [m for m in network.backbone.modules() if isinstance(m, nn.BatchNorm3d)]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_layer_norms_stay_float32_and_every_other_weight_is_float16():
    half = half_backbone(_network("mvit_v2_s").backbone)
    norms = [m for m in half.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) > 50
    of_norms = {id(p) for norm in norms for p in norm.parameters()}
    for name, parameter in half.named_parameters():
        assert parameter.dtype == (torch.float32 if id(parameter) in of_norms else torch.float16), name


def test_making_the_half_leaves_the_network_as_it_was():
    network = _network("mc3_18")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    half_backbone(network.backbone)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_backbone_without_a_rule_is_refused():
    with pytest.raises(TypeError, match="Linear has no rule for half precision"):
        half_backbone(nn.Linear(2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", SMALLEST)
def test_every_half_encoder_runs_in_onnx_runtime(backbone, tmp_path):
    network = _network(backbone)
    onnx.save(export_encoder(network, opset=18, precision="fp16"), tmp_path / ENCODER)
    onnx.save(export_encoder(network, opset=18), tmp_path / HEAD)  # any graph: only the encoder runs
    views = _views(network, 3)
    found = torch.from_numpy(OnnxRunner(tmp_path).encode(views.numpy())[FEATURES])
    with torch.inference_mode():
        expected = network.encode(views)
    assert torch.cosine_similarity(found, expected).min() > 0.999


def test_the_export_publishes_a_float16_encoder_and_a_float32_head(tiny_checkpoint, tmp_path, capsys):
    outcome = export_checkpoint(ExportConfig(ckpt=tiny_checkpoint, output=tmp_path / "artifact", fp16=True))
    assert outcome.artifact is not None, outcome.report.failed
    assert load_artifact(tmp_path / "artifact").manifest.precision == "fp16"
    encoder, head = (onnx.load(tmp_path / "artifact" / file) for file in (ENCODER, HEAD))
    assert {t.data_type for t in encoder.graph.initializer if len(t.dims) == 5 and t.dims[0] > 1} == {
        onnx.TensorProto.FLOAT16
    }
    assert onnx.TensorProto.FLOAT16 not in {t.data_type for t in head.graph.initializer}
    runner = OnnxRunner(tmp_path / "artifact")
    golden = outcome.artifact.golden()
    assert runner.encode(golden[VIEWS])[FEATURES].dtype == np.float32
    assert "No TensorRT plan was built" in capsys.readouterr().out


def test_weights_that_overflow_float16_are_found_and_not_published(source, tmp_path):
    state = {name: tensor.clone() for name, tensor in source.checkpoint.state_dict.items()}
    state["backbone.network.layer4.1.conv2.0.weight"] *= 1e7
    save_checkpoint(tmp_path / "best.pth.tar", replace(source.checkpoint, state_dict=state))
    outcome = export_checkpoint(ExportConfig(ckpt=tmp_path / "best.pth.tar", fp16=True))
    assert outcome.artifact is None
    assert not (tmp_path / "artifact").exists()
    parity = json.loads((outcome.directory / "parity.json").read_text())
    features = next(check for check in parity["checks"] if check["name"] == FEATURES)
    assert "not finite" in features["failures"][0]
