"""The foul network: views are the batch.

    encode     views uint8 [N,3,T,H,W]                        -> features f32 [N,D]
    classify   features f32 [B,V,D], view_mask bool [B,V]     -> FoulLogits
    forward    views uint8 [N,3,T,H,W], view_counts int [B]   -> FoulLogits

With a view embedding, classify and forward also take which views are live (0) and which are replays (1).

N counts the views of all actions of a batch, one after the other: no padded clip is ever decoded, moved or computed.
Only the small features are padded. A row never depends on other rows or on padding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from mvfoul.clip import ClipSpec, preset
from mvfoul.labels import ACTION_CLASSES, OFFENCE_SEVERITIES
from training.model.aggregation import build_aggregation
from training.model.backbone import BACKBONES, build_backbone, feature_dim
from training.model.names import NO_WEIGHTS, AggregationName, BackboneName, FeatureName

_VIEW_KINDS: Final = 2


class FoulLogits(NamedTuple):
    """What the network says of B actions, in float32."""

    action: Tensor
    """`[B, 8]`."""
    offence_severity: Tensor
    """`[B, 4]`."""
    view_weights: Tensor
    """`[B, V]`, summing to 1 over real views, 0 on padding."""


class Normalise(nn.Module):
    """uint8 pixels to normalised float32. Inside the network, so that training and serving cannot differ in it."""

    scale: Tensor
    shift: Tensor

    def __init__(self, clip: ClipSpec) -> None:
        super().__init__()
        mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1, 1) for values in (clip.mean, clip.std))
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, views: Tensor) -> Tensor:
        """Map uint8 (or float 0..255) `[N, 3, T, H, W]` to float32 of the same shape: (x / 255 - mean) / std."""
        return views.float() * self.scale + self.shift


class FoulNetwork(nn.Module):
    """Backbone, aggregation over views, and the two heads of VARS."""

    def __init__(
        self,
        backbone: BackboneName = "mvit_v2_s",
        aggregation: AggregationName = "attention",
        *,
        clip: ClipSpec | None = None,
        weights: str | Path = NO_WEIGHTS,
        dropout: float = 0.0,
        features: FeatureName = "pooled",
        view_embedding: bool = False,
    ) -> None:
        """Build the network.

        Args:
            backbone: One of `BACKBONE_NAMES`.
            aggregation: One of `AGGREGATION_NAMES`.
            clip: Frames, size and normalisation; by default `two-second` with the backbone's mean and std.
            weights: Of the backbone: `kinetics400`, `none` or a file.
            dropout: Before the last layer of each head.
            features: What the backbone gives for each view.
            view_embedding: Whether features get a learnt vector for live or replay added.

        Raises:
            ConfigError, CheckpointError: See `build_backbone`.
        """
        super().__init__()
        self.clip = clip or default_clip(backbone)
        self.backbone_name: BackboneName = backbone
        self.aggregation_name: AggregationName = aggregation
        self.normalise = Normalise(self.clip)
        self.feature_name: FeatureName = features
        self.backbone = build_backbone(backbone, clip=self.clip, weights=weights, features=features)
        dim = feature_dim(backbone, features)
        self.feature_dim = dim
        self.channels_last = False
        """Whether the backbone gets its pixels with the channels last in memory."""
        self.view_embedding = _zero_embedding(_VIEW_KINDS, dim) if view_embedding else None
        self.aggregation = build_aggregation(aggregation, feature_dim=dim)
        # Two linear layers without an activation between them, as in VARS; export folds them into one.
        self.neck = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Linear(dim, dim))
        self.action_head = _head(dim, len(ACTION_CLASSES), dropout)
        self.offence_severity_head = _head(dim, len(OFFENCE_SEVERITIES), dropout)

    @property
    def options(self) -> dict[str, Any]:
        """What else than backbone, aggregation and clip it takes to build this network again: plain types."""
        return {"features": self.feature_name, "view_embedding": self.view_embedding is not None}

    def encode(self, views: Tensor) -> Tensor:
        """Map the views of any actions, uint8 `[N, 3, T, H, W]`, to features float32 `[N, D]`."""
        pixels = self.normalise(views)
        if self.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last_3d)
        features: Tensor = self.backbone(pixels)
        return features.float()

    def classify(self, features: Tensor, view_mask: Tensor, view_kinds: Tensor | None = None) -> FoulLogits:
        """Score actions from the features of their views.

        Args:
            features: f32 `[B, V, D]`; padded rows hold anything.
            view_mask: bool `[B, V]`; False marks padding. Every row has at least one True.
            view_kinds: int64 `[B, V]`, 0 live and 1 replay. Left out: the first view is live and the others are
                replays, as the data set numbers its clips.

        Returns:
            Logits `[B, 8]` and `[B, 4]`, and view weights `[B, V]` that sum to 1 over real views.
            A row never depends on other rows or on padding.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            if self.view_embedding is not None:
                kinds = _first_is_live(features) if view_kinds is None else view_kinds
                features = features + self.view_embedding(kinds)
            features = features.masked_fill(~view_mask.unsqueeze(-1), 0.0)
            pooled, view_weights = self.aggregation(features, view_mask)
            hidden = self.neck(pooled)
            return FoulLogits(self.action_head(hidden), self.offence_severity_head(hidden), view_weights)

    def forward(self, views: Tensor, view_counts: Tensor, view_kinds: Tensor | None = None) -> FoulLogits:
        """Score B actions.

        Args:
            views: uint8 `[N, 3, T, H, W]`, the views of the first action, then of the second, and so on.
            view_counts: int64 `[B]`, each at least 1, summing to N.
            view_kinds: int64 `[N]`, 0 live and 1 replay; left out as in `classify`.
        """
        features, view_mask = pad_features(self.encode(views), view_counts)
        return self.classify(features, view_mask, pad_kinds(view_kinds, view_counts))


class MVNetwork(FoulNetwork):
    """`FoulNetwork` under the names of the SoccerNet guide, taking one padded tensor per batch."""

    def __init__(
        self,
        net_name: BackboneName = "mvit_v2_s",
        agr_type: AggregationName = "attention",
        *,
        num_classes_action: int = len(ACTION_CLASSES),
        num_classes_severity: int = len(OFFENCE_SEVERITIES),
        clip: ClipSpec | None = None,
        weights: str | Path = NO_WEIGHTS,
    ) -> None:
        """Build the network; the numbers of classes are fixed by the data set and only checked.

        Raises:
            ValueError: Another number of classes.
        """
        classes = (num_classes_action, num_classes_severity)
        if classes != (len(ACTION_CLASSES), len(OFFENCE_SEVERITIES)):
            raise ValueError(f"num_classes_action, num_classes_severity are {classes}; SoccerNet-MVFoul has 8 and 4.")
        super().__init__(net_name, agr_type, clip=clip, weights=weights)

    def forward(self, mvimages: Tensor, view_mask: Tensor | None = None) -> FoulLogits:  # type: ignore[override]
        """Score B actions of the same number of views, or of V at most with a mask.

        Args:
            mvimages: uint8 `[B, V, 3, T, H, W]`.
            view_mask: bool `[B, V]`; all real where left out. Padded views are not computed.
        """
        if view_mask is None:
            view_mask = torch.ones(mvimages.shape[:2], dtype=torch.bool, device=mvimages.device)
        features = torch.zeros(*view_mask.shape, self.feature_dim, device=mvimages.device)
        features[view_mask] = self.encode(mvimages[view_mask])
        return self.classify(features, view_mask)


def default_clip(backbone: BackboneName) -> ClipSpec:
    """Return preset `two-second` with the mean and std of the backbone's Kinetics weights."""
    facts = BACKBONES[backbone]
    return preset("two-second", mean=facts.mean, std=facts.std)


def pad_features(features: Tensor, view_counts: Tensor) -> tuple[Tensor, Tensor]:
    """Turn the features of all views, f32 `[N, D]`, into `[B, V, D]` and bool `[B, V]`, V the largest count."""
    counts = view_counts.tolist()
    if min(counts) < 1 or sum(counts) != len(features):
        raise ValueError(f"view_counts {counts} must each be at least 1 and sum to N = {len(features)}.")
    padded = nn.utils.rnn.pad_sequence(list(torch.split(features, counts)), batch_first=True)
    positions = torch.arange(padded.shape[1], device=features.device)
    return padded, positions < view_counts.to(features.device).unsqueeze(1)


def pad_kinds(view_kinds: Tensor | None, view_counts: Tensor) -> Tensor | None:
    """Turn the kinds of all views, int64 `[N]`, into `[B, V]`; padding is 0. None stays None."""
    if view_kinds is None:
        return None
    return nn.utils.rnn.pad_sequence(list(torch.split(view_kinds, view_counts.tolist())), batch_first=True)


def _first_is_live(features: Tensor) -> Tensor:
    """Return int64 `[1, V]`: 0, 1, 1, ..."""
    return (torch.arange(features.shape[1], device=features.device) > 0).long().unsqueeze(0)


def _zero_embedding(rows: int, dim: int) -> nn.Embedding:
    embedding = nn.Embedding(rows, dim)
    nn.init.zeros_(embedding.weight)
    return embedding


def _head(dim: int, num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Dropout(dropout), nn.Linear(dim, num_classes))
