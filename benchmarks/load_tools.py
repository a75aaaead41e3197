"""The load generators that others wrote: where they lie, how they are run, how their output is read.

h2load (nghttp2) speaks HTTP/2 and HTTP/1.1 and knows nothing of inference: it sends one body again and again, and
counts HTTP statuses. A gRPC error travels in the trailers of a 200, so the caller must ask the server what it did.

perf_analyzer (NVIDIA) asks Triton for a model's configuration and statistics, makes its inputs, and measures. The
model servers of KServe do not answer those two calls, so it can drive Triton only.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

INSTALL = "scripts/load_generators.sh"

Shape = Sequence[int]


class LoadToolError(Exception):
    """A tool is missing, failed, or measured something else than it was asked to."""


@dataclass(frozen=True)
class Load:
    """How much a tool sends in one run."""

    requests: int
    clients: int
    """Requests in flight at any time; not more than `requests`."""
    timeout_s: float
    """The tool is killed after this time."""

    def __post_init__(self) -> None:
        if not 1 <= self.clients <= self.requests or self.timeout_s <= 0:
            raise LoadToolError(f"{self}: use 1 client or more, as many requests or more, and a time over 0.")


@dataclass(frozen=True)
class Reading:
    """What a tool measured in one run. All times are the tool's own, from sending to the last byte of the answer."""

    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    command: str
    """As it was run, for a shell."""


@dataclass(frozen=True)
class _Program:
    path: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def version(self) -> str:
        said = subprocess.run([self.path, "--version"], env=self._env(), capture_output=True, text=True, check=False)
        found = re.search(r"\d+\.\d+\.\d+", said.stdout + said.stderr)
        if not found:
            raise LoadToolError(f"{self.path} --version says: {said.stdout}{said.stderr}. Install it again: {INSTALL}")
        return found.group()

    def command(self, arguments: Sequence[str]) -> str:
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        return shlex.join([*(["env"] if settings else []), *settings, str(self.path), *arguments])

    def run(self, arguments: Sequence[str], timeout_s: float) -> str:
        """Return what it printed; it is killed where it takes longer.

        Raises:
            LoadToolError: It took longer, or ended with another code than 0.
        """
        command = self.command(arguments)
        try:
            ended = subprocess.run(
                [str(self.path), *arguments],
                env=self._env(),
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LoadToolError(f"not done after {timeout_s:g} s (--timeout-s): {command}") from error
        if ended.returncode:
            raise LoadToolError(f"ended with {ended.returncode}: {command}\n{(ended.stdout + ended.stderr)[-2000:]}")
        return ended.stdout

    def _env(self) -> dict[str, str]:
        return {**os.environ, **self.environment}


class H2Load:
    """Debian's nghttp2-client."""

    name = "h2load"

    def __init__(self) -> None:
        """Find it.

        Raises:
            LoadToolError: It is not installed.
        """
        found = shutil.which("h2load")
        if not found:
            raise LoadToolError(f"no h2load (Debian: nghttp2-client). Install it: {INSTALL}")
        self._program = _Program(Path(found))
        self.version = self._program.version()

    def post(self, url: str, body: Path, headers: Sequence[str], load: Load) -> Reading:
        """POST the body again and again, over one connection per client with one request in flight.

        URLs of REST are asked over HTTP/1.1, gRPC's over HTTP/2 without TLS.

        Raises:
            LoadToolError: It failed, or an HTTP status was not 2xx.
        """
        log = body.with_suffix(".h2load.tsv")
        log.unlink(missing_ok=True)  # it appends
        arguments = [f"--requests={load.requests}", f"--clients={load.clients}", "--threads=1", f"--data={body}"]
        arguments += [f"--header={header}" for header in headers]
        if not url.endswith("/ModelInfer"):
            arguments.append("--h1")
        arguments += [f"--log-file={log}", url]
        printed = self._program.run(arguments, load.timeout_s)
        lines = log.read_text() if log.exists() else ""
        return read_h2load(printed, lines, load.requests, self._program.command(arguments))


def read_h2load(printed: str, log: str, requests: int, command: str = "") -> Reading:
    """Read its summary, and the log with one line per request: start in us since 1970, HTTP status, duration in us.

    Raises:
        LoadToolError: A request was not answered with 2xx.
    """
    rate = re.search(r"^finished in .*, ([\d.]+) req/s", printed, re.MULTILINE)
    done = re.search(r"^requests: .*, (\d+) succeeded, ", printed, re.MULTILINE)
    durations_us = [int(line.split("\t")[2]) for line in log.splitlines() if line.split("\t")[1].startswith("2")]
    if not rate or not done or not int(done.group(1)) == len(durations_us) == requests:
        raise LoadToolError(f"{len(durations_us)} of {requests} requests got HTTP 2xx: {command}\n{printed[-2000:]}")
    p50_us, p99_us = _quantiles(durations_us)
    return Reading(requests, float(rate.group(1)), p50_us / 1000, p99_us / 1000, command)


def _quantiles(durations_us: Sequence[int]) -> tuple[float, float]:
    import numpy as np

    p50, p99 = np.percentile(durations_us, (50, 99)).tolist()
    return p50, p99


class PerfAnalyzer:
    """NVIDIA's, from the wheel of tritonclient 2.51."""

    name = "perf_analyzer"

    def __init__(self, root: Path | None = None) -> None:
        """Find it in the folder that `scripts/load_generators.sh` made in this interpreter's environment.

        Raises:
            LoadToolError: It is not installed, or cannot start.
        """
        root = root or Path(sys.prefix) / "load_generators"
        path = root / "bin" / "perf_analyzer"
        if not path.is_file():
            raise LoadToolError(f"no perf_analyzer in {root}. Install it: {INSTALL}")
        self._program = _Program(path, {"LD_LIBRARY_PATH": str(root / "lib")})
        self.version = self._program.version()

    def infer(self, grpc: str, model: tuple[str, str], views: Shape, load: Load, work: Path) -> Reading:
        """Ask a model by gRPC, with `load.clients` requests always in flight; its inputs are random.

        Args:
            grpc: `host:port` of Triton.
            model: Name and version: the ensemble, or the encoder `<name>_encoder`, for which V is the batch.
            views: Shape of a request's VIEWS, `[V, 3, T, H, W]`.
            load: How much.
            work: Folder for its report.

        Raises:
            LoadToolError: It failed.
        """
        name, version = model
        report = work / f"{name}.perf_analyzer.csv"
        batch = views[0] if name.endswith("_encoder") else 1
        shape = views[1:] if name.endswith("_encoder") else views
        arguments = ["-m", name, "-x", version, "-u", grpc, "-i", "grpc", "--input-data", "random", "-b", str(batch)]
        arguments += [
            "--shape",
            f"VIEWS:{','.join(map(str, shape))}",
            "--concurrency-range",
            f"{load.clients}:{load.clients}",
        ]
        arguments += ["--request-count", str(load.requests), "-f", str(report)]
        printed = self._program.run(arguments, load.timeout_s)
        return read_perf_analyzer(printed, report.read_text(), load.requests, batch, self._program.command(arguments))


def read_perf_analyzer(printed: str, report: str, requests: int, batch: int, command: str = "") -> Reading:
    """Read what it printed and its CSV, where latencies are in us and the rate counts inferences: `batch` a request.

    Raises:
        LoadToolError: It counted another number of requests.
    """
    counted = re.search(r"Client:\s+Request count: (\d+)", printed)
    rows = list(csv.DictReader(report.splitlines()))
    if not counted or int(counted.group(1)) != requests or len(rows) != 1:
        raise LoadToolError(f"it counted other than {requests} requests: {command}\n{printed[-2000:]}")
    (row,) = rows
    p50_us, p99_us = float(row["p50 latency"]), float(row["p99 latency"])
    return Reading(requests, float(row["Inferences/Second"]) / batch, p50_us / 1000, p99_us / 1000, command)
