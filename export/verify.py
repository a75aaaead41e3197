"""The steps of an export that compare: which clips, the ladder, the self-test, the merged graph, and the bisection."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from export.batches import Clips, HeldOut, ViewBatch, generated_batches, golden_views
from export.config import ExportConfig
from export.golden import write_golden
from export.merge import check_merged, write_merged
from export.parity import ParityReport, check_parity
from export.report import Progress, size_of
from export.runners import OnnxRunner, Runner
from mvfoul.artifact import GOLDEN, GOLDEN_TOLERANCE, MERGED, write_json
from mvfoul.clip import ClipSpec

if TYPE_CHECKING:
    from export.pipeline import Source

_BISECTED_VIEWS = 2
"""Views at most: every layer's answer is held twice."""


def choose_clips(config: ExportConfig, clip: ClipSpec, progress: Progress) -> Clips:
    """Return the generated views and, where --data.root is given, actions of a split.

    Raises:
        AnnotationError, ConfigError: See `export.batches.HeldOut`.
    """
    with progress.step("clips") as facts:
        generated = generated_batches(clip)
        facts.append(f"{sum(len(batch.views) for batch in generated)} generated views")
        if config.data.root is None:
            return Clips(generated)
        held_out = HeldOut(config.data.root, config.split, clip, max_actions=config.data.max_actions)
        facts.append(f"{len(held_out)} of the {held_out.available} actions of {config.split}")
        if len(held_out) < held_out.available:
            facts.append("--data.max-actions 0 takes all")
        return Clips(generated, held_out)


def verify(
    config: ExportConfig, reference: Runner, clips: Clips, work: Path, clip: ClipSpec, progress: Progress
) -> ParityReport:
    """Climb the ladder with the graphs in `work`; writes golden.npz and, where it is asked for, model.onnx."""
    candidate = OnnxRunner(work)
    with progress.step("comparison with PyTorch") as facts:
        report = check_parity(
            reference,
            candidate,
            clips,
            config.tolerance,
            max_views=clip.max_views,
            precision=config.precision,
            on_batch=_shower(len(clips), progress),
        )
        facts.append(f"{sum(sum(counts) for _, counts in report.batches)} views")
        facts += [f"skipped {reason}" for reason in (clips.held_out.skipped if clips.held_out else ())]
    with progress.step(GOLDEN) as facts:
        limit = GOLDEN_TOLERANCE[config.precision]
        checks = [write_golden(work / GOLDEN, reference, candidate, golden_views(clip), limit=limit)]
        facts.append(size_of(work / GOLDEN))
    if config.merge:
        with progress.step(MERGED) as facts:
            del candidate  # two sessions of the encoder at a time are enough memory
            write_merged(work, clip)
            # The batches with the fewest and the most views of one action.
            ends = (clips.generated[0], clips.generated[-1])
            checks += check_merged(work / MERGED, reference, ends, config.tolerance, config.precision)
            facts.append(size_of(work / MERGED))
    return replace(report, checks=(*report.checks, *checks))


def name_layers(
    config: ExportConfig, source: Source, report: ParityReport, clips: Clips, work: Path, progress: Progress
) -> None:
    """Compare layer by layer on the worst batch, print the first that diverge, and write bisect.json."""
    from export.bisect import bisect, bisection_lines

    batch = _worst(report, clips)
    with progress.step("bisection") as facts:
        found = bisect(
            source.network,
            source.checkpoint.temperatures,
            work,
            batch.views[:_BISECTED_VIEWS],
            tolerance=config.tolerance,
            precision=config.precision,
        )
        write_json(work / "bisect.json", {"batch": batch.name, **found.to_json()})
        facts.append(f"{len(found.layers)} layers on {batch.name!r}")
    for line in bisection_lines(found):
        progress.say(line)


def _worst(report: ParityReport, clips: Clips) -> ViewBatch:
    """Return the batch with the largest error of a logit; the first one that failed to answer counts as worse."""
    errors = {error.name: error.logits_max_abs for error in report.evidence.batches}
    return max(clips, key=lambda batch: errors.get(batch.name, float("inf")))


def _shower(batches: int, progress: Progress) -> Callable[[ViewBatch], None]:
    """Return what tells how far the comparison is and how long it will take."""
    started, done = time.monotonic(), 0

    def show(batch: ViewBatch) -> None:
        nonlocal done
        done += 1
        left_s = (time.monotonic() - started) / done * (batches - done)
        progress.detail(f"comparison with PyTorch: {done} of {batches} ({batch.name}), about {left_s:.0f} s left")

    return show
