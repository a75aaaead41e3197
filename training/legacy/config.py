"""The flags of `python -m training.legacy`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import tyro

from training.config import ClipConfig
from training.model.names import AggregationName, BackboneName

_RESNET_SIZE_PX: Final = 112
"""What torchvision's transforms of the video ResNets give, which the original used; 224 of MViT and S3D."""


@dataclass(frozen=True, kw_only=True)
class LegacyConfig:
    """Import a checkpoint of the original VARS code (Held et al., CVPRW 2023).

    The result is a checkpoint of this project, for `python -m training.evaluate` and `python -m export`.
    """

    source: Annotated[Path, tyro.conf.arg(name="in")]
    """The published file, such as 14_model.pth.tar."""
    out: Path
    """Where to write the checkpoint."""
    backbone: BackboneName = "mvit_v2_s"
    """The network it was trained with: --pre_model of the original."""
    aggregation: AggregationName = "attention"
    """How it joins views: --pooling_type of the original. The file cannot tell max from mean."""
    overwrite: bool = False
    """Replace the file that --out names."""
    clip: ClipConfig
    """What it was trained on; the published files: frames 63 to 86 at 17 fps."""


def parse_config(args: Sequence[str]) -> LegacyConfig:
    """Read the flags; prints help or what is wrong with them and exits, as command lines do."""
    # Read first: the size of the pictures depends on it.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--backbone", default="mvit_v2_s")
    try:
        backbone = parser.parse_known_args(list(args))[0].backbone
    except argparse.ArgumentError:  # no value: tyro says so
        backbone = "mvit_v2_s"
    default = LegacyConfig(source=tyro.MISSING, out=tyro.MISSING, clip=default_clip(backbone))
    config: LegacyConfig = tyro.cli(LegacyConfig, default=default, args=args, prog="python -m training.legacy")
    return config


def default_clip(backbone: str) -> ClipConfig:
    """Return the frames of the published weights, at the size that their backbone was fed."""
    size_px = 224 if backbone in {"mvit_v2_s", "s3d"} else _RESNET_SIZE_PX
    return ClipConfig(preset="vars-2023", size_px=size_px)
