"""What a TensorRT plan was built for, and whether it may run here.

A plan holds machine code for one GPU architecture and is read by one TensorRT version, unless it was built to be
compatible with more. TensorRT itself finds out late, and says so in its own words; these rules are known before.

Rules: https://docs.nvidia.com/deeplearning/tensorrt/11.1.0/inference-library/engine-compatibility.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from mvfoul.errors import ArtifactError

PLAN: Final = "encoder.plan"

HardwareCompatibility = Literal["none", "same-compute-capability", "ampere-plus"]
"""On which GPUs a plan runs: the model it was built on, all of its compute capability, or all since Ampere (sm_80)."""

_AMPERE: Final = 80


@dataclass(frozen=True)
class TensorRTHost:
    """Where a plan is built or shall run."""

    gpu: str
    """The GPU's name, such as "NVIDIA H100 80GB HBM3"."""
    gpu_architecture: str
    """Its compute capability, such as "sm_90"."""
    tensorrt_version: str
    """All four parts, such as "11.1.0.106"."""


@dataclass(frozen=True)
class PlanSpec:
    """What a TensorRT plan was built for, as the manifest says it."""

    file: str
    gpu_architecture: str
    """Compute capability, such as "sm_90"."""
    tensorrt_version: str
    gpu: str = ""
    """Name of the GPU that it was built on."""
    min_views: int = 1
    """The profile: N in one call is at least this ..."""
    opt_views: int = 1
    """... is fastest here ..."""
    max_views: int = 1
    """... and is at most this."""
    version_compatible: bool = False
    """Later TensorRT versions read it too."""
    hardware_compatibility: HardwareCompatibility = "none"
    parity: Mapping[str, Any] = field(default_factory=dict)
    """Figures of the comparison that let the plan be published; all of them are in parity_plan.json."""

    def __post_init__(self) -> None:
        if self.hardware_compatibility not in get_args(HardwareCompatibility):
            raise ArtifactError(
                f"{self.file} has hardware compatibility {self.hardware_compatibility!r}; this version knows "
                f"{', '.join(get_args(HardwareCompatibility))}. Build it again: python -m export.plan --artifact DIR"
            )
        if not 1 <= self.min_views <= self.opt_views <= self.max_views:
            raise ArtifactError(
                f"{self.file} has a profile of {self.min_views}, {self.opt_views} and {self.max_views} views, which do "
                "not ascend. Build it again: python -m export.plan --artifact DIR"
            )


def check_plan(plan: PlanSpec, host: TensorRTHost) -> tuple[str, ...]:
    """Refuse a TensorRT plan on a machine that it was not built for.

    Returns:
        What is allowed and not advised: one sentence each.

    Raises:
        ArtifactError: Another GPU architecture or TensorRT version than the plan runs on; says the cure.
    """
    reasons = [*_other_architecture(plan, host), *_other_version(plan, host)]
    if reasons:
        raise ArtifactError(
            f"{plan.file} cannot run here: {' and '.join(reasons)}. "
            "Build it on this machine: python -m export.plan --artifact DIR"
        )
    if plan.hardware_compatibility == "none" and plan.gpu and plan.gpu != host.gpu:
        return (
            f"{plan.file} was tuned on {plan.gpu}; on {host.gpu} it can be slower, and TensorRT advises against it.",
        )
    return ()


def _other_architecture(plan: PlanSpec, host: TensorRTHost) -> list[str]:
    if plan.hardware_compatibility == "ampere-plus":
        if compute_capability(host.gpu_architecture) >= _AMPERE:
            return []
        return [f"it needs sm_{_AMPERE} or later and this GPU is {host.gpu_architecture}"]
    if host.gpu_architecture == plan.gpu_architecture:
        return []
    return [f"it was built for {plan.gpu_architecture} and this GPU is {host.gpu_architecture}"]


def _other_version(plan: PlanSpec, host: TensorRTHost) -> list[str]:
    """A compatible plan is read by later versions up to the next major one; any other by its own version only."""
    built, here = version_tuple(plan.tensorrt_version), version_tuple(host.tensorrt_version)
    if built == here or (plan.version_compatible and built <= here and here[0] - built[0] <= 1):
        return []
    needed = f"{plan.tensorrt_version}{' or later' if plan.version_compatible else ''}"
    return [f"it was built with TensorRT {needed} and here is {host.tensorrt_version}"]


def compute_capability(architecture: str) -> int:
    """Return 90 for "sm_90".

    Raises:
        ArtifactError: Not of this form.
    """
    if not (match := re.fullmatch(r"sm_(\d+)[af]?", architecture)):
        raise ArtifactError(f"{architecture!r} is no GPU architecture; one looks like sm_90.")
    return int(match[1])


def version_tuple(version: str) -> tuple[int, ...]:
    """Return (11, 1, 0, 106) for "11.1.0.106"; what follows the numbers does not count.

    Raises:
        ArtifactError: It does not start with a number.
    """
    if not (match := re.match(r"\d+(?:\.\d+)*", version)):
        raise ArtifactError(f"{version!r} is no version of TensorRT; one looks like 11.1.0.106.")
    return tuple(int(part) for part in match[0].split("."))
