"""The flags of `python -m training.synthetic`, as frozen dataclasses. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import tyro

from mvfoul.command import check_flag, requested_recipe
from mvfoul.errors import ConfigError

RecipeName = Literal["full", "demo"]
SplitName = Literal["train", "valid", "test"]

PROG: Final = "python -m training.synthetic"
GENERATOR: Final = 2
"""Counts up whenever the same flags give other clips or labels; a data set of another number is another data set."""

_MIN_PX = 32
_MAX_PX = 1280


@dataclass(frozen=True, kw_only=True)
class SplitShares:
    """How the actions are divided; the shares add up to 1."""

    train: float = 0.7
    """Share of train."""
    valid: float = 0.1
    """Share of valid."""
    test: float = 0.2
    """Share of test."""

    def __post_init__(self) -> None:
        shares = (self.train, self.valid, self.test)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(
                f"--splits.train, --splits.valid, --splits.test are {shares}. Use three shares that add up to 1."
            )

    def counts(self, actions: int) -> dict[SplitName, int]:
        """Divide a number of actions; train takes what rounding leaves."""
        valid, test = round(self.valid * actions), round(self.test * actions)
        return {"train": actions - valid - test, "valid": valid, "test": test}


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Make a synthetic multi-camera data set in SoccerNet-MVFoul's layout.

    Simulates incidents, films each with 2 to 4 cameras, and writes <out>/<split>/annotations.json and
    <out>/<split>/action_<id>/clip_<k>.mp4.

    The labels are decided by motion around the contact that no single camera and no single frame shows.

    The same flags give the same bytes, with the same versions of the libraries.

    A complete data set of the same flags is kept.
    """

    out: Path
    """Folder of the data set."""
    recipe: RecipeName = "full"
    """Settings to start from.
    full: pictures as large as SoccerNet's.
    demo: small pictures, as many actions as `python -m training --recipe cpu-demo` needs."""
    actions: int = 500
    """Actions of all splits together."""
    seed: int = 0
    """Of everything."""
    splits: SplitShares = field(default_factory=SplitShares)
    width: int = 398
    """Of the picture, in pixels; even."""
    height: int = 224
    """Of the picture, in pixels; even."""
    filtered_fraction: float = 0.05
    """Share of the actions that are annotated in one of the 13 odd ways that the official filter is for.
    It drops about half of them."""
    workers: int = 2
    """Processes that draw and encode. 1: this process."""
    overwrite: bool = False
    """Replace the synthetic data set that --out holds. Any other folder is never replaced."""

    def __post_init__(self) -> None:
        check_flag(self.actions >= 3, "--actions", self.actions, "Use 3 or more.")
        check_flag(0 <= self.seed < 2**32, "--seed", self.seed, "Use a whole number from 0 to 4294967295.")
        for flag, value in (("--width", self.width), ("--height", self.height)):
            good = _MIN_PX <= value <= _MAX_PX and value % 2 == 0
            check_flag(good, flag, value, f"Use an even number from {_MIN_PX} to {_MAX_PX}: yuv420p halves it.")
        check_flag(0 <= self.filtered_fraction <= 1, "--filtered-fraction", self.filtered_fraction, "Use 0 to 1.")
        check_flag(self.workers >= 1, "--workers", self.workers, "Use 1 or more.")

    def identity(self) -> dict[str, Any]:
        """Return what decides the data set's bytes: two data sets of equal identity are the same."""
        values = {"actions": self.actions, "seed": self.seed, "splits": asdict(self.splits)}
        picture = {"width": self.width, "height": self.height, "filtered_fraction": self.filtered_fraction}
        return {"generator": GENERATOR, **values, **picture}


def full(out: Path) -> SyntheticConfig:
    """Pictures as large as SoccerNet's."""
    return SyntheticConfig(out=out)


def demo(out: Path) -> SyntheticConfig:
    """What `make demo` trains on: quick to write and to decode."""
    return SyntheticConfig(out=out, recipe="demo", actions=800, width=160, height=90)


RECIPES: Final[Mapping[RecipeName, Callable[[Path], SyntheticConfig]]] = MappingProxyType({"full": full, "demo": demo})


def parse_config(args: Sequence[str]) -> SyntheticConfig:
    """Read the flags; prints help or what is wrong with them and exits, as command lines do."""
    # The recipe is read first; tyro then reads everything, it included, and refuses a name that is none.
    default = RECIPES.get(requested_recipe(args, default="full"), full)(tyro.MISSING)  # type: ignore[call-overload]
    config: SyntheticConfig = tyro.cli(SyntheticConfig, default=default, args=args, prog=PROG)
    return config
