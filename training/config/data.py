"""Which actions, which clips of them, which frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mvfoul.clip import RGB, ClipSpec, Resize, preset, with_size
from mvfoul.command import check_flag

_DEFAULT_CACHE_GIB = 50.0


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the actions come from and how they are loaded."""

    root: Path
    """Folder with the splits in it: train/annotations.json, train/action_0/clip_0.mp4, valid/..."""
    num_views: int = 5
    """Views per action that training draws at most; validation takes all, up to --clip.max-views."""
    replay_aware: bool = False
    """Spread the frames of a slowed replay around the contact, by its annotated speed, so that all views show about the
    same real time; in training and validation. A server knows no replay speed: it shows the network slowed replays."""
    workers: int | None = None
    """Processes that decode clips; one per CPU, at most 8, where left out. 0: decode in the training process."""
    prefetch: int | None = None
    """Batches that each worker loads ahead; 2 where left out."""
    cache_dir: Path | None = None
    """Keep decoded clips in this folder: later epochs, runs and ranks read them instead of decoding."""
    cache_gib: float | None = None
    """Size of the cache at most; 50 where left out. Nothing is thrown out for it. 0: use what is there, add nothing."""
    preload_gib: float = 0.0
    """Hold all clips in memory, of at most this many GiB for both splits; for small data. 0: load in every epoch."""

    def __post_init__(self) -> None:
        check_flag(self.num_views >= 1, "--data.num-views", self.num_views, "Use 1 or more.")
        check_flag(self.workers is None or self.workers >= 0, "--data.workers", self.workers, "Use 0 or more.")
        check_flag(self.prefetch is None or self.prefetch >= 1, "--data.prefetch", self.prefetch, "Use 1 or more.")
        check_flag(
            self.prefetch is None or self.workers != 0,
            "--data.prefetch",
            self.prefetch,
            "Without workers nothing is loaded ahead; use --data.workers 1 or more, or --data.prefetch None.",
        )
        check_flag(
            self.cache_gib is None or self.cache_dir is not None,
            "--data.cache-gib",
            self.cache_gib,
            "It goes with --data.cache-dir DIR; take it back with --data.cache-gib None.",
        )
        check_flag(0 <= self.cache_limit_gib < 2**20, "--data.cache-gib", self.cache_gib, "Use 0 or more.")
        check_flag(self.preload_gib >= 0, "--data.preload-gib", self.preload_gib, "Use 0 (off) or more.")

    @property
    def cache_limit_gib(self) -> float:
        """The cache's size at most."""
        return _DEFAULT_CACHE_GIB if self.cache_gib is None else self.cache_gib


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
