"""--bisect names the layer that a fault was planted in, and no other."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.__main__ import main
from export.batches import golden_views
from export.bisect import bisect, bisection_lines
from export.config import Tolerance
from export.to_onnx import export_encoder
from mvfoul.artifact import ENCODER, HEAD


@pytest.fixture
def folder(tiny_artifact, tmp_path):
    for name in (ENCODER, HEAD):
        shutil.copy(tiny_artifact / name, tmp_path / name)
    return tmp_path


def _bisect(source, folder, precision="fp32"):
    return bisect(
        source.network,
        source.checkpoint.temperatures,
        folder,
        golden_views(source.network.clip),
        tolerance=Tolerance(),
        precision=precision,
    )


def _plant(path, layer, change):
    """Change a layer's weights in the graph."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == f"{layer}.weight")
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(model, path)


def test_a_faithful_graph_has_no_layer_that_diverges(source, folder):
    found = _bisect(source, folder)
    assert found.first is None
    assert len(found.layers) > 40
    assert {"backbone.network.stem", "backbone.network.layer4.1"} <= {layer.layer for layer in found.layers}
    assert "the error builds up over many" in next(bisection_lines(found))


@pytest.mark.parametrize(
    ("file", "layer"),
    [
        (ENCODER, "backbone.network.layer1.0.conv1.0"),
        (ENCODER, "backbone.network.layer3.1.conv2.0"),
        (HEAD, "network.action_head.1"),
    ],
)
def test_exactly_the_layer_with_the_fault_is_named(source, folder, file, layer):
    _plant(folder / file, layer, lambda weights: weights * np.float32(1.01))
    found = _bisect(source, folder)
    assert found.first is not None
    assert (found.first.graph, found.first.layer) == (file, layer)
    assert found.last_good is not None
    assert found.last_good.max_relative < 1e-5
    lines = list(bisection_lines(found))
    assert lines[0] == f"The first layer that diverges: {layer} ({file})"
    assert any(line.endswith("<- first") for line in lines)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["first"] == layer


def test_an_overflow_in_float16_is_found_where_it_happens(source, folder):
    encoder = export_encoder(source.network, opset=18, precision="fp16")
    (folder / ENCODER).write_bytes(encoder.SerializeToString())
    assert _bisect(source, folder, "fp16").first is None
    layer = "backbone.network.layer2.0.conv2.0"
    _plant(folder / ENCODER, layer, lambda weights: np.full_like(weights, 6e4))
    found = _bisect(source, folder, "fp16")
    assert found.first is not None
    assert found.first.layer == layer
    assert found.to_json()["layers"][found.layers.index(found.first)]["max_abs"] is None, "it is not finite"


def test_the_flag_writes_it_beside_the_evidence(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    flags = ["--ckpt", tiny_checkpoint, "--output", tmp_path / "artifact", "--tolerance.logits", "1e-12", "--bisect"]
    monkeypatch.setattr("sys.argv", ["export", *map(str, flags)])
    assert main() == 3
    (work,) = tmp_path.iterdir()
    document = json.loads((work / "bisect.json").read_text())
    assert document["first"] is None
    assert "No layer is beyond 0.0001 relative" in capsys.readouterr().out
