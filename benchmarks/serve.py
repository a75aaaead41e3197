"""What the server adds to a request: latency through gRPC against the bare ONNX Runtime session, in one run.

    python benchmarks/serve.py --artifact runs/demo/artifact
    python benchmarks/serve.py --artifact runs/demo/artifact --requests 200 --json result.json

Starts `python -m serving` on free ports of 127.0.0.1 and stops it at the end. For each case one request through gRPC
(`serving.client`, its connection open) and one run without a server alternate, the order changing each time, after a
warm-up. Without a server means, in this process and with the same number of threads:

    VIEWS    encoder and head, `onnxruntime.InferenceSession` with its default options
    CLIPS    the clips decoded in a thread pool, then the same

Clips are generated (398x224, 126 frames, h264), or given with --clips. One request at a time: this is not the
throughput under load.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Run from anywhere: the repository is the parent of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnxruntime
from noise_clip import write_noise_clip
from numpy.typing import NDArray
from servers import embedded

from mvfoul.artifact import FEATURES, VIEWS, Artifact, load_artifact
from mvfoul.video import decode_clip
from serving.client import Decision, FoulClient

PAUSE_S = 0.02
"""Between two measurements, so that threads of the one before have stopped spinning."""


@dataclass(frozen=True)
class Case:
    """Latencies of one kind of request."""

    input: str
    views: int
    requests: int
    bare_p50_ms: float
    bare_p95_ms: float
    grpc_p50_ms: float
    grpc_p95_ms: float
    ratio: float
    """p50 through gRPC over p50 without a server."""
    added_ms: float
    """Median of the differences of neighbouring pairs."""
    server_ms: dict[str, float]
    """Medians of the stages that the server reports."""


class Bare:
    """The same work without a server."""

    def __init__(self, artifact: Artifact, threads: int, decoders: int = 0) -> None:
        """Load the graphs, which get `threads`; `decoders` clips are decoded at the same time (0: as many)."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        graphs = (artifact.manifest.encoder, artifact.manifest.head)
        self._encoder, self._head = (onnxruntime.InferenceSession(artifact.path(g.file), options) for g in graphs)
        self._spec = artifact.manifest.clip
        self._pool = ThreadPoolExecutor(decoders or threads)

    def views(self, views: NDArray[np.uint8]) -> None:
        """Run encoder and head on `[V, 3, T, H, W]`."""
        (features,) = self._encoder.run([FEATURES], {VIEWS: views})
        self._head.run(None, {FEATURES: features})

    def clips(self, clips: Sequence[bytes]) -> None:
        """Decode, then the same."""
        self.views(np.stack(list(self._pool.map(lambda clip: decode_clip(clip, self._spec), clips))))


def main() -> int:
    options = _parse()
    artifact = load_artifact(options.artifact)
    clips = [path.read_bytes() for path in options.clips] or [make_clip(seed) for seed in range(3)]
    views = np.stack([decode_clip(clip, artifact.manifest.clip) for clip in clips])
    bare = Bare(artifact, options.threads)
    workers = ("--decode-workers", str(options.threads))
    with (
        embedded(options.artifact, options.threads, *workers) as server,
        FoulClient(server.grpc, timeout_s=300) as client,
    ):
        cases = [
            _measure(name, count, options.requests, *pair)
            for count in sorted({1, len(clips)})
            for name, pair in {
                "VIEWS": (lambda n=count: bare.views(views[:n]), lambda n=count: client.classify_views(views[:n])),
                "CLIPS": (lambda n=count: bare.clips(clips[:n]), lambda n=count: client.classify(clips[:n])),
            }.items()
        ]
    _report(options, artifact, cases)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True, help="the directory that `python -m export` wrote")
    parser.add_argument("--requests", type=int, default=50, help="measured pairs of each case (default: 50)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both sides")
    parser.add_argument("--clips", type=Path, nargs="*", default=[], help="video files of one action")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def make_clip(seed: int) -> bytes:
    """Return an encoded clip, see `write_noise_clip`."""
    file = io.BytesIO()
    write_noise_clip(file, seed)
    return file.getvalue()


def _measure(name: str, views: int, requests: int, bare: Callable[[], None], ask: Callable[[], Decision]) -> Case:
    for _ in range(3):
        bare()
        ask()
    bare_ms, grpc_ms, stages = [], [], []
    for i in range(requests):
        for side in ("bare", "grpc") if i % 2 else ("grpc", "bare"):
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            if side == "bare":
                bare()
                bare_ms.append((time.perf_counter() - start) * 1000)
            else:
                stages.append(ask().server_ms)
                grpc_ms.append((time.perf_counter() - start) * 1000)
    (bare_p50, bare_p95), (grpc_p50, grpc_p95) = (
        np.percentile(times, (50, 95)).tolist() for times in (bare_ms, grpc_ms)
    )
    return Case(
        input=name,
        views=views,
        requests=requests,
        bare_p50_ms=bare_p50,
        bare_p95_ms=bare_p95,
        grpc_p50_ms=grpc_p50,
        grpc_p95_ms=grpc_p95,
        ratio=grpc_p50 / bare_p50,
        added_ms=statistics.median(g - b for g, b in zip(grpc_ms, bare_ms, strict=True)),
        server_ms={stage: statistics.median(s[stage] for s in stages) for stage in stages[0]},
    )


def _report(options: argparse.Namespace, artifact: Artifact, cases: Sequence[Case]) -> None:
    origin, packages = artifact.manifest.origin, ("onnxruntime", "kserve", "grpcio", "tritonclient", "av", "numpy")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    print(f"{origin.backbone}, {origin.aggregation}, view {list(artifact.manifest.clip.view_shape)}, ", end="")
    print(f"{options.threads} threads, {options.requests} pairs per case")
    print(", ".join(f"{name} {number}" for name, number in versions.items()))
    print("\ninput  views   bare p50    p95   gRPC p50    p95   ratio   added   in the server (ms)")
    for case in cases:
        stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in case.server_ms.items())
        bare = f"{case.bare_p50_ms:>10.1f} {case.bare_p95_ms:>6.1f}"
        grpc = f"{case.grpc_p50_ms:>10.1f} {case.grpc_p95_ms:>6.1f}"
        print(f"{case.input:<6} {case.views:>5} {bare} {grpc} {case.ratio:>7.2f} {case.added_ms:>7.1f}   {stages}")
    if options.json:
        document: dict[str, Any] = {"artifact": artifact.version, "threads": options.threads, "versions": versions}
        options.json.write_text(json.dumps({**document, "cases": [asdict(case) for case in cases]}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
