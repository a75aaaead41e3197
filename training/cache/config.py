"""The flags of `python -m training.cache`: those of training that decide what is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import tyro

from mvfoul.command import available_cpus, check_flag, requested_recipe
from mvfoul.layout import canonical_split
from training.config import ClipConfig, RecipeName
from training.recipes import RECIPES, two_second

PROG: Final = "python -m training.cache"


@dataclass(frozen=True, kw_only=True)
class CacheDataConfig:
    """As for training: the same values find the same entries."""

    root: Path
    """Folder with the splits in it."""
    cache_dir: Path
    """Folder of the cache."""
    cache_gib: float = 50.0
    """Size of the cache at most."""
    replay_aware: bool = False
    """Decode the frames of slowed replays that training with --data.replay-aware reads."""

    def __post_init__(self) -> None:
        check_flag(0 < self.cache_gib < 2**20, "--data.cache-gib", self.cache_gib, "Use a value above 0.")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Decode the clips of a data set into a cache, for training with the same --data.cache-dir.

    Ctrl-C stops it; the same command goes on where it stopped. Exit codes: 0 done, 1 some clips are not in the cache
    because it is full, 2 a flag or the data set is refused, 130 interrupted.
    """

    recipe: RecipeName = "two-second"
    """Whose frames and size are decoded, unless --clip... says others."""
    data: CacheDataConfig
    clip: ClipConfig = field(default_factory=ClipConfig)
    temporal_jitter: Annotated[int, tyro.conf.arg(name="augment.temporal-jitter")] = 0
    """Also decode what training shifts into view, in the split train."""
    split: tuple[str, ...] = ()
    """Splits to decode; all that are there where left out."""
    workers: int | None = None
    """Processes that decode; one per CPU where left out."""
    prune: bool = False
    """Remove the entries of clips that changed or are gone and of other decoder versions; decode nothing."""

    def __post_init__(self) -> None:
        check_flag(self.workers is None or self.workers >= 1, "--workers", self.workers, "Use 1 or more.")
        check_flag(0 <= self.temporal_jitter <= 25, "--augment.temporal-jitter", self.temporal_jitter, "Use 0 to 25.")
        for split in self.split:
            canonical_split(split)

    @property
    def processes(self) -> int:
        """How many processes decode."""
        return available_cpus() if self.workers is None else self.workers


def parse_config(args: Sequence[str]) -> CacheConfig:
    """Read the flags; prints help or what is wrong with them and exits, as command lines do."""
    recipe = RECIPES.get(requested_recipe(args, default="two-second"), two_second)  # type: ignore[call-overload]
    base = recipe(tyro.MISSING)
    data = CacheDataConfig(root=tyro.MISSING, cache_dir=tyro.MISSING)
    default = CacheConfig(recipe=base.recipe, data=data, clip=base.clip)
    return tyro.cli(CacheConfig, default=default, args=args, prog=PROG)
