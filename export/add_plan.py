"""A plan for an artifact that is already there, built on the machine that will run it, and published as a new version.

The reference is the artifact's own float16 graph in ONNX Runtime, which was compared with PyTorch when it was exported,
and golden.npz, which is PyTorch's answer itself. Nothing else of the artifact changes.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from export.batches import generated_batches
from export.config import Tolerance
from export.model_card import write_model_card
from export.pipeline import check_target, work_folder
from export.plan import AddPlanConfig
from export.report import Progress
from export.runners import OnnxRunner
from export.tensorrt_host import BuildHost, build_elsewhere, find_host
from export.tensorrt_plan import PARITY_PLAN, Judge, PlanOutcome, add_plan
from mvfoul.artifact import Artifact, load_artifact, publish, write_manifest
from mvfoul.errors import ConfigError, PlanError


def add_plan_to_artifact(
    config: AddPlanConfig, *, host: BuildHost | None = None, progress: Progress | None = None
) -> Artifact | None:
    """Build, compare and publish.

    Args:
        config: The flags.
        host: The machine; None looks at this one.
        progress: Told what happens; None prints it.

    Returns:
        The new artifact, or None where a check failed: nothing is published and the work folder stays.

    Raises:
        ArtifactError: The artifact is damaged, or a file cannot be written.
        ConfigError: The artifact's encoder is not in float16.
        PlanError: There is nothing to build a plan with, or TensorRT failed.
    """
    progress = progress or Progress()
    target = config.target
    with progress.step("artifact") as facts:
        artifact = load_artifact(config.artifact)
        facts.append(f"version {artifact.version}, {artifact.manifest.precision}")
    _check_precision(artifact)
    check_target(target)
    host = host or _this_machine(target)
    with work_folder(target) as work:
        _copy(artifact, work)
        outcome = add_plan(work, _judge(artifact, work), host, config.tensorrt, run=target.parent, progress=progress)
        if outcome.missing:
            raise PlanError(f"no plan was built, and the artifact is as it was: {outcome.missing}")
        if not outcome.passed:
            progress.say(f"\nThe plan failed its checks: nothing is published. The evidence is in {work}")
            progress.say(f"The same again: {config.command()}")
            return None
        published = _publish(artifact, outcome, host, work, target)
    _explain(published, progress)
    return published


def _this_machine(target: Path) -> BuildHost:
    try:
        return find_host()
    except PlanError as error:
        raise PlanError("\n".join([f"no plan can be built here: {error}.", *build_elsewhere(target)])) from error


def _check_precision(artifact: Artifact) -> None:
    if artifact.manifest.precision != "fp16":
        raise ConfigError(
            f"--artifact {artifact.directory} has an encoder in {artifact.manifest.precision}; a plan is built "
            "from one in float16. Export the checkpoint again: python -m export --ckpt best.pth.tar --fp16"
        )


def _copy(artifact: Artifact, work: Path) -> None:
    """Copy what stays: all but the manifest and an older plan."""
    plan = artifact.manifest.plan
    dropped = {PARITY_PLAN, plan.file if plan else ""}
    for name in sorted(set(artifact.manifest.files) - dropped):
        shutil.copyfile(artifact.path(name), work / name)


def _judge(artifact: Artifact, work: Path) -> Judge:
    engine = OnnxRunner(work)
    clip = artifact.manifest.clip
    return Judge(engine, engine, generated_batches(clip), artifact.golden(), Tolerance(), clip.max_views)


def _publish(artifact: Artifact, outcome: PlanOutcome, host: BuildHost, work: Path, target: Path) -> Artifact:
    manifest = replace(
        artifact.manifest,
        plan=outcome.spec,
        versions={**artifact.manifest.versions, "tensorrt": host.tensorrt_version},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_model_card(work, manifest)
    checked = write_manifest(work, manifest)
    return replace(checked, directory=publish(work, target))


def _explain(artifact: Artifact, progress: Progress) -> None:
    progress.totals()
    progress.say(f"\nPublished {artifact.directory} (version {artifact.version}) with a plan")
    previous = artifact.directory.with_name(f"{artifact.directory.name}.previous")
    if previous.exists():
        progress.say(f"The artifact that was there: {previous}")
