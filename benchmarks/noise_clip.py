"""The clip that the benchmarks decode where none is given."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np


def write_noise_clip(
    file: Path | io.BytesIO,
    seed: int,
    *,
    frames: int = 126,
    size: tuple[int, int] = (398, 224),
    noise: int = 40,
    gop: int = 250,
) -> None:
    """Write an h264 clip, by default of the data set's size: noise on a moving gradient, so that it costs to decode."""
    width, height = size
    rng = np.random.default_rng(seed)
    with av.open(str(file) if isinstance(file, Path) else file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.gop_size = gop
        for i in range(frames):
            ramp = (np.arange(width)[None, :, None] + np.arange(height)[:, None, None] + 3 * i) % 200
            picture = (ramp + rng.integers(0, noise, (height, width, 3))).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
