"""What the parts of the network are called. Without torch, so that `--help` need not load it."""

from __future__ import annotations

from typing import Final, Literal, get_args

BackboneName = Literal["mvit_v2_s", "r3d_18", "r2plus1d_18", "mc3_18", "s3d"]
BACKBONE_NAMES: Final[tuple[BackboneName, ...]] = get_args(BackboneName)

AggregationName = Literal["max", "mean", "attention"]
AGGREGATION_NAMES: Final[tuple[AggregationName, ...]] = get_args(AggregationName)

FeatureName = Literal["pooled", "kinetics-logits"]
"""pooled: what the backbone's last layers leave, averaged or its class token. kinetics-logits: the 400 answers of its
Kinetics classifier, which the original VARS took from MViT and S3D."""

KINETICS400: Final = "kinetics400"
NO_WEIGHTS: Final = "none"
