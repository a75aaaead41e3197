"""`python -m training.preview --data.root DIR --augment.preset guide --out preview.png`: what training will see.

One row per view: a few of its frames as decoded, then as changed in several draws. The draws are those of the first
epochs of a training run with the same seed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tyro

from mvfoul.command import check_flag, exit_code_of, requested_recipe
from mvfoul.errors import ConfigError
from mvfoul.layout import canonical_split
from training.config import AugmentConfig, ClipConfig, RecipeName
from training.recipes import RECIPES, two_second

if TYPE_CHECKING:
    from torch import Tensor

    from training.dataset import ActionSample, MultiViewDataset

PROG: Final = "python -m training.preview"
_GAP_PX: Final = 4


@dataclass(frozen=True, kw_only=True)
class PreviewDataConfig:
    """Whose clips are shown."""

    root: Path
    """Folder with the splits in it."""
    replay_aware: bool = False
    """Spread the frames of slowed replays, as training with --data.replay-aware does."""


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Draw a picture of clips as training changes them."""

    recipe: RecipeName = "two-second"
    """Whose clip and augmentation settings are shown, unless --clip... and --augment... say others."""
    data: PreviewDataConfig
    clip: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    split: str = "train"
    """Split of the actions."""
    actions: int = 2
    """Actions shown, from the first."""
    draws: int = 3
    """Random draws beside each view as it was decoded."""
    frames: int = 4
    """Frames shown of each clip, from the first to the last."""
    seed: int = 0
    """As --seed of training."""
    out: Path = Path("preview.png")
    """PNG to write."""

    def __post_init__(self) -> None:
        canonical_split(self.split)
        for flag, value in (("--actions", self.actions), ("--draws", self.draws), ("--frames", self.frames)):
            check_flag(1 <= value <= 64, flag, value, "Use 1 to 64.")
        check_flag(self.frames <= self.clip.num_frames, "--frames", self.frames, f"T is {self.clip.num_frames}.")
        check_flag(self.out.suffix == ".png", "--out", str(self.out), "Name a .png file.")


def parse_config(args: Sequence[str]) -> PreviewConfig:
    """Read the flags; prints help or what is wrong with them and exits, as command lines do."""
    recipe = RECIPES.get(requested_recipe(args, default="two-second"), two_second)  # type: ignore[call-overload]
    base = recipe(tyro.MISSING)
    data = PreviewDataConfig(root=tyro.MISSING)
    default = PreviewConfig(recipe=base.recipe, data=data, clip=base.clip, augment=base.augment)
    return tyro.cli(PreviewConfig, default=default, args=args, prog=PROG)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code."""

    def preview() -> int:
        return run(parse_config(sys.argv[1:] if arguments is None else arguments))

    return exit_code_of(preview)


def run(config: PreviewConfig) -> int:
    """Write the picture.

    Raises:
        AnnotationError: The split is missing, or its annotations cannot be used.
        ConfigError: No clip of the actions can be decoded, or the file cannot be written.
    """
    data = open_data(config)
    rows: list[Any] = []
    for index in range(min(config.actions, len(data))):
        rows += action_rows(data, index, draws=config.draws, frames=config.frames)
    if not rows:
        raise ConfigError(
            f"--actions {config.actions}: not one clip of them could be decoded. Use more, or see what is wrong: "
            f"python -m training.check_data --root {config.data.root}"
        )
    _write(config.out, rows)
    shown = f"{len(rows)} views: as decoded, then {config.draws} draws of preset {config.augment.preset}"
    print(f"{config.out}  {shown}")
    return 0


def open_data(config: PreviewConfig) -> MultiViewDataset:
    """Open the split as training does."""
    from training.clips import ClipReader
    from training.dataset import MultiViewDataset
    from training.frames import FrameRule

    clip, ranges = config.clip.spec(), config.augment.resolved()
    data = MultiViewDataset(config.data.root, config.split, num_views=clip.max_views, clip=clip)
    data.clips = ClipReader(FrameRule(clip, jitter=ranges.temporal_jitter, replay_aware=config.data.replay_aware))
    data.augmentation, data.seed, data.random_views = ranges, config.seed, False
    return data


def action_rows(data: MultiViewDataset, index: int, *, draws: int, frames: int) -> list[Tensor]:
    """Return one strip per view of an action, uint8 `[3, H, W']`: some frames as decoded, then of each draw."""
    import torch

    from training.augment.pixels import change_views

    def sample(epoch: int) -> ActionSample:
        data.set_epoch(epoch)
        return data[index]

    jitter, data.clips.rule = data.clips.rule, data.clips.rule.without_jitter()
    blocks = [sample(0).views]
    data.clips.rule = jitter
    for epoch in range(draws):
        drawn = sample(epoch)
        blocks.append(drawn.views if drawn.changes is None else change_views(drawn.views, drawn.changes))
    times = torch.linspace(0, blocks[0].shape[2] - 1, frames).round().long()
    return [_strip([block[view][:, times] for block in blocks]) for view in range(len(blocks[0]))]


def _strip(clips: Sequence[Tensor]) -> Tensor:
    """Join clips uint8 `[3, F, H, W]` from left to right, white between them."""
    import torch

    height = clips[0].shape[2]
    white = torch.full((3, height, _GAP_PX), 255, dtype=torch.uint8)
    parts = [part for clip in clips for part in (clip.transpose(1, 2).reshape(3, height, -1), white)]
    return torch.cat(parts[:-1], dim=2)


def _write(path: Path, rows: Sequence[Tensor]) -> None:
    import torch
    from matplotlib.image import imsave

    white = torch.full((3, _GAP_PX, rows[0].shape[2]), 255, dtype=torch.uint8)
    picture = torch.cat([part for row in rows for part in (row, white)][:-1], dim=1)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        imsave(temporary, picture.permute(1, 2, 0).contiguous().numpy(), format="png")
        temporary.rename(path)
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written: {error}. Choose another folder.") from error


if __name__ == "__main__":
    sys.exit(main())
