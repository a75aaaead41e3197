"""The loss, its class weights, and how actions are drawn: everything that answers the classes' imbalance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mvfoul.command import check_flag
from mvfoul.labels import VOCABULARIES, Head

Weighting = Literal["none", "inverse", "inverse-sqrt", "effective"]
ActionWeights = Weighting | tuple[float, float, float, float, float, float, float, float]
OffenceSeverityWeights = Weighting | tuple[float, float, float, float]
BalancedSampling = Literal["none", "action", "offence-severity"]

DEFAULT_FOCAL_GAMMA: Final = 2.0
"""The value that Lin et al. (2017) found best."""
DEFAULT_EFFECTIVE_BETA: Final = 0.999
"""Cui et al. (2019) try 0.9 to 0.9999; assumption: 0.999 suits classes of 27 to 1,100 actions."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss of each head; the loss is their weighted sum."""

    name: Literal["cross-entropy", "focal"] = "cross-entropy"
    """cross-entropy; focal: cross-entropy times (1 - p) ** gamma, which turns down what is already answered well."""
    focal_gamma: float | None = None
    """Gamma of focal, and only of focal; 2 where left out."""
    action_weights: ActionWeights = "inverse"
    """Class weights of the action, from the classes' frequency in train.
    none: every class weighs 1.
    inverse: 1 / n.
    inverse-sqrt: 1 / sqrt(n).
    effective: 1 / the effective number of samples, (1 - beta ** n) / (1 - beta).
    Or 8 values."""
    offence_severity_weights: OffenceSeverityWeights = "inverse"
    """Class weights of the offence severity: as for the action, or 4 values."""
    effective_beta: float | None = None
    """Beta of effective, and only of effective; 0.999 where left out. Nearer to 1: nearer to inverse."""
    label_smoothing: float = 0.0
    """Share of each target spread evenly over all classes, in training."""
    action_task_weight: float = 1.0
    """Factor of the action's loss, class weights aside."""
    offence_severity_task_weight: float = 1.0
    """Factor of the offence severity's loss, class weights aside."""
    balanced_sampling: BalancedSampling = "none"
    """Draw training actions with replacement, so that every class of this head comes equally often.
    An epoch has as many actions as before, some of them several times, others not at all."""

    def __post_init__(self) -> None:
        for head in VOCABULARIES:
            weights, flag = self.weights(head), _flag(head)
            good = isinstance(weights, str) or all(math.isfinite(w) and w > 0 for w in weights)
            cure = "Use none, inverse, inverse-sqrt, effective, or one value above 0 per class."
            check_flag(good, f"--loss.{flag}-weights", weights, cure)
            task = self.task_weight(head)
            check_flag(0 < task < math.inf, f"--loss.{flag}-task-weight", task, "Use a value above 0, such as 1.")
        self._check_focal()
        self._check_beta()
        check_flag(0 <= self.label_smoothing < 1, "--loss.label-smoothing", self.label_smoothing, "Use 0 to 0.9.")

    def weights(self, head: Head) -> str | tuple[float, ...]:
        """Return the choice for one head."""
        return self.action_weights if head == "action" else self.offence_severity_weights

    def task_weight(self, head: Head) -> float:
        """Return the factor of one head's loss."""
        return self.action_task_weight if head == "action" else self.offence_severity_task_weight

    @property
    def gamma(self) -> float:
        """The exponent of the focal loss; 0, which is plain cross-entropy, where the loss is not focal."""
        if self.name != "focal":
            return 0.0
        return DEFAULT_FOCAL_GAMMA if self.focal_gamma is None else self.focal_gamma

    @property
    def beta(self) -> float:
        """Beta of `effective`."""
        return DEFAULT_EFFECTIVE_BETA if self.effective_beta is None else self.effective_beta

    def imbalance_warnings(self) -> tuple[str, ...]:
        """Return a sentence per head for which several corrections of the same imbalance are combined."""
        found = {head: self._corrections(head) for head in VOCABULARIES}
        return tuple(_combined(head, flags) for head, flags in found.items() if len(flags) > 1)

    def _corrections(self, head: Head) -> list[str]:
        weights = self.weights(head)
        flag = _flag(head)
        found = []
        if self.balanced_sampling == flag:
            found.append(f"--loss.balanced-sampling {flag}")
        if weights != "none" and len(set(weights)) > 1:
            found.append(f"--loss.{flag}-weights {weights if isinstance(weights, str) else 'as given'}")
        if self.gamma > 0:
            found.append(f"--loss.name focal (gamma {self.gamma:g})")
        return found

    def _check_focal(self) -> None:
        check_flag(
            self.focal_gamma is None or self.name == "focal",
            "--loss.focal-gamma",
            self.focal_gamma,
            f"{self.name} has none; use --loss.name focal, or --loss.focal-gamma None.",
        )
        cure = "Use a value above 0, such as 2; 0 is --loss.name cross-entropy."
        check_flag(
            self.focal_gamma is None or 0 < self.focal_gamma < math.inf, "--loss.focal-gamma", self.focal_gamma, cure
        )

    def _check_beta(self) -> None:
        used = "effective" in {self.action_weights, self.offence_severity_weights}
        check_flag(
            self.effective_beta is None or used,
            "--loss.effective-beta",
            self.effective_beta,
            "No class weights are effective; use --loss.action-weights effective, or --loss.effective-beta None.",
        )
        in_range = self.effective_beta is None or 0 < self.effective_beta < 1
        check_flag(in_range, "--loss.effective-beta", self.effective_beta, "Use 0.9 to 0.9999.")


def given_weights(choice: Sequence[float], head: Head) -> tuple[float, ...]:
    """Return class weights given as values.

    Raises:
        ConfigError: There is not one per class.
    """
    names = VOCABULARIES[head]
    check_flag(
        len(choice) == len(names),
        f"--loss.{_flag(head)}-weights",
        choice,
        f"Give {len(names)} values, for {', '.join(names)}.",
    )
    return tuple(choice)


def _flag(head: Head) -> str:
    return head.replace("_", "-")


def _combined(head: Head, flags: Sequence[str]) -> str:
    return (
        f"the imbalance of {head} is corrected {len(flags)} times, by {' and '.join(flags)}. Together they weigh a "
        "rare class by the product of the corrections, and the network collapses onto it; keep one of them."
    )
