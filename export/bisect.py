"""`--bisect`: which layer is the first whose answer is not PyTorch's.

The exporter names each node by the module that it comes from, and each weight by its place. So the tensor that a module
answers with is the output of the last node that carries its name, or of the node that uses its weight; it is made an
output of the graph and compared with what a hook on the module saw.

What this does not cover: operations between modules (an addition in a block's own code) belong to no leaf. A fault
there shows in the next module, so the last layer that still agrees is named too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.config import Precision, Tolerance
from export.graphs import EncoderGraph, HeadGraph
from export.precision import fold_batch_norms
from mvfoul.artifact import ENCODER, FEATURES, HEAD, VIEWS, without_nan
from training.model.backbone import S3DFeatures
from training.model.network import FoulNetwork

_SHOWN_AROUND = 4


@dataclass(frozen=True)
class LayerError:
    """How far one layer's answer is from PyTorch's, on the same pixels."""

    graph: str
    layer: str
    max_abs: float
    max_relative: float
    """With respect to the largest absolute value of the layer's answer."""
    cosine: float
    """Of the whole answer."""
    diverges: bool


@dataclass(frozen=True)
class Bisection:
    """Layers in the order of computation."""

    layers: tuple[LayerError, ...]
    limit: str
    not_compared: tuple[str, ...]
    """Modules of PyTorch without a tensor of the same shape in the graph: folded, fused or rewritten."""

    @property
    def first(self) -> LayerError | None:
        """The first layer that diverges."""
        return next((layer for layer in self.layers if layer.diverges), None)

    @property
    def last_good(self) -> LayerError | None:
        """The layer before the first one that diverges; None where it is the very first."""
        index = next((i for i, layer in enumerate(self.layers) if layer.diverges), 0)
        return self.layers[index - 1] if index else None

    @property
    def largest_step(self) -> LayerError | None:
        """Where the relative error grows most from one layer to the next, as a factor; None for less than two."""
        pairs = zip(self.layers, self.layers[1:], strict=False)
        growth = [(b.max_relative / max(a.max_relative, 1e-9), i) for i, (a, b) in enumerate(pairs)]
        return self.layers[max(growth)[1] + 1] if growth else None

    def to_json(self) -> dict[str, Any]:
        """Return what bisect.json holds; a figure that is not finite is None."""
        first = self.first
        return {
            "limit": self.limit,
            "first": first.layer if first else None,
            "layers": [without_nan(asdict(layer)) for layer in self.layers],
            "not_compared": list(self.not_compared),
        }


def bisect(
    network: FoulNetwork,
    temperatures: Mapping[str, float],
    directory: Path,
    views: NDArray[np.uint8],
    *,
    tolerance: Tolerance,
    precision: Precision,
) -> Bisection:
    """Compare both graphs of `directory` with the network, layer by layer, on views `[N, 3, T, H, W]`.

    The head is given PyTorch's features; it is judged as float32.
    """
    encoder, head = EncoderGraph(network).eval(), HeadGraph(network, temperatures).eval()
    pixels = torch.from_numpy(views).clone()
    with torch.inference_mode():
        features = encoder(pixels)
    parts: list[tuple[str, nn.Module, Tensor, str, Precision]] = [
        (ENCODER, encoder, pixels, VIEWS, precision),
        (HEAD, head, features, FEATURES, "fp32"),
    ]
    layers: list[LayerError] = []
    skipped: list[str] = []
    for file, module, given, name, judged_as in parts:
        model = onnx.load(directory / file)
        expected = _module_answers(_like(module, model), given)
        tensors = _layer_tensors(model, s3d=isinstance(network.backbone, S3DFeatures) and judged_as == "fp16")
        found = _graph_answers(model, list(tensors.values()), {name: given.numpy()})
        layers += _compared(file, expected, tensors, found, tolerance, judged_as)
        compared = {layer.layer for layer in layers if layer.graph == file}
        skipped += [f"{file}: {layer}" for layer in expected if layer not in compared]
    return Bisection(tuple(layers), _limit(tolerance, precision), tuple(skipped))


def bisection_lines(found: Bisection) -> Iterator[str]:
    """Return what is printed: the layers around the first that diverges, or where the error grows most."""
    first = found.first
    if first is None:
        yield f"No layer is beyond {found.limit}: the error builds up over many."
        if (step := found.largest_step) is not None:
            yield f"It grows most at {step.layer} ({step.graph}), to {step.max_relative:.1e} relative."
        return
    before = found.last_good
    yield f"The first layer that diverges: {first.layer} ({first.graph})"
    yield f"The last one before it that agrees: {before.layer if before else 'none, it is the first'}"
    centre = found.layers.index(first)
    yield f"  {'layer':<56} {'max abs':>10} {'relative':>10} {'cosine':>10}"
    for layer in found.layers[max(centre - _SHOWN_AROUND, 0) : centre + _SHOWN_AROUND + 1]:
        mark = "  <- first" if layer is first else "  diverges" if layer.diverges else ""
        yield f"  {layer.layer:<56} {layer.max_abs:10.2e} {layer.max_relative:10.2e} {layer.cosine:10.6f}{mark}"
    yield f"  limit: {found.limit}; all {len(found.layers)} layers are in bisect.json"


def _like(module: nn.Module, model: onnx.ModelProto) -> nn.Module:
    """Return the module with batch norms folded where the graph has none: its convolutions answer for both."""
    if any(node.op_type == "BatchNormalization" for node in model.graph.node):
        return module
    folded = copy.deepcopy(module)
    fold_batch_norms(folded)
    return folded


def _module_answers(module: nn.Module, given: Tensor) -> dict[str, NDArray[np.float32]]:
    """Return the answer of every module that answers with one float tensor, by name, in order of completion."""
    answers: dict[str, NDArray[np.float32]] = {}

    def keep(name: str, answer: Any) -> None:
        answer = answer[0] if isinstance(answer, tuple) else answer
        if isinstance(answer, Tensor) and answer.is_floating_point():
            answers[name] = answer.float().numpy().copy()

    hooks = [
        # `name=name`: a closure would see the loop's last one.
        part.register_forward_hook(lambda _module, _args, answer, name=name: keep(name, answer))
        for name, part in module.named_modules()
        if name and not isinstance(part, nn.Identity)
    ]
    try:
        with torch.inference_mode():
            module(given)
    finally:
        for hook in hooks:
            hook.remove()
    return answers


def _layer_tensors(model: onnx.ModelProto, *, s3d: bool) -> dict[str, str]:
    """Return the tensor that each layer, and each layer that contains it, answers with; in the order of the graph."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    last: dict[str, tuple[int, str]] = {}
    by_weight: dict[str, tuple[int, str]] = {}
    for index, node in enumerate(model.graph.node):
        answer = (index, node.output[0])
        parts = _unwrapped(node.name.split("/")[0], s3d).split(".")
        last |= {".".join(parts[:depth]): answer for depth in range(1, len(parts) + 1)}
        # A convolution that a batch norm was folded into has the norm's name; its weight still has its own. The first
        # node with a weight counts: equal weights of several layers become one.
        weights = [name for name in node.input if name in initializers and name.endswith(".weight")]
        by_weight = {_unwrapped(name.removesuffix(".weight"), s3d): answer for name in weights} | by_weight
    return {
        layer: tensor
        for layer, (_, tensor) in sorted((by_weight | last).items(), key=lambda item: (item[1][0], -item[0].count(".")))
    }


def _unwrapped(path: str, s3d: bool) -> str:
    """Undo that `export.precision` puts all features of S3D in a Sequential of their own."""
    return path.replace("backbone.features.0.", "backbone.features.", 1) if s3d else path


def _graph_answers(
    model: onnx.ModelProto, tensors: Sequence[str], inputs: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Run a graph with more outputs; without optimisation, which would take them out of its way."""
    known = {output.name for output in model.graph.output}
    wanted = list(dict.fromkeys(tensors))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(wanted, session.run(wanted, dict(inputs)), strict=True))


def _compared(
    file: str,
    expected: Mapping[str, NDArray[np.float32]],
    tensors: Mapping[str, str],
    found: Mapping[str, NDArray[Any]],
    tolerance: Tolerance,
    precision: Precision,
) -> Iterator[LayerError]:
    for layer, tensor in tensors.items():
        answer = found[tensor]
        if layer not in expected or answer.shape != expected[layer].shape or answer.dtype.kind != "f":
            continue
        yield _layer_error(
            file, layer, answer.astype(np.float64), expected[layer].astype(np.float64), tolerance, precision
        )


def _layer_error(
    file: str,
    layer: str,
    answer: NDArray[np.float64],
    expected: NDArray[np.float64],
    tolerance: Tolerance,
    precision: Precision,
) -> LayerError:
    if not np.isfinite(answer).all():
        return LayerError(file, layer, float("inf"), float("inf"), 0.0, True)
    max_abs = float(np.abs(answer - expected).max())
    scale = float(np.abs(expected).max())
    relative = max_abs / scale if scale else float(max_abs > 0)
    norms = float(np.linalg.norm(answer) * np.linalg.norm(expected))
    cosine = float((answer * expected).sum() / norms) if norms else float(max_abs == 0)
    diverges = relative > tolerance.features if precision == "fp32" else cosine < tolerance.cosine(precision)
    return LayerError(file, layer, max_abs, relative, cosine, diverges)


def _limit(tolerance: Tolerance, precision: Precision) -> str:
    if precision == "fp32":
        return f"{tolerance.features:.3g} relative"
    return f"a cosine of {tolerance.cosine(precision):.3g} (head: {tolerance.features:.3g} relative)"
