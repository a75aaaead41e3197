"""What a step of training costs, beside a step on tensors in memory (the limit) and beside a plain one.

    python benchmarks/train_step.py --backbones mc3_18 --size 64
    python benchmarks/train_step.py --device cuda --json result.json       all five, bf16, 16x224x224

Sides, each in runs that alternate with runs of "limit"; a ratio is that of two neighbouring runs:

    limit            our step on batches that lie in memory: nothing is loaded
    warm cache       our step fed by our loader from a warm cache of decoded clips
    plain            a step written here as the original trainer does it: float32 pixels, views padded to the largest
                     number of the batch and computed, default memory layout, no mixed precision
    channels last, compile, checkpointing, amp bf16 / none       our step with that flag turned

Actions have 2, 3 and 4 views in turn. Clips/s counts real views. Peak memory: on a GPU what tensors took; on a CPU the
largest resident size of this process in that run (Linux), torch and the data included. All sides but "limit" and "warm
cache" have the limit's network and optimiser in memory besides their own: compare them with each other. Model FLOPs
utilisation: the floating-point operations of forward and backward (torch.utils.flop_counter: matrix products and
convolutions), without what checkpointing computes twice, per second, over the GPU's peak for dense bf16. On a CPU bf16
needs pictures that are not tiny: its 3D convolutions are wrong there, and the run ends with that sentence.

Not covered: several GPUs, a cold disk, decoding (see dataloader.py), validation.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final, get_args

# Run from anywhere: the repository is the parent of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from mvfoul.clip import ClipSpec, preset
from mvfoul.labels import ACTION_CLASSES, OFFENCE_SEVERITIES
from training.cache.store import ClipStore
from training.clips import ClipReader
from training.config import DataConfig, LoopConfig, OptimConfig, TrainConfig
from training.dataset import ActionBatch, MultiViewDataset, collate_actions
from training.frames import FrameRule
from training.learner import Learner, build_learner
from training.loop import train_one_epoch
from training.loss import FoulLoss
from training.model.names import BACKBONE_NAMES, BackboneName
from training.model.network import FoulNetwork, pad_features

PEAK_TFLOPS: Final = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "RTX 4090": 165.0}
"""Dense bf16, NVIDIA's data sheets (SXM where there are several)."""
COUNTS: Final = {"action": [1] * len(ACTION_CLASSES), "offence_severity": [1] * len(OFFENCE_SEVERITIES)}
VIEWS: Final = (2, 3, 4)


@dataclass(frozen=True)
class Run:
    """One run of one side."""

    clips_per_s: float
    wait_share: float
    peak_bytes: int


@dataclass(frozen=True)
class Row:
    """One side of one backbone: medians, and the ratio to the limit as median and quartiles."""

    backbone: str
    side: str
    clips_per_s: float
    ratio: tuple[float, float, float]
    wait_share: float
    peak_bytes: int
    mfu: float | None


Side = Callable[[], Run]


def main() -> int:
    options = _parse()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for backbone in options.backbones:
            root = _write_split(Path(folder) / "data", options)
            rows += _measure(backbone, root, Path(folder) / "cache", options)
            _report(options, [row for row in rows if row.backbone == backbone])
    if options.json:
        versions = {name: version(name) for name in ("torch", "torchvision")}
        document = {"options": {k: str(v) for k, v in vars(options).items()}, "versions": versions}
        options.json.write_text(json.dumps({**document, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backbones", nargs="+", choices=get_args(BackboneName), default=list(BACKBONE_NAMES), metavar="NAME")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--frames", type=int, default=16, help="T (default: 16)")
    add("--size", type=int, default=224, help="H = W in px (default: 224)")
    add("--actions", type=int, default=3, help="actions per step (default: 3, with 9 views)")
    add("--steps", type=int, default=2, help="steps per run (default: 2)")
    add("--repeats", type=int, default=5, help="pairs of runs (default: 5)")
    add("--workers", type=int, default=0, help="worker processes of the loader (default: 0)")
    add("--compile", action="store_true", help="also the compiled backbone; it takes minutes to make")
    add("--peak-tflops", type=float, help="of the GPU, dense bf16; known: " + ", ".join(PEAK_TFLOPS))
    add("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def _spec(options: argparse.Namespace) -> ClipSpec:
    return preset(num_frames=options.frames, size_px=options.size)


def _write_split(root: Path, options: argparse.Namespace) -> Path:
    """Write a train split whose clips are of noise: what is in them does not matter once they are decoded."""
    actions = {}
    for number in range(options.actions * options.steps):
        urls = [f"action_{number}/clip_{view}" for view in range(VIEWS[number % len(VIEWS)])]
        clips = [{"Url": url, "Camera type": "Public", "Replay speed": 1.0} for url in urls]
        labels = {"Offence": "Offence", "Action class": ACTION_CLASSES[number % 7], "Severity": "3.0"}
        actions[str(number)] = {**labels, "Clips": clips}
        for view, url in enumerate(urls):
            _encode(root / "train" / f"{url}.mp4", seed=10 * number + view)
    (root / "train" / "annotations.json").write_text(json.dumps({"Set": "train", "Actions": actions}))
    return root


def _encode(path: Path, *, seed: int, frames: int = 126) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(seed).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _measure(backbone: BackboneName, root: Path, cache: Path, options: argparse.Namespace) -> list[Row]:
    spec, device = _spec(options), torch.device(options.device)
    data = MultiViewDataset(root, "train", clip=spec)
    data.clips = ClipReader(FrameRule(spec), store=ClipStore(cache, limit_bytes=1 << 40))
    how = {"num_workers": options.workers, "persistent_workers": options.workers > 0}
    loader = DataLoader(data, options.actions, collate_fn=collate_actions, pin_memory=device.type == "cuda", **how)
    batches = [batch.to(device) for batch in loader]  # fills the cache too
    base = LoopConfig(amp="bf16" if device.type == "cuda" else "none")
    learner = _learner(backbone, spec, device, base)
    limit = _ours(learner, batches)
    rows = [_compared(backbone, "limit", limit, limit, options)]
    sides: list[tuple[str, Callable[[], Side]]] = [
        ("warm cache", lambda: _ours(learner, loader)),
        ("plain", lambda: _plain(FoulNetwork(backbone, clip=spec).to(device), batches)),
    ]
    turned = {"channels last": {"channels_last": True}, "checkpointing": {"gradient_checkpointing": True}}
    turned |= {"compile": {"compile": True}} if options.compile else {}
    turned |= {"amp none": {"amp": "none"}} if base.amp == "bf16" else {"amp bf16": {"amp": "bf16"}}
    for name, flags in turned.items():
        config = replace(base, **flags)
        sides.append((name, lambda config=config: _ours(_learner(backbone, spec, device, config), batches)))
    rows += [_compared(backbone, name, make(), limit, options) for name, make in sides]
    flops = _flops(learner, batches[0]) / len(batches[0].views)
    return [replace(row, mfu=_utilisation(row, flops, options)) for row in rows]


def _learner(backbone: BackboneName, spec: ClipSpec, device: torch.device, loop: LoopConfig) -> Learner:
    torch.manual_seed(0)
    config = TrainConfig(weights="none", data=DataConfig(root=Path()), loop=loop, optim=OptimConfig(lr=1e-6))
    return build_learner(config, FoulNetwork(backbone, clip=spec), COUNTS, device)


def _ours(learner: Learner, batches: Sequence[ActionBatch] | DataLoader) -> Side:
    def run() -> Run:
        _forget_peak(learner.device)
        system = train_one_epoch(learner, batches).system()
        speed, waiting = system["system/clips_per_second"], system["system/data_wait_share"]
        return Run(speed, waiting, _peak_bytes(learner.device))

    return run


def _plain(network: FoulNetwork, batches: Sequence[ActionBatch]) -> Side:
    """Train as one would at first: float pixels, every action padded to as many views as the largest has."""
    network.normalise = nn.Identity()  # done by the loader there
    optimizer, loss = torch.optim.AdamW(network.parameters(), lr=1e-6), FoulLoss().to(batches[0].views.device)
    padded = []
    for batch in batches:
        views, mask = pad_features(batch.views.flatten(1).float().div_(128).sub_(1), batch.view_counts)
        padded.append((views.view(*mask.shape, *batch.views.shape[1:]), mask, batch))

    def run() -> Run:
        device = batches[0].views.device
        _forget_peak(device)
        network.train()
        start = time.perf_counter()
        for views, mask, batch in padded:
            features = network.backbone(views.flatten(0, 1)).view(*mask.shape, -1)
            optimizer.zero_grad()
            loss(network.classify(features, mask), batch).mean.backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return Run(sum(len(batch.views) for batch in batches) / seconds, 0.0, _peak_bytes(device))

    return run


def _compared(backbone: str, name: str, side: Side, limit: Side, options: argparse.Namespace) -> Row:
    for run in (side, limit):
        run()  # warm-up
    pairs = list(_pairs(side, limit, options.repeats))
    low, middle, high = np.percentile([one.clips_per_s / other.clips_per_s for one, other in pairs], (25, 50, 75))
    runs = [one for one, _ in pairs]
    return Row(
        backbone,
        name,
        float(np.median([run.clips_per_s for run in runs])),
        (float(middle), float(low), float(high)),
        float(np.median([run.wait_share for run in runs])),
        max(run.peak_bytes for run in runs),
        None,
    )


def _pairs(side: Side, limit: Side, repeats: int) -> Iterator[tuple[Run, Run]]:
    for repeat in range(repeats):
        if repeat % 2:
            other = limit()
            yield side(), other
        else:
            yield side(), limit()


def _flops(learner: Learner, batch: ActionBatch) -> int:
    with FlopCounterMode(display=False) as counter, learner.autocast():
        learner.network(batch.views, batch.view_counts).action.sum().backward()
    return counter.get_total_flops()


def _utilisation(row: Row, flops_per_clip: float, options: argparse.Namespace) -> float | None:
    if options.device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    peak = options.peak_tflops or next((tflops for key, tflops in PEAK_TFLOPS.items() if key in name), None)
    return None if peak is None else row.clips_per_s * flops_per_clip / (peak * 1e12)


def _forget_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM: see proc(5)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _report(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    size = f"{options.frames}x{options.size}x{options.size}"
    print(
        f"\n{rows[0].backbone}, {size}, {options.actions} actions per step, {options.repeats} pairs of "
        f"{options.steps} steps, {where}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )
    print(f"{'side':16} {'clips/s':>8}  {'to the limit (IQR)':20} {'waits':>6} {'GiB':>6} {'MFU':>6}")
    for row in rows:
        middle, low, high = row.ratio
        mfu = "" if row.mfu is None else f"{100 * row.mfu:5.1f}%"
        ratio = f"{middle:.3f} ({low:.3f}-{high:.3f})"
        memory = row.peak_bytes / (1 << 30)
        print(f"{row.side:16} {row.clips_per_s:8.2f}  {ratio:20} {100 * row.wait_share:5.1f}% {memory:6.2f} {mfu:>6}")


if __name__ == "__main__":
    sys.exit(main())
