"""From the features of V views to one vector per action, and how much each view counted.

Features f32 `[B, V, D]`, view_mask bool `[B, V]` (False marks padding) -> pooled f32 `[B, D]`, view_weights f32
`[B, V]`: at least 0, summing to 1 over the real views, 0 on padding. `FoulNetwork.classify` is the only caller: it
clears padded rows first (NaN times a weight of 0 is NaN) and keeps everything in float32, because the attention's
product of features overflows float16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mvfoul.errors import ConfigError
from training.model.names import AGGREGATION_NAMES, AggregationName


class MaxAggregation(nn.Module):
    """The largest value of each feature; a view's weight is the share of features it supplied."""

    def forward(self, features: Tensor, view_mask: Tensor) -> tuple[Tensor, Tensor]:
        """See the top of the file."""
        masked = features.masked_fill(~view_mask.unsqueeze(-1), -torch.inf)
        pooled = masked.amax(dim=1)
        # Ties are shared, so that two equal views weigh the same.
        supplied = (masked == pooled.unsqueeze(1)).to(features.dtype)
        return pooled, (supplied / supplied.sum(dim=1, keepdim=True)).mean(dim=2)


class MeanAggregation(nn.Module):
    """The mean over the real views, each weighing the same."""

    def forward(self, features: Tensor, view_mask: Tensor) -> tuple[Tensor, Tensor]:
        """See the top of the file."""
        weights = _uniform(view_mask, features.dtype)
        return _weighted_sum(weights, features), weights


class AttentionAggregation(nn.Module):
    """The weighted attention of VARS (Held et al., CVPRW 2023).

    A = f W; S = relu(A A^T), divided by its sum over all pairs of views; weight_v = sum of row v of S;
    pooled = sum over v of weight_v A_v. Where every pair's score is 0 the weights are uniform: 0 / 0 otherwise.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.attention_weights = nn.Parameter(torch.empty(feature_dim, feature_dim))
        nn.init.xavier_uniform_(self.attention_weights)

    def forward(self, features: Tensor, view_mask: Tensor) -> tuple[Tensor, Tensor]:
        """See the top of the file."""
        projected = features @ self.attention_weights
        scores = torch.relu(projected @ projected.transpose(1, 2))
        scores = scores * (view_mask.unsqueeze(1) & view_mask.unsqueeze(2))
        row_sums = scores.sum(dim=2)
        total = row_sums.sum(dim=1, keepdim=True)
        # Two `where`s: the branch that is not taken must not divide by zero either, or its gradient is NaN.
        positive = total > 0
        weights = row_sums / torch.where(positive, total, torch.ones_like(total))
        weights = torch.where(positive, weights, _uniform(view_mask, features.dtype))
        return _weighted_sum(weights, projected), weights


def build_aggregation(name: AggregationName, *, feature_dim: int) -> nn.Module:
    """Build an aggregation.

    Raises:
        ConfigError: Unknown name.
    """
    if name == "attention":
        return AttentionAggregation(feature_dim)
    if name not in AGGREGATION_NAMES:
        raise ConfigError(f"unknown aggregation {name!r}; known: {', '.join(AGGREGATION_NAMES)}.")
    return MaxAggregation() if name == "max" else MeanAggregation()


def _uniform(view_mask: Tensor, dtype: torch.dtype) -> Tensor:
    real = view_mask.to(dtype)
    return real / real.sum(dim=1, keepdim=True)


def _weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """Sum `values` `[B, V, D]` over views by `weights` `[B, V]`."""
    return (weights.unsqueeze(-1) * values).sum(dim=1)
