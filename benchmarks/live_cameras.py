"""What watching cameras costs: CPU, how far behind, what a cut takes. 4 cameras of 720p at 25 fps by default.

    python benchmarks/live_cameras.py
    python benchmarks/live_cameras.py --cameras 8 --seconds 60 --protocol rtsp --json result.json

The stream server is a process of its own, which plays a moving test pattern (h264, 1280x720, two B-frames, a keyframe a
second); its CPU time does not count. The cameras run in this process: their CPU time is all of this process's between
two instants, by `getrusage`. A picture is behind by the time from when it was taken until the buffer holds everything
up to it; reordering and FFmpeg's parser make it up to 6 pictures (0.24 s).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

# Run from anywhere: the repository is the parent of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av

from serving.live.camera import Camera, CameraSpec
from serving.live.clock import now_s

REPO = Path(__file__).resolve().parent.parent
FPS = 25


@dataclass(frozen=True)
class Outcome:
    """What was measured."""

    cameras: int
    protocol: str
    size_px: tuple[int, int]
    seconds: float
    cpu_share: float
    """Of one core, all cameras together."""
    frames: int
    frames_expected: int
    dropped: int
    behind_p50_s: float
    behind_max_s: float
    buffer_mib: float
    cut_p50_ms: float
    cut_max_ms: float
    """Of one camera, 4.1 s."""


def measure(urls: dict[str, str], *, seconds: float, protocol: str) -> Outcome:
    """Watch for some seconds, then cut a few clips. Every second, look how far behind each camera is."""
    cameras = [Camera(CameraSpec(name, url)) for name, url in urls.items()]
    for camera in cameras:
        camera.start()
    try:
        _wait_until_well(cameras)
        frames, cpu_s, begun_s = _frames(cameras), _cpu_s(), time.monotonic()
        behind_s: list[float] = []
        while time.monotonic() - begun_s < seconds:
            time.sleep(0.25)
            behind_s += [now_s() - camera.now_s() for camera in cameras]
        cpu_s, passed_s, frames = _cpu_s() - cpu_s, time.monotonic() - begun_s, _frames(cameras) - frames
        health = [camera.health() for camera in cameras]
        cuts_ms = [_cut_ms(camera) for camera in cameras for _ in range(5)]
    finally:
        for camera in cameras:
            camera.stop()
    return Outcome(
        cameras=len(cameras),
        protocol=protocol,
        size_px=(health[0].width_px, health[0].height_px),
        seconds=passed_s,
        cpu_share=cpu_s / passed_s,
        frames=frames,
        frames_expected=round(passed_s * FPS * len(cameras)),
        dropped=sum(h.dropped for h in health),
        behind_p50_s=statistics.median(behind_s),
        behind_max_s=max(behind_s),
        buffer_mib=sum(h.buffer_bytes for h in health) / 2**20,
        cut_p50_ms=statistics.median(cuts_ms),
        cut_max_ms=max(cuts_ms),
    )


def _wait_until_well(cameras: Sequence[Camera]) -> None:
    end_s = time.monotonic() + 30
    while not all(camera.health().state == "ok" and camera.health().buffer_s > 5 for camera in cameras):
        if time.monotonic() > end_s:
            raise SystemExit("\n".join(f"{h.name}: {h.state} {h.reason}" for h in (c.health() for c in cameras)))
        time.sleep(0.1)


def _frames(cameras: Sequence[Camera]) -> int:
    return sum(camera.health().frames for camera in cameras)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _cut_ms(camera: Camera) -> float:
    contact_s = camera.now_s() - 1.2
    begun_s = time.perf_counter()
    camera.cut(contact_s)
    return 1000 * (time.perf_counter() - begun_s)


@contextmanager
def streams(names: Sequence[str], protocol: str, size: tuple[int, int]) -> Iterator[dict[str, str]]:
    """Start the stream server; yield the cameras' URLs."""
    command = [sys.executable, "-m", "serving.live.streams", "--protocol", protocol, "--cameras", *names]
    process = subprocess.Popen(
        [*command, "--size", *map(str, size)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    try:
        urls: dict[str, str] = {}
        for line in process.stdout or ():
            event = json.loads(line)
            if event["event"] == "stream":
                urls[event["camera"]] = event["url"]
            if event["event"] == "ready":
                break
        yield urls
    finally:
        process.terminate()
        process.wait(timeout=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--protocol", choices=("http", "rtsp", "udp"), default="http")
    parser.add_argument("--size", type=int, nargs=2, default=(1280, 720))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with streams([f"camera{k}" for k in range(args.cameras)], args.protocol, tuple(args.size)) as urls:
        outcome = measure(urls, seconds=args.seconds, protocol=args.protocol)
    load = os.getloadavg()[0]
    print(
        f"{outcome.cameras} cameras of {outcome.size_px[0]}x{outcome.size_px[1]} at {FPS} fps over {outcome.protocol}"
    )
    print(f"  CPU        {100 * outcome.cpu_share:.1f} % of one core, all cameras together")
    print(f"  pictures   {outcome.frames} of {outcome.frames_expected} expected; {outcome.dropped} missing")
    print(f"  behind     p50 {outcome.behind_p50_s:.3f} s, max {outcome.behind_max_s:.3f} s")
    print(f"  cut        p50 {outcome.cut_p50_ms:.1f} ms, max {outcome.cut_max_ms:.1f} ms for 4.1 s")
    print(f"  buffers    {outcome.buffer_mib:.1f} MiB")
    print(f"  {os.cpu_count()} CPUs, load {load:.1f}, PyAV {av.__version__}, Python {platform.python_version()}")
    if args.json:
        args.json.write_text(json.dumps({**asdict(outcome), "load": load}, indent=2) + "\n")


if __name__ == "__main__":
    main()
