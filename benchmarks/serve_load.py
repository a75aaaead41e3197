"""The servers under load: throughput at saturation, latency below it, batching, memory. Everything on 127.0.0.1.

    python benchmarks/serve_load.py --artifact runs/demo/artifact
    python benchmarks/serve_load.py --artifact DIR --only saturation open-loop --rounds 10
    python benchmarks/serve_load.py --artifact DIR --only soak --soak-s 600

saturation   actions per second with --concurrency requests always in flight, through the embedded server and through
             the transformer and Triton, against the same work without a server, in alternating rounds:
             VIEWS against `onnxruntime.InferenceSession` with as many threads, run back to back;
             CLIPS against decoding the clips on all CPUs, as the servers do, and then the session, back to back.
open-loop    requests arrive at random (Poisson) at 50, 80 and 95 % of the capacity just measured, whether or not the
             ones before are answered. Latency counts from the time at which a request was due. A percentile beyond
             which less than one answer is expected is not given.
batching     8 actions of 1 to 4 views at a time through Triton: its own statistics say how many views it computed.
soak         80 % of the capacity for --soak-s seconds: memory of all the server's processes over time.

Memory is PSS: what processes share, such as libraries, counts once. Self-tests in the background are off: an idle
server would compute, at full size for seconds, while another side is measured.

The load comes from threads of this process, which takes processor time from the servers: on few cores these are lower
bounds. --threads (of the graphs, everywhere) leaves room for it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Run from anywhere: the repository is the parent of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import psutil
import tritonclient.grpc as triton_grpc
from serve import Bare, make_clip
from servers import Running, embedded, triton

from mvfoul.artifact import Artifact, load_artifact
from mvfoul.errors import MVFoulError, OverloadedError
from mvfoul.video import decode_clip
from serving.client import FoulClient

SECTIONS = ("saturation", "open-loop", "batching", "soak")
LOADS = (0.5, 0.8, 0.95)

Ask = Callable[[FoulClient], object]


@dataclass(frozen=True)
class Saturation:
    """Throughput of one server with one kind of request."""

    server: str
    input: str
    views: int
    actions_per_s: float
    bare_per_s: float
    ratio: float
    """Median over rounds of the server's throughput over that without a server in the same round."""
    ratio_low: float
    ratio_high: float
    """Quartiles."""


@dataclass(frozen=True)
class OpenLoop:
    """Latency of one server at a share of its capacity."""

    server: str
    load: float
    rate_per_s: float
    requests: int
    refused: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    pss_mib: float


def main() -> int:
    options = _parse()
    artifact = load_artifact(options.artifact)
    clips = [path.read_bytes() for path in options.clips] or [make_clip(seed) for seed in range(3)]
    views = np.stack([decode_clip(clip, artifact.manifest.clip) for clip in clips])
    requests: dict[str, Ask] = {"VIEWS": lambda c: c.classify_views(views), "CLIPS": lambda c: c.classify(clips)}
    bare = Bare(artifact, options.threads, decoders=len(os.sched_getaffinity(0)))
    without = {"VIEWS": lambda: bare.views(views), "CLIPS": lambda: bare.clips(clips)}
    _print_head(options, artifact, len(clips))
    document: dict[str, Any] = {"artifact": artifact.version, "threads": options.threads, "versions": _versions()}
    flags = ("--max-in-flight", str(4 * options.concurrency), "--self-test-interval-s", "86400")
    with (
        embedded(options.artifact, options.threads, *flags) as first,
        triton(options.artifact, options.threads, *flags) as second,
    ):
        servers = (first, second)
        if "saturation" in options.only:
            document["saturation"] = [
                asdict(row) for row in _saturation(options, servers, requests, without, len(clips))
            ]
        if "open-loop" in options.only:
            document["open_loop"] = [asdict(row) for row in _open_loops(options, servers, requests["CLIPS"])]
        if "batching" in options.only:
            document["batching"] = _batching(second, artifact, views)
        if "soak" in options.only:
            document["soak"] = [_soak(options, server, requests["CLIPS"]) for server in servers]
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True, help="the directory that `python -m export` wrote")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=[s for s in SECTIONS if s != "soak"])
    parser.add_argument("--threads", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1), help="of the graphs")
    parser.add_argument("--concurrency", type=int, default=8, help="requests in flight at saturation")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--round-s", type=float, default=5.0, help="of each side in each round")
    parser.add_argument("--open-s", type=float, default=30.0, help="for each load of the open loop")
    parser.add_argument("--soak-s", type=float, default=600.0)
    parser.add_argument("--clips", type=Path, nargs="*", default=[], help="video files of one action")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if options.soak_s < 30:
        parser.error(f"--soak-s {options.soak_s:g} gives too few samples of the memory; use 30 or more")
    return options


def _saturation(
    options: argparse.Namespace,
    servers: Sequence[Running],
    requests: dict[str, Ask],
    without: dict[str, Callable[[], None]],
    views: int,
) -> list[Saturation]:
    print("\nserver    input  views   actions/s   without a server   ratio (quartiles)")
    rows = []
    for name, ask in requests.items():
        sides: dict[str, Callable[[], float]] = {
            "bare": partial(_back_to_back, without[name], options.round_s),
            **{s.name: partial(_closed_loop, s, ask, options.concurrency, options.round_s) for s in servers},
        }
        rates = _rounds(sides, options.rounds)
        for server in servers:
            row = _saturation_row(server.name, name, views, rates[server.name], rates["bare"])
            rows.append(row)
            print(
                f"{row.server:<9} {row.input:<6} {row.views:>5} {row.actions_per_s:>11.2f} {row.bare_per_s:>18.2f}"
                f"   {row.ratio:.3f} ({row.ratio_low:.3f} to {row.ratio_high:.3f})",
                flush=True,
            )
    return rows


def _rounds(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure all sides in each round, each round in another order; a round before the first only warms up."""
    orders = list(itertools.permutations(sides))
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-1, rounds):
        for name in orders[number % len(orders)]:
            rate = sides[name]()
            if number >= 0:
                rates[name].append(rate)
    return rates


def _saturation_row(server: str, name: str, views: int, rates: list[float], bare: list[float]) -> Saturation:
    ratios = [rate / base for rate, base in zip(rates, bare, strict=True)]
    low, middle, high = np.percentile(ratios, (25, 50, 75)).tolist()
    return Saturation(
        server=server,
        input=name,
        views=views,
        actions_per_s=statistics.median(rates),
        bare_per_s=statistics.median(bare),
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
    )


def _back_to_back(work: Callable[[], None], seconds: float) -> float:
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        work()
        count += 1
    return count / (time.perf_counter() - start)


def _closed_loop(server: Running, ask: Ask, concurrency: int, seconds: float) -> float:
    """Return answered actions per second with `concurrency` requests always in flight."""
    ends: list[float] = []

    def press(until: float) -> None:
        with FoulClient(server.grpc, timeout_s=300) as client:
            while time.perf_counter() < until:
                ask(client)
                ends.append(time.perf_counter())

    with FoulClient(server.grpc, timeout_s=300) as client:
        ask(client)
    start = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        for future in [pool.submit(press, start + seconds) for _ in range(concurrency)]:
            future.result()
    # What is answered after the time was in flight within it; so is the time it took.
    return len(ends) / (max(ends) - start)


def _open_loops(options: argparse.Namespace, servers: Sequence[Running], ask: Ask) -> list[OpenLoop]:
    print("\nserver     load   actions/s   requests  refused   p50 ms   p95 ms   p99 ms   memory MiB")
    rows = []
    for server in servers:
        capacity = _closed_loop(server, ask, options.concurrency, 2 * options.round_s)
        for load in LOADS:
            latencies, outcomes = _open_loop(server, ask, load * capacity, options.open_s)
            p50, p95, p99 = (_percentile(latencies, percent) for percent in (50, 95, 99))
            row = OpenLoop(
                server.name, load, load * capacity, sum(outcomes.values()), outcomes["refused"], p50, p95, p99,
                _pss_mib(server),
            )  # fmt: skip
            rows.append(row)
            print(
                f"{row.server:<9} {load:>5.0%} {row.rate_per_s:>11.2f} {row.requests:>10} {row.refused:>8}"
                f" {_ms(p50):>8} {_ms(p95):>8} {_ms(p99):>8} {row.pss_mib:>12.0f}",
                flush=True,
            )
    return rows


def _open_loop(server: Running, ask: Ask, rate: float, seconds: float) -> tuple[list[float], Counter[str]]:
    """Return latencies in ms and counts of "ok" and "refused"."""
    generator = random.Random(0)  # noqa: S311
    latencies: list[float] = []
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()

    def send(due: float) -> None:
        outcome = "ok"
        try:
            ask(client)
        except OverloadedError:
            outcome = "refused"
        with lock:
            outcomes[outcome] += 1
            if outcome == "ok":
                latencies.append((time.perf_counter() - due) * 1000)

    with FoulClient(server.grpc, timeout_s=300) as client, ThreadPoolExecutor(128) as pool:
        start = due = time.perf_counter()
        futures = []
        while (due := due + generator.expovariate(rate)) < start + seconds:
            time.sleep(max(0.0, due - time.perf_counter()))
            futures.append(pool.submit(send, due))
        for future in futures:
            future.result()
    return latencies, outcomes


def _percentile(latencies: Sequence[float], percent: int) -> float | None:
    """Return None where less than one of so many latencies is expected beyond it."""
    return float(np.percentile(latencies, percent)) if len(latencies) * (100 - percent) >= 100 else None


def _ms(latency: float | None) -> str:
    return "-" if latency is None else f"{latency:.1f}"


def _batching(server: Running, artifact: Artifact, views: np.ndarray) -> dict[str, float]:
    """Return what Triton computed for 8 concurrent actions of 1 to 4 views, 10 times."""
    counts = [1 + k % 4 for k in range(8)]
    actions = [np.stack([views[v % len(views)] for v in range(count)]) for count in counts]
    before = _encoder_statistics(server, artifact)
    clients = [FoulClient(server.grpc, timeout_s=300) for _ in actions]
    with ThreadPoolExecutor(len(actions)) as pool:
        for _ in range(10):
            for future in [pool.submit(c.classify_views, a) for c, a in zip(clients, actions, strict=True)]:
                future.result()
    for client in clients:
        client.close()
    computed, calls = (after - old for after, old in zip(_encoder_statistics(server, artifact), before, strict=True))
    sent, padded = 10 * sum(counts), 10 * len(counts) * max(counts)
    print(f"\nbatching: {sent} views sent, {computed} computed in {calls} calls for {10 * len(counts)} requests;")
    print(f"          padded to the longest action it would have been {padded}")
    if computed != sent:
        raise SystemExit("Triton computed another number of views than was sent")
    return {"sent": sent, "computed": computed, "calls": calls, "requests": 10 * len(counts), "padded": padded}


def _encoder_statistics(server: Running, artifact: Artifact) -> tuple[int, int]:
    assert server.triton is not None
    with triton_grpc.InferenceServerClient(server.triton.grpc) as client:
        (found,) = client.get_inference_statistics("mvfoul_encoder", str(artifact.model_version)).model_stats
        return found.inference_count, found.execution_count


def _soak(options: argparse.Namespace, server: Running, ask: Ask) -> dict[str, Any]:
    """Load for long; return memory over time."""
    rate = 0.8 * _closed_loop(server, ask, options.concurrency, 2 * options.round_s)
    enough, samples = threading.Event(), []

    def watch() -> None:
        start = time.perf_counter()
        while not enough.wait(2.0):
            samples.append((time.perf_counter() - start, _pss_mib(server)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        latencies, outcomes = _open_loop(server, ask, rate, options.soak_s)
    except MVFoulError as error:
        raise SystemExit(f"{server.name}: a request failed during the soak: {error}") from error
    finally:
        enough.set()
        watcher.join()
    # The first fifth fills pools and caches; growth is from the second to the last.
    times, sizes = (np.array(column) for column in zip(*samples, strict=True))
    fifths = np.array_split(sizes, 5)
    growth = float(np.median(fifths[4]) - np.median(fifths[1]))
    slope = float(np.polyfit(times[len(fifths[0]) :] / 60, sizes[len(fifths[0]) :], 1)[0])
    p50, p99 = (_percentile(latencies, percent) for percent in (50, 99))
    print(
        f"\nsoak {server.name}: {times[-1]:.0f} s at {rate:.2f} actions/s, {outcomes['ok']} answered, "
        f"{outcomes['refused']} refused; p50 {_ms(p50)} ms, p99 {_ms(p99)} ms; memory {sizes[0]:.0f} MiB at first, "
        f"then by fifths {', '.join(f'{np.median(fifth):.0f}' for fifth in fifths)} (medians); from the second to the "
        f"last {growth:+.1f} MiB, slope {slope:+.2f} MiB per minute",
        flush=True,
    )
    return {
        "server": server.name,
        "rate_per_s": rate,
        "outcomes": dict(outcomes),
        "growth_mib": growth,
        "slope_mib_per_min": slope,
        "p50_ms": p50,
        "p99_ms": p99,
        "samples": samples,
    }


def _pss_mib(server: Running) -> float:
    """Return the memory of the server's processes and their children; pages that several map are shared out."""
    total = 0
    for pid in server.pids:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            try:
                total += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
    return total / 2**20


def _versions() -> dict[str, str]:
    packages = ("onnxruntime", "kserve", "grpcio", "tritonclient", "av", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _print_head(options: argparse.Namespace, artifact: Artifact, views: int) -> None:
    origin, shape, cpus = artifact.manifest.origin, list(artifact.manifest.clip.view_shape), os.sched_getaffinity(0)
    print(f"{origin.backbone}, {origin.aggregation}, view {shape}, {views} views an action")
    print(f"{options.threads} threads for the graphs, {len(cpus)} CPUs, {options.concurrency} requests in flight")
    print(", ".join(f"{name} {number}" for name, number in _versions().items()))


if __name__ == "__main__":
    sys.exit(main())
