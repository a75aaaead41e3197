"""What parity compares on: views that are generated, the same every time, and clips of a data set.

The generated ones include what real clips are not: black, white, noise, one view alone, one view repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mvfoul.clip import ClipSpec
from mvfoul.errors import ConfigError
from mvfoul.labels import Head

Views = NDArray[np.uint8]


@dataclass(frozen=True)
class ViewBatch:
    """Views that the encoder gets in one call, and the actions that they belong to."""

    name: str
    views: Views
    """uint8 `[N, 3, T, H, W]`."""
    view_counts: tuple[int, ...]
    """V of each action, summing to N."""
    labels: Mapping[Head, tuple[int, ...]] = field(default_factory=dict)
    """One per action and head, -1 where it is not known; empty where the views are generated."""


def generated_batches(clip: ClipSpec) -> list[ViewBatch]:
    """Return batches of N = 1, 2, 3 and 7 views, 8 of them distinct; no action has more than `clip.max_views`.

    Few, because each costs seconds at full size. The last has one action of `clip.max_views` and one of the rest.
    """
    noise, black, white = noise_view(clip, seed=1), flat_view(clip, 0), flat_view(clip, 255)
    gradients = [gradient_view(clip, direction) for direction in range(4)]
    named = {
        "one view": [noise],
        "black and white": [black, white],
        "one view repeated": [gradients[3]] * 3,
        "two actions": [noise_view(clip, seed=2), *gradients, black, noise],
    }
    return [ViewBatch(name, np.stack(views), _split(len(views), clip.max_views)) for name, views in named.items()]


def golden_views(clip: ClipSpec) -> Views:
    """Return the views of golden.npz: generated, since clips of a data set may not be given away.

    They are among those of `generated_batches`, whose answers are known by then.
    """
    views = [gradient_view(clip, 0), noise_view(clip, seed=1)]
    return np.stack(views[: clip.max_views])


class HeldOut:
    """Actions of a split, evenly spaced over it; decoded each time they are iterated, so a split need not fit."""

    def __init__(self, root: Path, split: str, clip: ClipSpec, *, max_actions: int) -> None:
        """Read the annotations, and look for a first clip that can be decoded.

        Args:
            root: A data set in the official layout.
            split: One of its splits.
            clip: Frames and size.
            max_actions: How many; 0 for all.

        Raises:
            AnnotationError: The folder does not hold this split.
            ConfigError: None of the chosen actions has a clip that can be decoded.
        """
        from training.dataset import MultiViewDataset

        self._data = MultiViewDataset(root, split, num_views=clip.max_views, clip=clip, filtered=False)
        self._data.random_views = False
        self.available = len(self._data)
        chosen = min(max_actions or self.available, self.available)
        self._indices = np.unique(np.linspace(0, self.available - 1, num=chosen).astype(int))
        self.skipped: dict[str, None] = {}
        """One sentence per clip that could not be decoded so far."""
        if next(iter(self), None) is None:
            reason = next(iter(self.skipped))
            raise ConfigError(f"--data.root {root}: no clip of {len(self)} actions can be decoded, such as {reason}")

    def __len__(self) -> int:
        """How many actions were chosen; those without a usable clip are left out of the batches."""
        return len(self._indices)

    def __iter__(self) -> Iterator[ViewBatch]:
        """Yield one batch per action."""
        for index in self._indices:
            sample = self._data[int(index)]
            self.skipped |= dict.fromkeys(sample.skipped)
            if len(sample.views):
                labels: Mapping[Head, tuple[int, ...]] = {
                    "action": (sample.action,),
                    "offence_severity": (sample.offence_severity,),
                }
                name = f"{self._data.split} action {sample.action_id}"
                yield ViewBatch(name, sample.views.numpy(), (len(sample.views),), labels)


@dataclass(frozen=True)
class Clips:
    """All that an engine is compared on; can be iterated again and again."""

    generated: Sequence[ViewBatch]
    held_out: HeldOut | None = None

    def __iter__(self) -> Iterator[ViewBatch]:
        """Yield the generated batches, then the held-out ones."""
        yield from self.generated
        yield from self.held_out or ()

    def __len__(self) -> int:
        """Batches at most."""
        return len(self.generated) + (len(self.held_out) if self.held_out else 0)


def held_out_batches(
    root: Path, split: str, clip: ClipSpec, *, max_actions: int
) -> tuple[list[ViewBatch], tuple[str, ...]]:
    """Decode actions, evenly spaced over a split, all at once.

    Returns:
        One batch per action, and one sentence per clip that could not be decoded.

    Raises:
        AnnotationError, ConfigError: See `HeldOut`.
    """
    held_out = HeldOut(root, split, clip, max_actions=max_actions)
    return list(held_out), tuple(held_out.skipped)


def flat_view(clip: ClipSpec, value: int) -> Views:
    """Return a view of one grey value, `[3, T, H, W]`."""
    return np.full(clip.view_shape, value, dtype=np.uint8)


def noise_view(clip: ClipSpec, *, seed: int) -> Views:
    """Return independent pixels, `[3, T, H, W]`."""
    return np.random.default_rng(seed).integers(0, 256, clip.view_shape, dtype=np.uint8)


def gradient_view(clip: ClipSpec, direction: int) -> Views:
    """Return soft waves of colour that move one sixteenth of the picture per frame, `[3, T, H, W]`."""
    _, frames, height, width = clip.view_shape
    t, y, x = np.meshgrid(
        np.arange(frames) / 16, np.arange(height) / height, np.arange(width) / width, indexing="ij", sparse=True
    )
    angle = np.pi / 2 * direction + 0.3
    phase = np.cos(angle) * x + np.sin(angle) * y + t
    waves = [np.sin(2 * np.pi * ((1 + channel) * phase + channel / 3)) for channel in range(3)]
    return np.rint(127.5 * (1 + np.stack(waves))).astype(np.uint8)


def _split(views: int, max_views: int) -> tuple[int, ...]:
    """Split N views into actions of at most `max_views`."""
    full, rest = divmod(views, max_views)
    return (max_views,) * full + ((rest,) if rest else ())
