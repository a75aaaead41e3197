"""The verdict as files: parity.json for programs, parity.md for people, parity.png for one look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from export.checks import Check
from export.parity import ParityReport
from mvfoul.artifact import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PARITY_JSON: Final = "parity.json"
PARITY_MD: Final = "parity.md"
PARITY_PNG: Final = "parity.png"
_MOST_BARS: Final = 24
_FLOOR: Final = 1e-9
"""Where bars of an error of zero end: the axis is logarithmic."""


def write_parity(directory: Path, report: ParityReport) -> None:
    """Write the three files. Nothing in them depends on time or place: the same export gives the same bytes."""
    write_json(directory / PARITY_JSON, report.to_json())
    (directory / PARITY_MD).write_text(parity_markdown(report), encoding="utf-8")
    plot_parity(directory / PARITY_PNG, report)


def parity_markdown(report: ParityReport) -> str:
    """Return the report as Markdown."""
    verdict = "passed" if report.passed else f"FAILED: {len(report.failed)} of {len(report.checks)} checks"
    actions = sum(len(counts) for _, counts in report.batches)
    views = sum(sum(counts) for _, counts in report.batches)
    lines = [
        f"# Parity {verdict}",
        "",
        f"{report.candidate} against {report.reference}, on {actions} actions with {views} views.",
        "",
        f"![errors and logits]({PARITY_PNG})",
        "",
        *markdown_table(report.checks),
        *_listed("Failures", ((check, sentence) for check in report.failed for sentence in check.failures)),
        *_listed("Not counted", ((check, sentence) for check in report.checks for sentence in check.notes)),
        "",
        "## Compared on",
        "",
        *(f"- {name}: {'+'.join(map(str, counts))} views" for name, counts in report.batches),
    ]
    return "\n".join(lines) + "\n"


def markdown_table(checks: Sequence[Check]) -> list[str]:
    """Return a table of checks."""
    rows = [
        f"| {c.name} | {c.measured} | {c.limit} | {c.where} | {'ok' if c.passed else '**FAILED**'} |" for c in checks
    ]
    return ["| check | measured | limit | worst at | |", "|---|---|---|---|---|", *rows]


def plot_parity(path: Path, report: ParityReport) -> None:
    """Draw the error per batch, and the candidate's logits over the reference's."""
    figure = Figure(figsize=(15, 5.5), layout="constrained")
    errors, *scatters = figure.subplots(1, 1 + len(report.evidence.logits), width_ratios=[1.5, 1, 1])
    _draw_errors(errors, report)
    for axis, (name, pairs) in zip(scatters, report.evidence.logits.items(), strict=True):
        _draw_logits(axis, name, pairs)
    verdict = "passed" if report.passed else "FAILED"
    figure.suptitle(f"{report.candidate} against {report.reference}: {verdict}")
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as stream:
        FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})  # type: ignore[no-untyped-call]
    temporary.replace(path)


def _draw_errors(axis: Axes, report: ParityReport) -> None:
    """Draw the batches with the largest errors; all of them where they are few."""
    worst = sorted(report.evidence.batches, key=lambda error: -error.logits_max_abs)[:_MOST_BARS]
    shown = [error for error in report.evidence.batches if error in worst]
    places = np.arange(len(shown))
    for shift, label, values in (
        (-0.2, "features, relative", [error.features_max_relative for error in shown]),
        (0.2, "logits, absolute", [error.logits_max_abs for error in shown]),
    ):
        heights = np.nan_to_num(np.array(values), nan=1.0, posinf=1.0)
        axis.barh(places + shift, np.maximum(heights, _FLOOR), height=0.38, label=label)
    left_out = len(report.evidence.batches) - len(shown)
    axis.set_yticks(places, [error.name for error in shown])
    axis.invert_yaxis()
    title = f"per batch ({left_out} smaller ones left out)" if left_out else "per batch"
    axis.set(xscale="log", xlabel="largest error", xlim=(_FLOOR, None), title=title)
    axis.legend(loc="upper left", bbox_to_anchor=(0, -0.1), ncols=2, frameon=False)


def _draw_logits(axis: Axes, name: str, pairs: Sequence[tuple[float, float]]) -> None:
    points = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    if len(points):
        ends = [points.min(), points.max()]
        axis.plot(ends, ends, color="0.7", linewidth=1, zorder=0)
    axis.scatter(points[:, 0], points[:, 1], s=14, alpha=0.7)
    axis.set(xlabel="reference", ylabel="candidate", title=f"{name}: {len(points)} values")


def _listed(title: str, sentences: Iterator[tuple[Check, str]]) -> list[str]:
    items = [f"- {check.name}: {sentence}" for check, sentence in sentences]
    return ["", f"## {title}", "", *items] if items else []
