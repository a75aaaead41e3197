"""From a checkpoint to a published artifact, step by step.

Everything is made in a work folder beside the target. Only when every check has passed does the manifest get written
and the folder renamed to the target: a killed export leaves the old artifact as it was.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from export.batches import Clips
from export.caveats import caveats_of
from export.config import ExportConfig, Precision
from export.evaluation import read_evaluation
from export.golden import read_golden
from export.merge import merged_spec
from export.model_card import write_model_card
from export.parity import ParityReport
from export.parity_files import write_parity
from export.quantise import quantise_file
from export.remember import RememberingRunner
from export.report import Progress, size_of
from export.runners import OnnxRunner, Runner, graph_specs
from export.tensorrt_host import BuildHost, build_elsewhere, find_host
from export.tensorrt_plan import Judge, PlanOutcome, add_plan
from export.to_onnx import export_encoder, export_head
from export.torch_runner import TorchRunner
from export.verify import choose_clips, name_layers, verify
from mvfoul.artifact import (
    ENCODER,
    GOLDEN,
    HEAD,
    MANIFEST,
    Artifact,
    Manifest,
    Origin,
    publish,
    sha256_of,
    without_nan,
    write_json,
    write_manifest,
)
from mvfoul.errors import ArtifactError, ConfigError, PlanError
from training.checkpoint import Checkpoint, load_network
from training.model.network import FoulNetwork


@dataclass(frozen=True)
class Outcome:
    """What an export has led to."""

    report: ParityReport
    artifact: Artifact | None
    """None where a check failed: nothing was published."""
    directory: Path
    """The artifact, or the work folder with the evidence."""
    plan: PlanOutcome = field(default_factory=PlanOutcome)


@dataclass(frozen=True)
class Source:
    """The checkpoint, ready to export."""

    network: FoulNetwork
    checkpoint: Checkpoint
    sha256: str


def export_checkpoint(
    config: ExportConfig, progress: Progress | None = None, *, host: BuildHost | None = None
) -> Outcome:
    """Export, check and publish.

    Args:
        config: The flags.
        progress: Told what happens; None prints it.
        host: Where a plan is built; None looks at this machine.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        ConfigError: The target is something else than an artifact, or the data set has no usable clip.
        AnnotationError: The data set does not hold the split.
        ArtifactError: A file cannot be written; the work folder is removed and the old artifact is as it was.
    """
    progress = progress or Progress()
    target = config.target
    check_target(target)
    with progress.step("checkpoint") as facts:
        source = load_source(config.ckpt)
        facts.append(_described(source.checkpoint))
    for caveat in caveats_of(source.checkpoint):
        progress.say(f"note: {caveat}")
    evaluation = read_evaluation(config, source.checkpoint)
    clips = choose_clips(config, source.network.clip, progress)
    reference = RememberingRunner(TorchRunner(source.network, source.checkpoint.temperatures))
    with work_folder(target) as work:
        _write_graphs(config, source, work, progress)
        if config.int8:
            quantise_file(config, source.network.clip, work / ENCODER, progress)
        report = verify(config, reference, clips, work, source.network.clip, progress)
        write_parity(work, report)
        write_json(work / "config.json", config.to_json())
        progress.table(report)
        if not report.passed:
            _explain_failure(config, report, work, progress)
            if config.bisect:
                name_layers(config, source, report, clips, work, progress)
            return Outcome(report, None, work)
        plan = _plan(config, source, reference, clips, work, host, progress)
        if plan.report is not None and not plan.passed:
            _explain_failure(config, plan.report, work, progress)
            return Outcome(report, None, work, plan)
        with progress.step("manifest and publishing"):
            manifest = make_manifest(source, report, config.precision)
            merged = merged_spec(source.network.clip) if config.merge else None
            manifest = replace(manifest, plan=plan.spec, merged=merged, evaluation=without_nan(evaluation))
            write_model_card(work, manifest)
            artifact = replace(write_manifest(work, manifest), directory=publish(work, target))
    _explain_success(artifact, plan, progress)
    return Outcome(report, artifact, target, plan)


def load_source(path: Path) -> Source:
    """Read a checkpoint.

    Raises:
        CheckpointError: See `training.checkpoint.load_network`.
    """
    network, checkpoint = load_network(path)
    return Source(network, checkpoint, sha256_of(path))


def make_manifest(source: Source, report: ParityReport, precision: Precision) -> Manifest:
    """Return the manifest of an artifact made from `source`; `write_manifest` adds the hashes."""
    encoder, head = graph_specs(source.network.clip, source.network.feature_dim)
    checkpoint = source.checkpoint
    return Manifest(
        clip=checkpoint.clip,
        encoder=encoder,
        head=head,
        origin=Origin(source.sha256, checkpoint.backbone, checkpoint.aggregation, checkpoint.epoch),
        precision=precision,
        parity=report.summary(),
        temperatures=dict(checkpoint.temperatures),
        caveats=caveats_of(checkpoint),
        evaluation=without_nan(checkpoint.evaluation),
        versions={name: version(name) for name in ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime")},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _write_graphs(config: ExportConfig, source: Source, work: Path, progress: Progress) -> None:
    graphs: dict[str, Any] = {
        ENCODER: lambda: export_encoder(source.network, opset=config.opset, precision=config.precision),
        HEAD: lambda: export_head(source.network, source.checkpoint.temperatures, opset=config.opset),
    }
    for file, export in graphs.items():
        with progress.step(file) as facts:
            model = export()
            (work / file).write_bytes(model.SerializeToString(deterministic=True))
            facts += [size_of(work / file), f"{len(model.graph.node)} nodes", f"opset {config.opset}"]
            if file == ENCODER:
                facts.append("fp16" if config.fp16 else "fp32")


def _plan(
    config: ExportConfig,
    source: Source,
    reference: Runner,
    clips: Clips,
    work: Path,
    host: BuildHost | None,
    progress: Progress,
) -> PlanOutcome:
    """Build and compare a plan of a float16 encoder, where that can be done."""
    if not config.fp16:
        return PlanOutcome()
    try:
        host = host or find_host()
    except PlanError as error:
        return PlanOutcome(missing=str(error))
    judge = Judge(
        reference,
        OnnxRunner(work),
        clips,
        read_golden(work / GOLDEN),
        config.tolerance,
        source.network.clip.max_views,
    )
    return add_plan(work, judge, host, config.tensorrt, run=config.ckpt.resolve().parent, progress=progress)


def check_target(target: Path) -> None:
    """Refuse to replace what is not an artifact: publishing renames it, and the next time deletes it."""
    for path in (target, target.parent / f"{target.name}.previous"):
        if path.exists() and not (path / MANIFEST).is_file() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(
                f"{path} exists and is no artifact (no {MANIFEST} in it); it would be replaced. "
                "Move it away, or choose another --output."
            )


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """Make a folder beside the target, on the same disk, so that publishing is one rename; remove it on an error."""
    work: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{target.name}.work-", dir=target.parent))
        work.chmod(0o755)  # mkdtemp's 0700 would keep a server of another user out
        yield work
    except OSError as error:
        _remove(work)
        raise ArtifactError(
            f"cannot write the artifact {target}: {error}. Free space or choose another --output; nothing was changed."
        ) from error
    except BaseException:
        _remove(work)
        raise


def _remove(work: Path | None) -> None:
    if work is not None:
        shutil.rmtree(work, ignore_errors=True)


def _described(checkpoint: Checkpoint) -> str:
    clip = checkpoint.clip
    return (
        f"{checkpoint.backbone}, {checkpoint.aggregation}, epoch {checkpoint.epoch}, "
        f"{clip.num_frames} frames of {clip.size_px} px"
    )


def _explain_failure(config: ExportConfig, report: ParityReport, work: Path, progress: Progress) -> None:
    progress.totals()
    progress.say(f"\n{len(report.failed)} of {len(report.checks)} checks failed: nothing is published.")
    progress.say(f"The graphs, parity.json and parity.md are in {work}; remove it when you are done.")
    progress.say(f"The same again: {config.command()}")
    if not config.bisect:
        progress.say("With --bisect it also names the first layers that diverge.")


def _explain_success(artifact: Artifact, plan: PlanOutcome, progress: Progress) -> None:
    directory = artifact.directory
    files: Mapping[str, str] = artifact.manifest.files
    size = sum((directory / name).stat().st_size for name in files)
    progress.totals()
    progress.say(f"\nPublished {directory} (version {artifact.version}, {size / 1e6:.1f} MB)")
    previous = directory.parent / f"{directory.name}.previous"
    if previous.exists():
        progress.say(f"The artifact that was there: {previous}")
    if plan.missing:
        progress.say(f"\nNo TensorRT plan was built: {plan.missing}.")
        for line in build_elsewhere(directory):
            progress.say(line)
        progress.say("ONNX Runtime runs the float16 graph as it is.\n")
    progress.say("Next:")
    progress.say(f"  python -m export.inspect {shlex.quote(str(directory))}")
    progress.say(f"  python -m serving --artifact {shlex.quote(str(directory))}")
    progress.say("  python -m serving.client clip_0.mp4 clip_1.mp4")
