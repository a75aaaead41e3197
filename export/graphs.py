"""The network as the two modules that become graphs.

encoder   uint8 [N,3,T,H,W] -> f32 [N,D]
head      f32 [V,D]         -> logits [8] and [4], probabilities [8] and [4], view weights [V]; one action, no padding
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training.model.network import FoulNetwork


class EncoderGraph(nn.Module):
    """`FoulNetwork.encode` as a module."""

    def __init__(self, network: FoulNetwork) -> None:
        super().__init__()
        self.normalise = network.normalise
        self.backbone = network.backbone

    def forward(self, views: Tensor) -> Tensor:
        """Map uint8 `[N, 3, T, H, W]` to f32 `[N, D]`."""
        features: Tensor = self.backbone(self.normalise(views))
        return features.float()


class HeadGraph(nn.Module):
    """`FoulNetwork.classify` for one action without padding, and calibrated probabilities."""

    def __init__(self, network: FoulNetwork, temperatures: Mapping[str, float]) -> None:
        super().__init__()
        # The memo makes deepcopy put an Identity where the backbone is, instead of copying 100 MB.
        self.network = copy.deepcopy(network, {id(network.backbone): nn.Identity()})
        for name in ("neck", "action_head", "offence_severity_head"):
            setattr(self.network, name, fold_linear_pairs(getattr(self.network, name)))
        self.action_temperature = temperatures["action"]
        self.offence_severity_temperature = temperatures["offence_severity"]

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """Map f32 `[V, D]` to the tensors of `export.to_onnx.HEAD_OUTPUTS`."""
        view_mask = torch.ones(1, features.shape[0], dtype=torch.bool)
        logits = self.network.classify(features.unsqueeze(0), view_mask)
        action, severity = logits.action.squeeze(0), logits.offence_severity.squeeze(0)
        return (
            action,
            severity,
            torch.softmax(action / self.action_temperature, dim=0),
            torch.softmax(severity / self.offence_severity_temperature, dim=0),
            logits.view_weights.squeeze(0),
        )


def fold_linear_pairs(layers: nn.Sequential) -> nn.Sequential:
    """Return the same function with each run of linear layers as one layer; for evaluation, so dropout goes too.

    W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2), computed in float64.
    """
    folded: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.Linear) and folded and isinstance(folded[-1], nn.Linear):
            folded[-1] = _compose(folded[-1], layer)
        elif not isinstance(layer, nn.Dropout):
            folded.append(layer)
    return nn.Sequential(*folded)


def _compose(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    w1, b1, w2, b2 = (tensor.detach().double() for tensor in (first.weight, first.bias, second.weight, second.bias))
    layer = nn.Linear(first.in_features, second.out_features)
    with torch.no_grad():
        layer.weight.copy_(w2 @ w1)
        layer.bias.copy_(w2 @ b1 + b2)
    return layer
