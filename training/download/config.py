"""The flags of `python -m training.download`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import tyro

from mvfoul.command import check_flag
from mvfoul.layout import Split

REPOSITORY: Final = "SoccerNet/SN-MVFouls-2024"
REPOSITORY_720P: Final = "SoccerNet/SN-MVFouls-2025"
"""Where pages of the hub, seen in 2025, list the 720p files; the one of 2024 listed only those of 224p."""

PASSWORD_VARIABLE: Final = "SOCCERNET_PASSWORD"  # noqa: S105  # the name of a variable


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Download SoccerNet-MVFoul from the Hugging Face hub and extract each split into its own folder.

    Checks sizes, hashes and checksums; goes on where it was interrupted; never changes a file that is there.

    A private or gated repository needs a token: set HF_TOKEN, or run `hf auth login`.
    """

    out: Path
    """The data set's folder; the splits become folders in it."""
    splits: tuple[Split, ...] = ("train", "valid", "test", "challenge")
    """Which splits."""
    resolution: Literal["224p", "720p"] = "224p"
    """Height of the pictures. Each resolution needs an --out of its own."""
    password: str | None = None
    """Of the zip files, where they are encrypted; you get it with SoccerNet's NDA.
    Better in the environment as SOCCERNET_PASSWORD: others on this machine can read the flags of a command."""
    keep_zips: bool = False
    """Keep the zip files, in --out; they are deleted once their split is extracted."""
    repo: str = REPOSITORY
    """Data set on the hub."""
    revision: str = "main"
    """Branch, tag or commit of it."""
    endpoint: str | None = None
    """Address of the hub; HF_ENDPOINT or https://huggingface.co where left out."""

    def __post_init__(self) -> None:
        check_flag(bool(self.splits), "--splits", self.splits, "Name at least one: train, valid, test or challenge.")
        twice = len(set(self.splits)) != len(self.splits)
        check_flag(not twice, "--splits", self.splits, "Name each split once.")
        check_flag(self.repo.count("/") == 1, "--repo", self.repo, f"Use OWNER/NAME, such as {REPOSITORY}.")

    def file_of(self, split: Split) -> str:
        """Return the name of a split's zip file."""
        return f"{split}.zip" if self.resolution == "224p" else f"{split}_{self.resolution}.zip"


def parse_config(args: Sequence[str]) -> DownloadConfig:
    """Read the flags; prints help or what is wrong with them and exits, as command lines do."""
    return tyro.cli(DownloadConfig, args=args, prog="python -m training.download")
