"""What Triton's batching costs and gains on the CPU: actions per second against the bare session, in one run.

    python benchmarks/triton_batching.py --artifact runs/demo/artifact
    python benchmarks/triton_batching.py --artifact runs/demo/artifact --clients 1 8 --views 3 --rounds 5

Writes a model repository (`--encoder python`), starts the genuine Triton (`scripts/triton.sh`) and stops it at the end.
Bare means encoder and head of one action after the other in this process, with the same number of threads. Each round
measures bare and every number of clients once, in turns; clients ask encoder and head as the transformer does, each
sending its next action when it has the answer of the last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Run from anywhere: the repository is the parent of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tritonclient.grpc as triton_grpc
from numpy.typing import NDArray

from mvfoul.artifact import FEATURES, VIEWS, Artifact, load_artifact
from mvfoul.command import available_cpus
from serving.graphs import OnnxGraphs
from serving.local_triton import LocalTriton, TritonConfig
from serving.repository.config import RepositoryConfig
from serving.repository.publish import publish


@dataclass
class Load:
    """What so many clients got; one entry per round in each list."""

    clients: int
    actions_per_s: list[float] = field(default_factory=list)
    share_of_bare: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    views_sent: int = 0
    views_computed: int = 0
    encoder_calls: int = 0


def main() -> None:
    """Measure, and print a table or JSON."""
    options = _parse()
    artifact = load_artifact(options.artifact)
    graphs = OnnxGraphs(artifact, threads=options.threads)
    shape = (options.views, *artifact.manifest.clip.view_shape)
    views = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    loads = [Load(clients) for clients in options.clients]
    with _triton(artifact, options.threads, options.max_batch) as triton:
        _bare(graphs, views, 1.0)
        for _ in range(options.rounds):
            bare = _bare(graphs, views, options.seconds)
            for load in loads:
                _measure(triton, artifact, views, load, options.seconds)
                load.share_of_bare.append(load.actions_per_s[-1] / bare)
    if options.json:
        options.json.write_text(json.dumps([asdict(load) for load in loads], indent=2) + "\n")
    sys.stdout.write("\n".join(_table(loads, options)) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Triton's batching against the bare session, on the CPU.")
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--views", type=int, default=3, help="of each action")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--threads", type=int, default=available_cpus(), help="of both; default: every CPU")
    parser.add_argument("--max-batch", type=int, default=16, help="views in one call of the encoder")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    return parser.parse_args()


@contextmanager
def _triton(artifact: Artifact, threads: int, max_batch: int) -> Iterator[LocalTriton]:
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        publish(
            RepositoryConfig(
                artifact=artifact.directory,
                output=repository,
                encoder="python",
                threads=threads,
                max_batch=max_batch,
                queue_timeout_ms=600_000,
            )
        )
        with LocalTriton(TritonConfig(repository=repository, ready_s=600, log=Path(folder) / "log")) as triton:
            yield triton


def _bare(graphs: OnnxGraphs, views: NDArray[np.uint8], seconds: float) -> float:
    """Return actions per second without a server."""
    start, actions = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        graphs.classify(graphs.encode(views))
        actions += 1
    return actions / passed


def _measure(triton: LocalTriton, artifact: Artifact, views: NDArray[np.uint8], load: Load, seconds: float) -> None:
    """Let all clients ask for so long; what has begun is finished and counted with the time that it took."""
    before = _counts(triton, artifact)
    latencies: list[float] = []
    start = time.perf_counter()
    clients = [
        threading.Thread(target=_ask, args=(triton, artifact, views, start + seconds, latencies))
        for _ in range(load.clients)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    passed = time.perf_counter() - start
    computed, calls = (after - earlier for after, earlier in zip(_counts(triton, artifact), before, strict=True))
    load.actions_per_s.append(len(latencies) / passed)
    load.latencies_ms.extend(latencies)
    load.views_sent += len(latencies) * len(views)
    load.views_computed += computed
    load.encoder_calls += calls


def _ask(
    triton: LocalTriton, artifact: Artifact, views: NDArray[np.uint8], until: float, latencies: list[float]
) -> None:
    version = str(artifact.model_version)
    with triton_grpc.InferenceServerClient(triton.grpc) as client:
        while (start := time.perf_counter()) < until:
            features = client.infer("mvfoul_encoder", [_tensor(VIEWS, views, "UINT8")], version).as_numpy(FEATURES)
            client.infer("mvfoul_head", [_tensor(FEATURES, features, "FP32")], version)
            latencies.append((time.perf_counter() - start) * 1000)


def _tensor(name: str, values: NDArray[Any], datatype: str) -> triton_grpc.InferInput:
    tensor = triton_grpc.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


def _counts(triton: LocalTriton, artifact: Artifact) -> tuple[int, int]:
    """Return views and calls of the encoder, as Triton counts them."""
    with triton_grpc.InferenceServerClient(triton.grpc) as client:
        statistic = client.get_inference_statistics("mvfoul_encoder", str(artifact.model_version)).model_stats[0]
        batches = sum(entry.batch_size * entry.compute_infer.count for entry in statistic.batch_stats)
        return batches, statistic.execution_count


def _table(loads: Sequence[Load], options: argparse.Namespace) -> list[str]:
    lines = [f"{options.views} views per action, {options.threads} threads, {options.rounds} rounds"]
    lines.append("clients   actions/s   of bare (median, best)   p50 ms   p95 ms   views per call   padded views")
    for load in loads:
        p50, p95 = np.percentile(load.latencies_ms, [50, 95])
        share = statistics.median(load.share_of_bare)
        lines.append(
            f"{load.clients:7}   {statistics.median(load.actions_per_s):9.2f}   "
            f"{share:14.2f}, {max(load.share_of_bare):4.2f}   {p50:6.0f}   {p95:6.0f}   "
            f"{load.views_computed / load.encoder_calls:14.1f}   {load.views_computed - load.views_sent:12}"
        )
    return lines


if __name__ == "__main__":
    main()
