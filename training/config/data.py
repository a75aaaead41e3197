"""Which actions, which clips of them, which frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mvfoul.clip import RGB, ClipSpec, Resize, preset, with_size
from mvfoul.command import check_flag


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the actions come from and how they are loaded."""

    root: Path
    """Folder with the splits in it: train/annotations.json, train/action_0/clip_0.mp4, valid/..."""
    num_views: int = 5
    """Views per action at most. Training draws among more, validation takes the first ones."""
    workers: int | None = None
    """Processes that decode clips; one per CPU, at most 8, where left out. 0: decode in the training process."""
    preload_gib: float = 0.0
    """Decode all clips once, into at most this many GiB of memory for both splits. 0: decode in every epoch."""

    def __post_init__(self) -> None:
        check_flag(self.num_views >= 1, "--data.num-views", self.num_views, "Use 1 or more.")
        check_flag(self.workers is None or self.workers >= 0, "--data.workers", self.workers, "Use 0 or more.")
        check_flag(self.preload_gib >= 0, "--data.preload-gib", self.preload_gib, "Use 0 (off) or more.")


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Which frames of a clip the network sees, and at what size."""

    preset: Literal["two-second", "vars-2023", "custom"] = "two-second"
    """Which frames.
    two-second: T frames evenly over 2 s around the contact, squashed to a square.
    vars-2023: 16 frames of 1 s around the contact, centre crop; for the published weights.
    custom: those of --clip.frames."""
    num_frames: int = 16
    """T, the frames per view. vars-2023 has 16."""
    frames: tuple[int, ...] | None = None
    """Numbers of the frames to use, at 25 fps; only with --clip.preset custom. The contact is near frame 75."""
    resize: Resize | None = None
    """How the picture becomes a square; left out: as the preset does, and custom squashes.
    squash: the whole picture, its aspect ratio lost.
    center_crop: the middle, half of the width of a 16:9 picture."""
    size_px: int = 224
    """Height and width that the network sees."""
    max_views: int = 5
    """Views per action that an exported network accepts at most."""

    def __post_init__(self) -> None:
        custom = self.preset == "custom"
        check_flag(
            custom == (self.frames is not None),
            "--clip.frames",
            self.frames,
            "It goes with --clip.preset custom, and only with that; take it back with --clip.frames None.",
        )
        check_flag(
            self.frames is None or len(self.frames) == self.num_frames,
            "--clip.num-frames",
            self.num_frames,
            f"--clip.frames names {len(self.frames or ())} frames; use the same number.",
        )
        self.spec()

    def spec(self, **normalisation: RGB) -> ClipSpec:
        """Build the clip specification; `mean` and `std` as for `ClipSpec`.

        Raises:
            ClipSpecError: The values contradict each other.
        """
        overrides: dict[str, Any] = {"max_views": self.max_views, **normalisation}
        if self.resize is not None:
            overrides["resize"] = self.resize
        if self.frames is not None:
            window = (min(self.frames, default=0), max(self.frames, default=0) + 1)
            spec = ClipSpec(window=window, frame_indices=self.frames, **overrides)
        else:
            spec = preset(self.preset, num_frames=self.num_frames, **overrides)  # type: ignore[arg-type]
        return with_size(spec, self.size_px)
