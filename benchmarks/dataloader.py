"""Clips per second that reach training: our loader, decoding and from a warm cache, against a plain one.

    python benchmarks/dataloader.py
    python benchmarks/dataloader.py --data DIR --repeats 9 --workers 2 --json result.json

The plain loader is written here from the description of how VARS loads: it decodes every picture of the file to RGB
with PyAV's defaults, chooses the frames, puts each clip through torchvision's resize and random changes (affine,
perspective, rotation, colour, flip), turns it into float32, and pads the actions of a batch to the same number of
views. Ours yields uint8; its random changes are drawn here and made on the device: "changed on this CPU" adds them, so
that both sides end with changed pixels. Both load the same actions in batches with the same workers.

A ratio is that of two neighbouring epochs; the order alternates. Without workers the clock is the CPU time of the
process (one thread), which other jobs on the machine disturb little; with workers it is the time on the wall. The first
epoch of each is a warm-up. Clips: those of --data (the official layout), else the real sample where it is found, else
generated ones of the same size. File reads come from the page cache, the decoded ones too: a cold disk adds its own
time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

# Run from anywhere: the repository is the parent of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
import numpy as np
import torch
from noise_clip import write_noise_clip
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from mvfoul.clip import ClipSpec, preset
from training.augment.pixels import augment
from training.cache.store import ClipStore
from training.clips import ClipReader
from training.config.augment import PRESETS
from training.dataset import MultiViewDataset, collate_actions
from training.frames import FrameRule

REPO = Path(__file__).resolve().parent.parent
Epoch = Callable[[], int]
"""Loads everything once; returns the clips that it loaded."""
Clock = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """One kind of loader beside the plain one."""

    name: str
    clips_per_s: float
    plain_clips_per_s: float
    ratio: tuple[float, float, float]
    """Median and quartiles of neighbouring epochs."""


class PlainDataset(Dataset):
    """Whole files, one transform chain per clip."""

    def __init__(self, actions: Sequence[Sequence[Path]], spec: ClipSpec) -> None:
        self._actions, self._frames = actions, list(spec.frame_indices)
        ranges = PRESETS["original"]
        self._transform = v2.Compose(
            [
                v2.Resize([spec.size_px, spec.size_px], antialias=True),
                v2.RandomAffine(degrees=0, translate=(ranges.translate, ranges.translate), scale=ranges.scale),
                v2.RandomPerspective(distortion_scale=ranges.perspective, p=0.5),
                v2.RandomRotation(degrees=ranges.rotation_deg),
                v2.ColorJitter(brightness=ranges.brightness, contrast=ranges.contrast, saturation=ranges.saturation),
                v2.RandomHorizontalFlip(ranges.flip),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(spec.mean, spec.std),
            ]
        )

    def __len__(self) -> int:
        return len(self._actions)

    def __getitem__(self, index: int) -> Tensor:
        views = []
        for path in self._actions[index]:
            with av.open(str(path)) as container:
                pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
            frames = torch.from_numpy(pictures[self._frames]).permute(0, 3, 1, 2)
            views.append(self._transform(frames).permute(1, 0, 2, 3))
        return torch.stack(views)


def pad_views(samples: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Return f32 `[B, V, 3, T, H, W]`, V the largest number of views, and the number of real ones."""
    most = max(len(views) for views in samples)
    padded = torch.zeros(len(samples), most, *samples[0].shape[1:])
    for row, views in zip(padded, samples, strict=True):
        row[: len(views)] = views
    return padded, sum(map(len, samples))


def main() -> int:
    options = _parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        name, root, split = _find_data(options.data, Path(folder))
        rows, clips = _measure(root, split, Path(folder) / "cache", options)
    _report(options, f"{clips} clips of {name}", rows)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data set in the official layout")
    parser.add_argument("--split", default="test", help="of --data (default: test)")
    parser.add_argument("--repeats", type=int, default=7, help="measured pairs of epochs (default: 7)")
    parser.add_argument("--workers", type=int, default=0, help="worker processes of each loader (default: 0)")
    parser.add_argument("--batch-size", type=int, default=3, help="actions per batch (default: 3)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def _find_data(data: Path | None, folder: Path) -> tuple[str, Path, str]:
    if data is not None:
        return str(data), data, _parse().split
    sample = Path(os.environ.get("MVFOUL_SAMPLE", REPO.parent / "shared" / "data" / "mvfoul-sample"))
    if (sample / "test" / "annotations.json").is_file():
        return "the real sample", sample, "test"
    return "generated scenes", _generate(folder / "data"), "test"


def _generate(root: Path) -> Path:
    """Three actions of three clips, of the data set's size and length: noise on a moving gradient."""
    clips = [{"Url": f"action_%d/clip_{k}", "Camera type": "Public", "Replay speed": 1.0} for k in range(3)]
    actions = {}
    for number in range(3):
        listed = [{**clip, "Url": clip["Url"] % number} for clip in clips]
        actions[str(number)] = {"Offence": "Offence", "Action class": "Holding", "Severity": "3.0", "Clips": listed}
        for k in range(3):
            path = root / "test" / f"action_{number}" / f"clip_{k}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_noise_clip(path, 3 * number + k)
    (root / "test" / "annotations.json").write_text(json.dumps({"Set": "test", "Actions": actions}))
    return root


def _measure(root: Path, split: str, cache: Path, options: argparse.Namespace) -> tuple[list[Row], int]:
    spec = preset("two-second")
    opened = MultiViewDataset(root, split, clip=spec)
    paths = [[clip.path for clip in record.clips] for record in opened.records]
    how = {"batch_size": options.batch_size, "num_workers": options.workers, "persistent_workers": options.workers > 0}
    plain = DataLoader(PlainDataset(paths, spec), collate_fn=pad_views, **how)
    store = ClipStore(cache, limit_bytes=1 << 40)

    def ours(reader: ClipReader) -> DataLoader:
        data = MultiViewDataset(root, split, clip=spec)
        data.clips, data.augmentation = reader, PRESETS["original"]
        return DataLoader(data, collate_fn=collate_actions, **how)

    decoding, cached = ours(ClipReader(FrameRule(spec))), ours(ClipReader(FrameRule(spec), store=store))

    def load_plain() -> int:
        return sum(count for _, count in plain)

    clock = time.perf_counter if options.workers else time.process_time
    sides: dict[str, Epoch] = {
        "decoded": lambda: sum(len(batch.views) for batch in decoding),
        "decoded, changed on this CPU": lambda: sum(len(augment(batch).views) for batch in decoding),
        "warm cache": lambda: sum(len(batch.views) for batch in cached),
        "warm cache, changed on this CPU": lambda: sum(len(augment(batch).views) for batch in cached),
    }
    return [_pairs(name, (epoch, load_plain), options.repeats, clock) for name, epoch in sides.items()], load_plain()


def _pairs(name: str, sides: tuple[Epoch, Epoch], repeats: int, clock: Clock) -> Row:
    for epoch in sides:
        epoch()
    speeds = list(_speeds(sides, repeats, clock))
    ratios = [fast / slow for fast, slow in speeds]
    low, middle, high = np.percentile(ratios, (25, 50, 75)).tolist()
    fast, slow = (statistics.median(side) for side in zip(*speeds, strict=True))
    return Row(name, fast, slow, (middle, low, high))


def _speeds(sides: tuple[Epoch, Epoch], repeats: int, clock: Clock) -> Iterator[tuple[float, float]]:
    ours, plain = sides
    for repeat in range(repeats):
        if repeat % 2:
            slow = _speed(plain, clock)
            yield _speed(ours, clock), slow
        else:
            yield _speed(ours, clock), _speed(plain, clock)


def _speed(epoch: Epoch, clock: Clock) -> float:
    start = clock()
    return epoch() / (clock() - start)


def _report(options: argparse.Namespace, what: str, rows: Sequence[Row]) -> None:
    versions = {name: version(name) for name in ("av", "torch", "torchvision")}
    cores = len(os.sched_getaffinity(0))
    print(f"{what}, {options.repeats} pairs, {options.workers} workers, {cores} cores, {time.strftime('%Y-%m-%d')}")
    print(", ".join(f"{name} {number}" for name, number in versions.items()))
    print(f"\n{'clips/s':34} {'ours':>8} {'plain':>7}  ratio (IQR)")
    for row in rows:
        middle, low, high = row.ratio
        print(f"{row.name:34} {row.clips_per_s:8.1f} {row.plain_clips_per_s:7.2f}  {middle:.1f} ({low:.1f}-{high:.1f})")
    if options.json:
        document = {"clips": what, "versions": versions, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
