"""The clip that the benchmarks decode where none is given."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np


def write_noise_clip(file: Path | io.BytesIO, seed: int, *, frames: int = 126) -> None:
    """Write an h264 clip of the data set's size and length: noise on a moving gradient, so that it costs to decode."""
    rng = np.random.default_rng(seed)
    with av.open(str(file) if isinstance(file, Path) else file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 398, 224, "yuv420p"
        for i in range(frames):
            ramp = (np.arange(398)[None, :, None] + np.arange(224)[:, None, None] + 3 * i) % 200
            picture = (ramp + rng.integers(0, 40, (224, 398, 3))).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
