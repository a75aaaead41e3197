"""The loss and its class weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mvfoul.command import check_flag
from mvfoul.labels import VOCABULARIES, Head

ActionWeights = Literal["none", "inverse"] | tuple[float, float, float, float, float, float, float, float]
OffenceSeverityWeights = Literal["none", "inverse"] | tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Cross-entropy of each head; the loss is their sum."""

    action_weights: ActionWeights = "inverse"
    """Class weights of the action: none, inverse (to the classes' frequency in train), or 8 values."""
    offence_severity_weights: OffenceSeverityWeights = "inverse"
    """Class weights of the offence severity: none, inverse, or 4 values."""
    label_smoothing: float = 0.0
    """Share of each target spread evenly over all classes, in training."""

    def __post_init__(self) -> None:
        for head, weights in (("action", self.action_weights), ("offence-severity", self.offence_severity_weights)):
            good = isinstance(weights, str) or all(math.isfinite(w) and w > 0 for w in weights)
            check_flag(good, f"--loss.{head}-weights", weights, "Use none, inverse, or one value above 0 per class.")
        check_flag(0 <= self.label_smoothing < 1, "--loss.label-smoothing", self.label_smoothing, "Use 0 to 0.9.")

    def weights(self, head: Head) -> str | tuple[float, ...]:
        """Return the choice for one head."""
        return self.action_weights if head == "action" else self.offence_severity_weights


def given_weights(choice: Sequence[float], head: Head) -> tuple[float, ...]:
    """Return class weights given as values.

    Raises:
        ConfigError: There is not one per class.
    """
    names = VOCABULARIES[head]
    flag = f"--loss.{head.replace('_', '-')}-weights"
    check_flag(len(choice) == len(names), flag, choice, f"Give {len(names)} values, for {', '.join(names)}.")
    return tuple(choice)
