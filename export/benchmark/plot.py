"""The picture of a race: latency and throughput by engine and number of views."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from export.benchmark.results import Results, Row


def plot_results(path: Path, results: Results) -> None:
    """Draw bars of the median latency with whiskers to p95, and of clips per second. The file is the same each time."""
    rows = results.rows()
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    latency, throughput = figure.subplots(1, 2)
    _bars(latency, rows, "p50_ms")
    latency.set(title="one action, views to probabilities", ylabel="ms (bar p50, whisker p95)")
    _bars(throughput, rows, "clips_per_s")
    throughput.set(title="throughput", ylabel="clips/s")
    if rows:
        throughput.legend(title="engine", loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(
        f"{results.backbone}, {results.precision}, {results.clip}, {results.threads} threads, "
        f"{results.machine['processor']}"
    )
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as stream:
        FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})  # type: ignore[no-untyped-call]
    temporary.replace(path)


def _bars(axis: Axes, rows: list[Row], field: str) -> None:
    engines = list(dict.fromkeys(row.engine for row in rows))
    counts = sorted({row.views for row in rows})
    width = 0.8 / max(len(engines), 1)
    for index, engine in enumerate(engines):
        own = [row for row in rows if row.engine == engine]
        places = np.arange(len(own)) + (index - (len(engines) - 1) / 2) * width
        heights = [getattr(row, field) for row in own]
        bars = axis.bar(places, heights, width * 0.95, label=engine)
        axis.bar_label(
            bars, [f"{height:.0f}" if height >= 100 else f"{height:.3g}" for height in heights], fontsize=7, padding=2
        )
        if field == "p50_ms":
            over = np.array([(0.0, row.p95_ms - row.p50_ms) for row in own]).T
            axis.errorbar(places, heights, yerr=over, fmt="none", ecolor="0.3", capsize=2)
    axis.set_xticks(range(len(counts)), [f"N = {count}" for count in counts])
    axis.spines[["top", "right"]].set_visible(False)
