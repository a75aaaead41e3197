"""The network."""

from __future__ import annotations

from dataclasses import dataclass

from mvfoul.command import check_flag
from training.model.names import AggregationName, BackboneName, FeatureName


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    backbone: BackboneName = "mvit_v2_s"
    """Video network that turns one view into features."""
    features: FeatureName = "pooled"
    """What the backbone gives for each view.
    pooled: its last features, 512 to 1024 numbers.
    kinetics-logits: the 400 answers of its Kinetics classifier, as the original VARS with MViT and S3D."""
    aggregation: AggregationName = "attention"
    """How the features of an action's views become one vector."""
    dropout: float = 0.0
    """Share of values dropped before the last layer of each head, in training."""
    view_embedding: bool = False
    """Tell live views from replays: a learnt vector of each kind is added to the features before the aggregation."""
    sync_batch_norm: bool = False
    """Compute batch norms over the views of all processes; for several processes on GPUs, and not with mvit_v2_s."""

    def __post_init__(self) -> None:
        check_flag(0 <= self.dropout < 1, "--model.dropout", self.dropout, "Use 0 to 0.9.")
        check_flag(
            not (self.sync_batch_norm and self.backbone == "mvit_v2_s"),
            "--model.sync-batch-norm",
            self.sync_batch_norm,
            "mvit_v2_s has layer norms only, so it would do nothing; take it back with --model.no-sync-batch-norm.",
        )
