"""The step of an export that adds a plan: build it, compare it as every engine is compared, and say what it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from export.batches import Clips, ViewBatch
from export.config import Tolerance
from export.golden import check_golden
from export.parity import ParityReport, check_parity
from export.report import Progress, size_of
from export.runners import Runner
from export.tensorrt_config import MIN_VIEWS, TensorRTConfig
from export.tensorrt_host import BuildHost
from export.tensorrt_runner import TensorRTRunner
from export.tensorrt_timing import timing_cache_file
from export.to_tensorrt import build_plan
from mvfoul.artifact import ENCODER, GOLDEN_TOLERANCE, write_json
from mvfoul.errors import PlanError
from mvfoul.plan import PLAN, PlanSpec

PARITY_PLAN: Final = "parity_plan.json"
_SHOWN_WARNINGS: Final = 3


@dataclass(frozen=True)
class Judge:
    """What a plan is compared with."""

    reference: Runner
    """Right by definition: PyTorch in float32, or the artifact's graphs that were compared with it."""
    head: Runner
    """Answers for the head, which has no plan."""
    batches: Clips | Sequence[ViewBatch]
    golden: Mapping[str, NDArray[Any]]
    """The artifact's self-test, which the plan has to pass too."""
    tolerance: Tolerance
    max_views: int
    """Views of one action at most."""


@dataclass(frozen=True)
class PlanOutcome:
    """A plan that was compared, or why there is none."""

    spec: PlanSpec | None = None
    report: ParityReport | None = None
    missing: str = ""
    """Why there is none; empty where there is one, or where none was asked for."""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong with it; no plan is not wrong."""
        return self.report is None or self.report.passed


def add_plan(
    work: Path, judge: Judge, host: BuildHost, config: TensorRTConfig, *, run: Path, progress: Progress
) -> PlanOutcome:
    """Build encoder.plan from encoder.onnx in `work` and compare it; the verdict is written to parity_plan.json.

    Args:
        work: Folder with an artifact in the making.
        judge: What to compare with.
        host: The machine, which `export.tensorrt_host.find_host` has looked at.
        config: How to build.
        run: Folder for the timing cache, where `config` names none.
        progress: Told what happens.

    Returns:
        The plan and its comparison; or, where TensorRT fails, its reasons. Then nothing is left of the plan.
    """
    timing_cache = timing_cache_file(config.timing_cache or run, host)
    try:
        spec = _build(work, judge, host, config, timing_cache=timing_cache, progress=progress)
        report = _compare(work, judge, host, spec, progress)
    except PlanError as error:
        (work / PLAN).unlink(missing_ok=True)
        return PlanOutcome(missing=str(error))
    write_json(work / PARITY_PLAN, report.to_json())
    progress.table(report)
    return PlanOutcome(replace(spec, parity=report.summary()), report)


def _build(
    work: Path, judge: Judge, host: BuildHost, config: TensorRTConfig, *, timing_cache: Path, progress: Progress
) -> PlanSpec:
    with progress.step(PLAN) as facts:
        build = build_plan(
            work / ENCODER,
            work / PLAN,
            judge.head.graphs[0],
            config,
            timing_cache=timing_cache,
            show=progress.detail,
        )
        facts += [size_of(work / PLAN), f"TensorRT {host.tensorrt_version}", host.gpu, *build.facts]
    for warning in build.warnings[:_SHOWN_WARNINGS]:
        progress.say(f"    TensorRT warns: {warning}")
    if (more := len(build.warnings) - _SHOWN_WARNINGS) > 0:
        progress.say(f"    and {more} more warnings")
    return PlanSpec(
        PLAN,
        host.gpu_architecture,
        host.tensorrt_version,
        gpu=host.gpu,
        min_views=MIN_VIEWS,
        opt_views=config.opt_views,
        max_views=config.max_views,
        version_compatible=config.version_compatible,
        hardware_compatibility=config.hardware_compatibility,
    )


def _compare(work: Path, judge: Judge, host: BuildHost, spec: PlanSpec, progress: Progress) -> ParityReport:
    runner = TensorRTRunner(work, spec, judge.head, device=host.device)
    with progress.step(f"comparison with {judge.reference.name}"):
        report = check_parity(
            judge.reference,
            runner,
            judge.batches,
            judge.tolerance,
            max_views=judge.max_views,
            precision="fp16",
        )
        golden = check_golden(runner, judge.golden, limit=GOLDEN_TOLERANCE["fp16"])
    return replace(report, checks=(*report.checks, golden))
