"""Three ways to a float16 encoder, by numbers: ModelOpt AutoCast, onnxconverter-common, and export/precision.py.

    python benchmarks/half_precision.py [--frames 8] [--size 64] [--backbones mvit_v2_s ...]

Each graph runs in ONNX Runtime on the CPU and is compared with PyTorch in float32: features and logits on generated
clips, and again with a network whose first layer answers 30,000 times as large (what a strange checkpoint may do).
A tool that is not installed is skipped with its reason. The tools are in no extra of this project: they bring
their own versions of onnx and onnxruntime. Install them in a virtual environment of their own:
    pip install "nvidia-modelopt[onnx]==0.47.0" onnxconverter-common==1.16.0
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from export.batches import generated_batches
from export.runners import OnnxRunner
from export.to_onnx import export_encoder, export_head
from export.torch_runner import TorchRunner
from mvfoul.artifact import ACTION_LOGITS, ENCODER, FEATURES, HEAD
from mvfoul.clip import preset
from training.model.names import BACKBONE_NAMES
from training.model.network import FoulNetwork

LOUD = 30_000.0


def by_project(network: FoulNetwork, _: Path) -> onnx.ModelProto:
    return export_encoder(network, opset=18, precision="fp16")


def by_autocast(network: FoulNetwork, folder: Path) -> onnx.ModelProto:
    from modelopt.onnx.autocast import convert_to_mixed_precision

    path = folder / "float.onnx"
    onnx.save(export_encoder(network, opset=18), path)
    views = generated_batches(network.clip)[0].views
    np.savez(folder / "clips.npz", VIEWS=views)
    return convert_to_mixed_precision(
        str(path), low_precision_type="fp16", keep_io_types=True, calibration_data=str(folder / "clips.npz")
    )


def by_onnxconverter(network: FoulNetwork, _: Path) -> onnx.ModelProto:
    from onnxconverter_common.float16 import convert_float_to_float16

    return convert_float_to_float16(export_encoder(network, opset=18), keep_io_types=True)


WAYS: dict[str, Callable[[FoulNetwork, Path], onnx.ModelProto]] = {
    "export/precision.py": by_project,
    "ModelOpt AutoCast": by_autocast,
    "onnxconverter-common": by_onnxconverter,
}


def build(backbone: str, flags: argparse.Namespace, *, loud: bool) -> FoulNetwork:
    torch.manual_seed(0)
    clip = preset("two-second", num_frames=max(flags.frames, 16 if backbone == "s3d" else 0), size_px=flags.size)
    network = FoulNetwork(backbone, "attention", clip=clip).eval()
    if loud:
        first = next(m for m in network.backbone.modules() if isinstance(m, nn.Conv3d))
        with torch.no_grad():
            first.weight *= LOUD
    return network


def compare(network: FoulNetwork, folder: Path) -> tuple[float, float, float, int]:
    """Return the worst cosines of features and action logits, the largest relative error, and answers not finite."""
    reference, candidate = TorchRunner(network, dict.fromkeys(("action", "offence_severity"), 1.0)), OnnxRunner(folder)
    cosines, errors, broken = [], [], 0
    for batch in generated_batches(network.clip):
        right, found = reference.encode(batch.views)[FEATURES], candidate.encode(batch.views)[FEATURES]
        if not np.isfinite(found).all():
            broken += 1
            continue
        logits = [runner.classify(x[:5])[ACTION_LOGITS] for runner, x in ((reference, right), (candidate, found))]
        features = min(cosine(a, b) for a, b in zip(right, found, strict=True))
        cosines.append((features, cosine(*logits)))
        errors.append(float(np.abs(found - right).max() / np.abs(right).max()))
    worst = np.array(cosines).min(axis=0) if cosines else (np.nan, np.nan)
    return float(worst[0]), float(worst[1]), max(errors, default=np.nan), broken


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def row(backbone: str, way: str, flags: argparse.Namespace, *, loud: bool) -> str:
    network = build(backbone, flags, loud=loud)
    name = f"| {backbone}{' x30000' if loud else ''} | {way} |"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            model = WAYS[way](network, folder)
        except ImportError as error:
            return f"{name} skipped: {error} |"
        except Exception as error:  # noqa: BLE001  # a converter may raise anything; the table says what
            return f"{name} cannot convert: {type(error).__name__}: {' '.join(str(error).split())[:120]} |"
        (folder / ENCODER).write_bytes(model.SerializeToString())
        (folder / HEAD).write_bytes(
            export_head(network, dict.fromkeys(("action", "offence_severity"), 1.0), opset=18).SerializeToString()
        )
        facts = (
            f"{sum(n.op_type == 'Cast' for n in model.graph.node)} | {(folder / ENCODER).stat().st_size / 1e6:.1f} MB"
        )
        try:
            features, logits, error, broken = compare(network, folder)
        except Exception as failure:  # noqa: BLE001  # as above, for the engine
            return f"{name} does not load or run: {' '.join(str(failure).split())[:160]} | {facts} |"
        strict = strongly_typed(model)
        return f"{name} {features:.6f} | {logits:.6f} | {error:.1e} | {broken} | {facts} | {strict} |"


def strongly_typed(model: onnx.ModelProto) -> str:
    """Return whether strict type inference accepts the graph, as a strongly typed builder would."""
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:  # noqa: BLE001  # onnx's errors have no common base
        return f"no: {' '.join(str(error).split())[:80]}"
    return "yes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONE_NAMES), choices=BACKBONE_NAMES)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    flags = parser.parse_args()
    print(
        "| backbone | way | features' cosine | logits' cosine | error / largest | not finite | casts | file | typed |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for backbone in flags.backbones:
        for loud in (False, True):
            for way in flags.ways:
                print(row(backbone, way, flags, loud=loud), flush=True)


if __name__ == "__main__":
    main()
