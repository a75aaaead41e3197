"""Writing one action: its cameras' clips as h264 files, and its entry in the annotations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from numpy.typing import NDArray

from mvfoul.clip import TIMELINE_FPS
from training.synthetic.cameras import sample_cameras
from training.synthetic.plan import PlannedAction, annotation_fields
from training.synthetic.render import render_clip
from training.synthetic.scene import sample_scene

KEYFRAME_INTERVAL: Final = 50
"""Two seconds, as broadcasters use; SoccerNet's clips have a keyframe every 40 to 60 frames."""

# One thread: the number of threads changes the bytes. No scene cuts: keyframes at the interval only.
_X264: Final = {"preset": "superfast", "crf": "20", "threads": "1", "sc_threshold": "0"}


def write_action(
    action: PlannedAction, split_folder: Path, *, seed: int, size_px: tuple[int, int]
) -> tuple[dict[str, Any], int]:
    """Simulate an action, write its clips, and return its annotation and the bytes written."""
    rng = action.rng(seed)
    scene = sample_scene(action.labels, rng)
    cameras = sample_cameras(rng, width_px=size_px[0], height_px=size_px[1])
    fields = annotation_fields(action, rng)
    contact_ms = int(rng.integers(60_000, 2_700_000))
    folder = split_folder / action.folder
    folder.mkdir(parents=True)
    clips, size_bytes = [], 0
    for number, camera in zip(action.clip_numbers(len(cameras)), cameras, strict=True):
        path = folder / f"clip_{number}.mp4"
        encode_clip(path, render_clip(scene, camera, rng), size_px)
        size_bytes += path.stat().st_size
        # A replay is shown after the incident, later by as much as the broadcaster takes.
        delay_ms = int(rng.integers(8_000, 60_000)) if camera.kind.replay else 0
        clips.append(
            {
                "Url": f"Dataset/{action.folder}/clip_{number}",
                "Camera type": camera.kind.name,
                "Timestamp": contact_ms + delay_ms,
                "Replay speed": camera.replay_speed,
            }
        )
    return {**fields, "Clips": clips}, size_bytes


def encode_clip(path: Path, frames: Iterable[NDArray[np.uint8]], size_px: tuple[int, int]) -> None:
    """Encode uint8 RGB frames `[H, W, 3]` as h264, yuv420p, 25 frames per second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=TIMELINE_FPS, options=dict(_X264))
        stream.width, stream.height = size_px
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = KEYFRAME_INTERVAL
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
