"""The encoder in half precision, as a property of the graph: TensorRT 11 takes no other instruction.

Weights and products are float16. Float32 stay: the normalisation of pixels (their differences are finer than float16
around 255), every layer norm and softmax, and the pooling over time and space with all that follows it. Batch norms are
folded into the convolutions before their weights are rounded, so that they are rounded once.

Made from the PyTorch module rather than from the ONNX graph: the casts stand where the mathematics wants them, the same
module runs on a GPU in PyTorch, and nothing depends on a converter's list of operators.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from export.graphs import EncoderGraph
from training.model.backbone import MViTFeatures, S3DFeatures, VideoResNetFeatures


class HalfEncoderGraph(nn.Module):
    """`EncoderGraph` with its backbone in float16; uint8 in and float32 out, as ever."""

    def __init__(self, encoder: EncoderGraph) -> None:
        super().__init__()
        self.normalise = encoder.normalise
        self.backbone = half_backbone(encoder.backbone)

    def forward(self, views: Tensor) -> Tensor:
        """Map uint8 `[N, 3, T, H, W]` to f32 `[N, D]`."""
        features: Tensor = self.backbone(self.normalise(views).half())
        return features.float()


class Float32Island(nn.Module):
    """A module computed in float32 between neighbours in float16."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.float()

    def forward(self, x: Tensor) -> Tensor:
        """Answer in the dtype of `x`."""
        answer: Tensor = self.module(x.float())
        return answer.to(x.dtype)


class ToFloat32(nn.Module):
    """From here on float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Widen `x`."""
        return x.float()


def half_backbone(backbone: nn.Module) -> nn.Module:
    """Return a copy of a backbone in evaluation mode: float16 `[N, 3, T, H, W]` in, float32 `[N, D]` out."""
    half = copy.deepcopy(backbone).eval()
    fold_batch_norms(half)
    half.half()
    _widen_tail(half)
    _isolate_layer_norms(half)
    return half


def fold_batch_norms(module: nn.Module) -> None:
    """Fold every batch norm that follows a convolution in a Sequential into it, in place."""
    for child in module.modules():
        if not isinstance(child, nn.Sequential):
            continue
        for index in range(1, len(child)):
            if isinstance(child[index], nn.BatchNorm3d) and _fold_into_last(child, index - 1, child[index]):
                child[index] = nn.Identity()


def _fold_into_last(layers: nn.Sequential, index: int, norm: nn.Module) -> bool:
    """Fold `norm` into the convolution that ends `layers[index]`, which may be a Sequential itself."""
    before = layers[index]
    if isinstance(before, nn.Conv3d):
        layers[index] = fuse_conv_bn_eval(before, norm)  # type: ignore[arg-type]
        return True
    return isinstance(before, nn.Sequential) and _fold_into_last(before, len(before) - 1, norm)


def _widen_tail(backbone: nn.Module) -> None:
    """Make what follows the last product float32: the mean over all positions, or the last layer norm."""
    match backbone:
        case VideoResNetFeatures():
            backbone.network.avgpool = nn.Sequential(ToFloat32(), backbone.network.avgpool)
        case S3DFeatures():
            backbone.features = nn.Sequential(backbone.features, ToFloat32())
        case MViTFeatures():
            backbone.network.norm = nn.Sequential(ToFloat32(), backbone.network.norm.float())
        case _:
            raise TypeError(f"{type(backbone).__name__} has no rule for half precision; add one here.")


def _isolate_layer_norms(backbone: nn.Module) -> None:
    """Wrap every layer norm whose weights are float16 by now."""
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.LayerNorm) and child.weight.dtype == torch.float16:
                setattr(parent, name, Float32Island(child))
