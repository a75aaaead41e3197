"""Which `ClipSpec` a server decodes with: from its artifact where we have it, else found out by asking it.

A server tells frames and size of its views, and not which frames they are. So each preset of that shape is tried: the
right one gives the same answer for decoded views as for the clips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from mvfoul.artifact import read_manifest
from mvfoul.clip import ClipSpec, preset
from mvfoul.errors import ConfigError
from mvfoul.video import decode_clip
from serving.client import FoulClient

_SAME: Final = 1e-3
"""Difference of probabilities that two paths of the same numbers may have."""


def server_clip_spec(client: FoulClient, clips: Sequence[bytes], artifact: Path | None = None) -> ClipSpec:
    """Return the specification that the server decodes `clips` with.

    Raises:
        ConfigError: No known one gives the server's own answer.
        ServiceError: The server does not answer.
    """
    expected = client.classify(clips, priority="bulk").probabilities["action"]
    for spec in [read_manifest(artifact).clip] if artifact else _candidates(client):
        views = np.stack([decode_clip(clip, spec) for clip in clips])
        answer = client.classify_views(views, priority="bulk").probabilities["action"]
        if np.abs(np.subtract(answer, expected)).max() < _SAME:
            return spec
    cure = f"{artifact} is not what the server serves." if artifact else "Pass --artifact DIR, what the server serves."
    raise ConfigError(f"how the server chooses frames is not known here. {cure}")


def _candidates(client: FoulClient) -> Iterator[ClipSpec]:
    _, num_frames, size_px, _ = client.metadata().view_shape
    yield preset("two-second", num_frames=num_frames, size_px=size_px)
    if num_frames == 16:
        yield preset("vars-2023", num_frames=16, size_px=size_px, short_side_px=max(size_px, 256 * size_px // 224))
