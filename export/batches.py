"""What parity compares on: views that are generated, the same every time, and clips of a data set.

The generated ones include what real clips are not: black, white, noise, one view alone, one view repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mvfoul.clip import ClipSpec
from mvfoul.errors import ConfigError

Views = NDArray[np.uint8]


@dataclass(frozen=True)
class ViewBatch:
    """Views that the encoder gets in one call, and the actions that they belong to."""

    name: str
    views: Views
    """uint8 `[N, 3, T, H, W]`."""
    view_counts: tuple[int, ...]
    """V of each action, summing to N."""


def generated_batches(clip: ClipSpec) -> list[ViewBatch]:
    """Return batches of N = 1, 2, 3, 5 and 8 views; no action has more than `clip.max_views`."""
    noise, black, white = noise_view(clip, seed=1), flat_view(clip, 0), flat_view(clip, 255)
    gradients = [gradient_view(clip, direction) for direction in range(4)]
    named = {
        "one view": [noise],
        "black and white": [black, white],
        "moving gradients": gradients[:3],
        "one view repeated": [gradients[3]] * 5,
        "everything": [noise, black, white, *gradients, noise_view(clip, seed=2)],
    }
    return [ViewBatch(name, np.stack(views), _split(len(views), clip.max_views)) for name, views in named.items()]


def golden_views(clip: ClipSpec) -> Views:
    """Return the views of golden.npz: generated, since clips of a data set may not be given away."""
    views = [gradient_view(clip, 0), noise_view(clip, seed=3)]
    return np.stack(views[: clip.max_views])


def held_out_batches(
    root: Path, split: str, clip: ClipSpec, *, max_actions: int
) -> tuple[list[ViewBatch], tuple[str, ...]]:
    """Decode actions, evenly spaced over a split; labels do not matter here.

    Returns:
        One batch per action, and one sentence per clip that could not be decoded.

    Raises:
        AnnotationError: The folder does not hold this split.
        ConfigError: None of the chosen actions has a clip that can be decoded.
    """
    from training.dataset import MultiViewDataset

    data = MultiViewDataset(root, split, num_views=clip.max_views, clip=clip, filtered=False)
    chosen = np.unique(np.linspace(0, len(data) - 1, num=min(max_actions, len(data))).astype(int))
    samples = [data[int(index)] for index in chosen]
    skipped = tuple(reason for sample in samples for reason in sample.skipped)
    batches = [
        ViewBatch(f"{data.split} action {sample.action_id}", sample.views.numpy(), (len(sample.views),))
        for sample in samples
        if len(sample.views)
    ]
    if not batches:
        raise ConfigError(f"--data.root {root}: no clip of {len(samples)} actions can be decoded, such as {skipped[0]}")
    return batches, skipped


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
