"""The flags of the TensorRT build, for `python -m export` and `python -m export.plan`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mvfoul.command import check_flag
from mvfoul.plan import HardwareCompatibility

MIN_VIEWS: Final = 1
"""Of the profile: a call with one view must work."""
MAX_LEVEL: Final = 5
"""TensorRT's highest optimisation level; it takes higher ones for this one."""


@dataclass(frozen=True, kw_only=True)
class TensorRTConfig:
    """How the plan is built: encoder.plan, by TensorRT, for this machine's GPU."""

    opt_views: int = 4
    """Views in one call that the plan is tuned for."""
    max_views: int = 16
    """Views in one call that the plan takes at most; more cost GPU memory. The least is always 1."""
    workspace_mib: int | None = None
    """GPU memory that a layer may use for its scratch, in MiB. None: all there is."""
    optimization_level: int = 3
    """0 builds fastest, 5 searches longest for the fastest plan."""
    timing_cache: Path | None = None
    """Measured kernel times, for the next build: a file, or a folder with one per GPU and version. None: the run's."""
    version_compatible: bool = False
    """Later TensorRT versions can read the plan too. Can be slower."""
    hardware_compatibility: HardwareCompatibility = "none"
    """GPUs that the plan runs on: this model, all of its compute capability, or Ampere and later. Can be slower."""

    def __post_init__(self) -> None:
        check_flag(self.opt_views >= MIN_VIEWS, "--tensorrt.opt-views", self.opt_views, "Use 1 or more.")
        check_flag(
            self.max_views >= self.opt_views,
            "--tensorrt.max-views",
            self.max_views,
            f"Use {self.opt_views} (--tensorrt.opt-views) or more.",
        )
        check_flag(
            self.workspace_mib is None or self.workspace_mib >= 1,
            "--tensorrt.workspace-mib",
            self.workspace_mib,
            "Use 1 or more, or leave it out for no limit.",
        )
        check_flag(
            0 <= self.optimization_level <= MAX_LEVEL,
            "--tensorrt.optimization-level",
            self.optimization_level,
            f"Use 0 to {MAX_LEVEL}.",
        )
