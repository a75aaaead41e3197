"""What a view costs: `mvfoul.video.decode_clip` against decoding the whole file, per clip, in one run.

    python benchmarks/decode.py
    python benchmarks/decode.py --data DIR --repeats 20 --json result.json

The whole file means what `torchvision.io.read_video` did: every picture with PyAV's defaults, to RGB, into one array;
then the frames of the clip specification are chosen and resized by torchvision. Both sides run on every clip in turn,
the order changing each time, after a warm-up; their views must agree within one level of 255. A ratio is that of two
neighbouring runs. Wall time depends on what else the machine does; CPU time is that of the whole process, much less so.

Clips: those of --data (the official layout), or of the real sample where it is found, or else generated ones of the
same size (398x224, 126 frames, h264). File reads come from the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import get_args

# Run from anywhere: the repository is the parent of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
import numpy as np
import torch
from noise_clip import write_noise_clip
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional

from mvfoul.clip import ClipSpec, Preset, preset
from mvfoul.video import decode_clip

REPO = Path(__file__).resolve().parent.parent
Decode = Callable[[Path, ClipSpec], NDArray[np.uint8]]


@dataclass(frozen=True)
class Case:
    """Milliseconds per clip of one preset: medians, and the ratios of neighbouring runs as quartiles."""

    preset: str
    pairs: int
    whole_wall_ms: float
    clip_wall_ms: float
    wall_ratio: tuple[float, float, float]
    whole_cpu_ms: float
    clip_cpu_ms: float
    cpu_ratio: tuple[float, float, float]
    largest_difference: int
    """In levels of 255."""


def main() -> int:
    options = _parse()
    torch.set_num_threads(1)  # The resize of 16 small pictures is not worth a thread pool.
    with tempfile.TemporaryDirectory() as folder:
        name, clips = _find_clips(options.data, Path(folder))
        cases = [_measure(preset_name, clips, options.repeats) for preset_name in get_args(Preset)]
    _report(options, name, len(clips), cases)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data set in the official layout")
    parser.add_argument("--repeats", type=int, default=5, help="measured pairs of each clip and preset (default: 5)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def decode_whole(path: Path, spec: ClipSpec) -> NDArray[np.uint8]:
    """Decode every picture of the file, then choose and resize; uint8 `[3, T, H, W]`. 25 fps files only."""
    with av.open(str(path)) as container:
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    chosen = torch.from_numpy(pictures)[list(spec.frame_indices)].permute(0, 3, 1, 2)
    if spec.resize == "squash":
        view = functional.resize(chosen, [spec.size_px, spec.size_px], antialias=False)
    else:
        view = functional.resize(chosen, [spec.short_side_px], antialias=False)
        view = functional.center_crop(view, [spec.size_px, spec.size_px])
    return np.ascontiguousarray(view.permute(1, 0, 2, 3).numpy())


def _find_clips(data: Path | None, folder: Path) -> tuple[str, list[Path]]:
    sample = Path(os.environ.get("MVFOUL_SAMPLE", REPO.parent / "shared" / "data" / "mvfoul-sample"))
    if clips := sorted((data or sample).glob("*/action_*/clip_*.mp4")):
        return ("given clips" if data else "real sample"), clips
    if data:
        raise SystemExit(f"{data} has no <split>/action_<id>/clip_<k>.mp4; give a data set in the official layout.")
    made = [folder / f"{seed}.mp4" for seed in range(3)]
    for seed, path in enumerate(made):
        write_noise_clip(path, seed)
    return "generated clips", made


def _measure(name: Preset, clips: Sequence[Path], repeats: int) -> Case:
    spec, difference = preset(name), 0
    for path in clips:  # The warm-up, and the proof that both sides do the same.
        views = [decode(path, spec).astype(np.int16) for decode in (decode_whole, decode_clip)]
        difference = max(difference, int(np.abs(views[0] - views[1]).max()))
    if difference > 1:
        raise SystemExit(f"{name}: the two sides differ by {difference} levels; the comparison is void.")
    pairs = [_pair(path, spec, whole_first=bool((i + k) % 2)) for i in range(repeats) for k, path in enumerate(clips)]
    (whole_wall, whole_cpu), (clip_wall, clip_cpu) = (zip(*side, strict=True) for side in zip(*pairs, strict=True))
    return Case(
        preset=name,
        pairs=len(pairs),
        whole_wall_ms=statistics.median(whole_wall),
        clip_wall_ms=statistics.median(clip_wall),
        wall_ratio=_quartiles(whole_wall, clip_wall),
        whole_cpu_ms=statistics.median(whole_cpu),
        clip_cpu_ms=statistics.median(clip_cpu),
        cpu_ratio=_quartiles(whole_cpu, clip_cpu),
        largest_difference=difference,
    )


def _pair(path: Path, spec: ClipSpec, *, whole_first: bool) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return (wall, CPU) milliseconds of both sides."""
    if whole_first:
        whole = _time(decode_whole, path, spec)
        return whole, _time(decode_clip, path, spec)
    clip = _time(decode_clip, path, spec)
    return _time(decode_whole, path, spec), clip


def _time(decode: Decode, path: Path, spec: ClipSpec) -> tuple[float, float]:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    decode(path, spec)
    return (time.perf_counter() - wall_s) * 1000, (time.process_time() - cpu_s) * 1000


def _quartiles(whole: Sequence[float], clip: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and the two quartiles around it of the pairs' ratios."""
    low, middle, high = np.percentile([w / c for w, c in zip(whole, clip, strict=True)], (25, 50, 75)).tolist()
    return middle, low, high


def _report(options: argparse.Namespace, name: str, count: int, cases: Sequence[Case]) -> None:
    packages = ("av", "numpy", "torch", "torchvision")
    versions = {"python": platform.python_version(), **{package: version(package) for package in packages}}
    print(f"{count} {name}, {cases[0].pairs} pairs per preset, {len(os.sched_getaffinity(0))} cores")
    print(", ".join(f"{package} {number}" for package, number in versions.items()))
    print("\nms per clip            wall: whole    clip    ratio (IQR)       CPU: whole    clip    ratio (IQR)")
    for case in cases:
        shape = "x".join(map(str, preset(case.preset).view_shape[1:]))
        sides = (
            (case.whole_wall_ms, case.clip_wall_ms, case.wall_ratio),
            (case.whole_cpu_ms, case.clip_cpu_ms, case.cpu_ratio),
        )
        columns = (f"{whole:>11.1f} {clip:>7.1f} {r[0]:>8.2f} ({r[1]:.2f}-{r[2]:.2f})" for whole, clip, r in sides)
        print(f"{case.preset:<10} {shape:<10}  {'      '.join(columns)}")
    if options.json:
        document = {"clips": name, "count": count, "versions": versions, "cases": [asdict(case) for case in cases]}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
