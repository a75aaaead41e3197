"""The servers under load from generators not written here: NVIDIA's perf_analyzer and nghttp2's h2load. Loopback only.

    scripts/load_generators.sh        # once: installs both
    python benchmarks/load_generators.py --artifact runs/demo/artifact
    python benchmarks/load_generators.py --artifact DIR --requests 500 --clients 4 --json result.json

h2load         drives the embedded server, and the transformer in front of Triton: gRPC and REST, clips and raw views
perf_analyzer  drives Triton itself, as the transformer finds it: the ensemble `mvfoul` and the encoder `mvfoul_encoder`

Closed loop: --clients requests are always in flight, one on each connection. Each round measures every case once, in
turning order, after a round that only warms up; rates and latencies are medians over the rounds, with the lowest and
the highest rate. The generators share the machine with the servers, which makes the rates lower bounds.

A case counts only if the server says so itself: h2load sees HTTP 200 where a gRPC request failed, so the server's
`mvfoul_request_duration_seconds_count{outcome="ok"}`, or Triton's statistics of the model, must have moved by exactly
the number of requests, and no failure's count at all. Self-tests in the background are off meanwhile: Triton would
count them too. p99 of N requests rests on N / 100 of them.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import statistics
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Run from anywhere: the repository is the parent of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tritonclient.grpc as triton_grpc
from load_tools import H2Load, Load, LoadToolError, PerfAnalyzer, Reading
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from serve import make_clip
from servers import Running, embedded, triton
from tritonclient.utils import serialize_byte_tensor

from mvfoul.artifact import Artifact, load_artifact
from mvfoul.video import decode_clip

COUNTED_S = 5.0
"""A server counts a request after its answer has left; it gets so long for it."""


@dataclass(frozen=True)
class Case:
    """One tool, one server, one kind of request."""

    tool: str
    server: str
    protocol: str
    input: str
    press: Callable[[Load], Reading]
    """Sends the requests."""
    counts: Callable[[], Counter[str]]
    """How many requests of this protocol the server has answered, by outcome; "ok" is one."""


@dataclass
class Row:
    """What a case gave; one entry per round in each list."""

    tool: str
    server: str
    protocol: str
    input: str
    requests_per_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    command: str = ""
    """Of the last round."""
    failure: str = ""
    """Why it was given up."""


def main() -> int:
    options = _parse()
    try:
        load = Load(options.requests, options.clients, options.timeout_s)
        h2load, perf_analyzer = H2Load(), PerfAnalyzer()
    except LoadToolError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    artifact = load_artifact(options.artifact)
    clips = [path.read_bytes() for path in options.clips] or [make_clip(seed) for seed in range(3)]
    views = np.stack([decode_clip(clip, artifact.manifest.clip) for clip in clips])
    bodies = Bodies(options.work, clips, views)
    versions = _versions() | {tool.name: tool.version for tool in (h2load, perf_analyzer)}
    _print_head(options, artifact, versions, len(clips))
    flags = ("--max-in-flight", str(4 * options.clients), "--self-test-interval-s", "86400")
    with (
        embedded(options.artifact, options.threads, *flags) as first,
        triton(options.artifact, options.threads, *flags) as second,
    ):
        cases = [case for server in (first, second) for case in _through_our_servers(h2load, server, bodies)]
        cases += _triton_itself(options, perf_analyzer, second, artifact, views)
        rows = _rounds(cases, load, options.rounds)
    _print_rows(rows)
    if options.json:
        settings = {name: getattr(options, name) for name in ("threads", "clients", "requests", "rounds")}
        document = {"artifact": artifact.version, "views": len(clips), **settings, "versions": versions}
        options.json.write_text(json.dumps({**document, "cases": [asdict(row) for row in rows]}, indent=2) + "\n")
    return int(any(row.failure for row in rows))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True, help="the directory that `python -m export` wrote")
    parser.add_argument("--requests", type=int, default=200, help="of each case in each round (default: 200)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=8, help="requests in flight (default: 8)")
    parser.add_argument(
        "--timeout-s", type=float, default=300.0, help="a case that takes longer in a round is given up"
    )
    parser.add_argument("--threads", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1), help="of the graphs")
    parser.add_argument("--clips", type=Path, nargs="*", default=[], help="video files of one action")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/load_generators"), help="bodies and reports are kept here"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


class Bodies:
    """Files with one request each, as h2load sends them."""

    def __init__(self, folder: Path, clips: Sequence[bytes], views: NDArray[np.uint8]) -> None:
        """Write them: `clips` are encoded videos, `views` uint8 `[V, 3, T, H, W]`."""
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        named = {"CLIPS": np.array(clips, dtype=object), "VIEWS": views}
        self.grpc = {name: self._write(f"grpc_{name}.body", grpc_body(name, tensor)) for name, tensor in named.items()}
        rest = {name: rest_body(name, tensor) for name, tensor in named.items()}
        self.rest = {name: (self._write(f"rest_{name}.body", body), headers) for name, (body, headers) in rest.items()}

    def _write(self, name: str, body: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(body)
        return path


def grpc_body(name: str, tensor: NDArray[Any]) -> bytes:
    """Return a ModelInferRequest with one input in gRPC's frame: not compressed, length in 4 bytes, message."""
    request = triton_grpc.service_pb2.ModelInferRequest(model_name="mvfoul")
    clips = tensor.dtype == object
    request.inputs.add(name=name, datatype="BYTES" if clips else "UINT8", shape=tensor.shape)
    request.raw_input_contents.append(serialize_byte_tensor(tensor).item() if clips else tensor.tobytes())
    message: bytes = request.SerializeToString()
    return b"\0" + len(message).to_bytes(4, "big") + message


def rest_body(name: str, tensor: NDArray[Any]) -> tuple[bytes, list[str]]:
    """Return body and headers: clips as base64 in JSON, views raw behind the JSON (the binary extension)."""
    document: dict[str, Any] = {"name": name, "shape": list(tensor.shape)}
    if tensor.dtype == object:
        document |= {"datatype": "BYTES", "data": [base64.b64encode(clip).decode() for clip in tensor]}
        return json.dumps({"inputs": [document]}).encode(), ["content-type: application/json"]
    document |= {"datatype": "UINT8", "parameters": {"binary_data_size": tensor.nbytes}}
    header = json.dumps({"inputs": [document]}).encode()
    return header + tensor.tobytes(), [
        "content-type: application/octet-stream",
        f"inference-header-content-length: {len(header)}",
    ]


def _through_our_servers(h2load: H2Load, server: Running, bodies: Bodies) -> Iterator[Case]:
    name = {"embedded": "embedded", "triton": "transformer"}[server.name]
    for protocol in ("grpc", "rest"):
        for kind in ("CLIPS", "VIEWS"):
            if protocol == "grpc":
                url = f"http://{server.grpc}/inference.GRPCInferenceService/ModelInfer"
                body, headers = bodies.grpc[kind], ["content-type: application/grpc", "te: trailers"]
            else:
                url = f"http://{server.http}/v2/models/mvfoul/infer"
                body, headers = bodies.rest[kind]
            press = partial(h2load.post, url, body, headers)
            yield Case(h2load.name, name, protocol, kind, press, partial(our_counts, server.http, protocol))


def our_counts(http: str, protocol: str) -> Counter[str]:
    """Return requests by outcome, from /metrics."""
    with urllib.request.urlopen(f"http://{http}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    counts: Counter[str] = Counter()
    for sample in (sample for family in families for sample in family.samples):
        if sample.name == "mvfoul_request_duration_seconds_count" and sample.labels["protocol"] == protocol:
            counts[sample.labels["outcome"]] = int(sample.value)
    return counts


def _triton_itself(
    options: argparse.Namespace, tool: PerfAnalyzer, server: Running, artifact: Artifact, views: NDArray[np.uint8]
) -> Iterator[Case]:
    assert server.triton is not None
    grpc, work = server.triton.grpc, options.work.resolve()
    for name in ("mvfoul", "mvfoul_encoder"):
        model = (name, str(artifact.model_version))
        press = partial(tool.infer, grpc, model, views.shape, work=work)
        yield Case(tool.name, f"triton: {name}", "grpc", "VIEWS", press, partial(_triton_counts, grpc, *model))


def _triton_counts(grpc: str, model: str, model_version: str) -> Counter[str]:
    """Return requests by outcome, from Triton's own statistics."""
    with triton_grpc.InferenceServerClient(grpc) as client:
        (found,) = client.get_inference_statistics(model, model_version).model_stats
        return Counter(ok=found.inference_stats.success.count, failed=found.inference_stats.fail.count)


def _rounds(cases: Sequence[Case], load: Load, rounds: int) -> list[Row]:
    """Measure; a case that fails is given up, the others go on."""
    rows = [Row(case.tool, case.server, case.protocol, case.input) for case in cases]
    pairs = list(zip(cases, rows, strict=True))
    warm_up = replace(load, requests=2 * load.clients)
    for number in range(-1, rounds):
        for case, row in pairs if number % 2 else reversed(pairs):
            if row.failure:
                continue
            try:
                reading = measure(case, load if number >= 0 else warm_up)
            except LoadToolError as error:
                row.failure = str(error)
                continue
            if number >= 0:
                row.requests_per_s.append(reading.requests_per_s)
                row.p50_ms.append(reading.p50_ms)
                row.p99_ms.append(reading.p99_ms)
                row.command = reading.command
    return rows


def measure(case: Case, load: Load) -> Reading:
    """Press, and compare with what the server counted.

    Raises:
        LoadToolError: The tool failed, or the server counted something else.
    """
    before = case.counts()
    reading = case.press(load)
    deadline = time.monotonic() + COUNTED_S
    while (moved := case.counts() - before).total() < load.requests and time.monotonic() < deadline:
        time.sleep(0.05)
    if moved != Counter(ok=load.requests):
        raise LoadToolError(f"{load.requests} requests were sent, the server counted {dict(moved)}: {reading.command}")
    return reading


def _versions() -> dict[str, str]:
    packages = ("onnxruntime", "kserve", "grpcio", "uvicorn", "av", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _print_head(options: argparse.Namespace, artifact: Artifact, versions: dict[str, str], views: int) -> None:
    origin, shape, cpus = artifact.manifest.origin, list(artifact.manifest.clip.view_shape), os.sched_getaffinity(0)
    print(f"{origin.backbone}, {origin.aggregation}, view {shape}, {views} views an action")
    print(f"{options.threads} threads for the graphs, {len(cpus)} CPUs, {options.clients} requests in flight, ", end="")
    print(f"{options.rounds} rounds of {options.requests} requests")
    print(", ".join(f"{name} {number}" for name, number in versions.items()), flush=True)


def _print_rows(rows: Sequence[Row]) -> None:
    print(f"\n{'tool':<14} {'server':<22} {'by':<5} input   actions/s (lowest to highest)   p50 ms   p99 ms")
    for row in rows:
        print(f"{row.tool:<14} {row.server:<22} {row.protocol:<5} {row.input:<5} ", end="")
        if row.failure:
            print("  FAILED, see below")
            continue
        rate, low, high = statistics.median(row.requests_per_s), min(row.requests_per_s), max(row.requests_per_s)
        spread = f"({low:.2f} to {high:.2f})"
        p50, p99 = statistics.median(row.p50_ms), statistics.median(row.p99_ms)
        print(f"{rate:>11.2f} {spread:<21} {p50:>8.1f} {p99:>8.1f}")
    print("\nCommands of the last round:")
    for row in rows:
        print(
            f"  {row.command}"
            if not row.failure
            else f"  FAILED {row.server} {row.protocol} {row.input}: {row.failure}"
        )


if __name__ == "__main__":
    sys.exit(main())
