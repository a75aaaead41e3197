"""What a race has shown: figures, table, JSON and picture."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from export.benchmark.config import CUDA_ENGINES, EngineName
from export.benchmark.worker import Ready
from mvfoul.artifact import Artifact, write_json


@dataclass
class EngineResult:
    """One engine's runs."""

    engine: EngineName
    name: str = ""
    load_s: float = 0.0
    features_cosine: float = 0.0
    features_max_relative_error: float = 0.0
    first_run_s: dict[int, float | None] = field(default_factory=dict)
    """By N; with torch.compile the compiler's time."""
    seconds: dict[int, list[float]] = field(default_factory=dict)
    """By N, one per round."""
    peak_memory_bytes: int | None = None
    """Resident, of the whole process with its libraries; not a GPU's."""
    failure: str = ""

    def loaded(self, ready: Ready) -> None:
        """Note what the worker said when it was ready."""
        self.name, self.load_s = ready.name, ready.load_s
        self.features_cosine = ready.features_cosine
        self.features_max_relative_error = ready.features_max_relative_error

    def spelled(self) -> str:
        """Return what ran and how near it is to PyTorch, or why it failed."""
        if self.failure:
            return f"FAILED: {self.failure}"
        return f"{self.name}; cosine of its features with golden.npz {self.features_cosine:.6f}"


@dataclass(frozen=True)
class Row:
    """One engine at one N."""

    engine: EngineName
    views: int
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    clips_per_s: float
    """N by the median latency."""
    ratio: tuple[float, float, float] | None
    """Quartiles of PyTorch eager's time by this one's in the same round; above 1 is faster. None without PyTorch."""
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Results:
    """A race and the machine it was run on."""

    backbone: str
    precision: str
    clip: str
    artifact_version: str
    threads: int
    machine: Mapping[str, str]
    created_at: str
    engines: tuple[EngineResult, ...]
    left_out: Mapping[str, str]

    @classmethod
    def of(
        cls, artifact: Artifact, engines: Sequence[EngineResult], left_out: Mapping[str, str], *, threads: int
    ) -> Results:
        """Collect."""
        manifest = artifact.manifest
        return cls(
            backbone=manifest.origin.backbone,
            precision=manifest.precision,
            clip=f"{manifest.clip.num_frames} frames of {manifest.clip.size_px} px",
            artifact_version=artifact.version,
            threads=threads,
            machine={"processor": _processor(), "python": platform.python_version()},
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            engines=tuple(engines),
            left_out=left_out,
        )

    @property
    def failed(self) -> tuple[EngineResult, ...]:
        """Engines that did not finish."""
        return tuple(result for result in self.engines if result.failure)

    def rows(self) -> list[Row]:
        """Return one row per N and engine that finished."""
        finished = [result for result in self.engines if not result.failure]
        return [_row(r, views, finished) for views in sorted(_all_views(finished)) for r in finished]

    def to_markdown(self) -> str:
        """Return the table, with what it was measured on and what was left out."""
        lines = [
            f"{self.backbone}, {self.precision}, {self.clip}, {self.threads} threads, {self.machine['processor']}, "
            f"{self.created_at[:10]}",
            "",
            "| engine | N | p50 ms | p95 ms | p99 ms | clips/s | PyTorch eager = 1 (quartiles) | peak memory | runs |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_line(row) for row in self.rows()),
            "",
        ]
        lines += [f"- {result.engine}: {result.spelled()}" for result in self.engines]
        lines += [f"- left out: {name}: {reason}" for name, reason in self.left_out.items()]
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return the document of benchmark.json: every run, and the rows made of them."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows()]}


def write_results(folder: Path, results: Results) -> None:
    """Write benchmark.json, benchmark.md and benchmark.png."""
    from export.benchmark.plot import plot_results

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.md").write_text(results.to_markdown())
    plot_results(folder / "benchmark.png", results)
    write_json(folder / "benchmark.json", results.to_json())


def _all_views(results: Sequence[EngineResult]) -> set[int]:
    return {views for result in results for views in result.seconds}


def _row(result: EngineResult, views: int, results: Sequence[EngineResult]) -> Row:
    spent = np.array(result.seconds[views])
    p50, p95, p99 = np.percentile(spent, (50, 95, 99)) * 1000
    usual = "eager-cuda" if result.engine in CUDA_ENGINES else "eager"
    eager = next((r for r in results if r.engine == usual), None)
    ratio = None
    if eager is not None:
        low, middle, high = np.percentile(np.array(eager.seconds[views]) / spent, (25, 50, 75))
        ratio = (float(low), float(middle), float(high))
    return Row(
        engine=result.engine,
        views=views,
        runs=len(spent),
        p50_ms=float(p50),
        p95_ms=float(p95),
        p99_ms=float(p99),
        clips_per_s=float(views / p50 * 1000),
        ratio=ratio,
        peak_memory_bytes=result.peak_memory_bytes,
    )


def _line(row: Row) -> str:
    ratio = f"{row.ratio[1]:.2f} ({row.ratio[0]:.2f} to {row.ratio[2]:.2f})" if row.ratio else "-"
    memory = f"{row.peak_memory_bytes / 1e9:.2f} GB" if row.peak_memory_bytes else "-"
    return (
        f"| {row.engine} | {row.views} | {row.p50_ms:.1f} | {row.p95_ms:.1f} | {row.p99_ms:.1f} | "
        f"{row.clips_per_s:.2f} | {ratio} | {memory} | {row.runs} |"
    )


def _processor() -> str:
    """Return the processor's name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
