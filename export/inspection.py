"""What `python -m export.inspect` finds out of an artifact. Looks at everything, whatever is wrong before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from export.checks import structure_checks
from export.golden import check_golden
from export.runners import OnnxRunner, onnx_session, spec_of
from export.tensorrt_host import find_host
from mvfoul.artifact import (
    GOLDEN,
    GOLDEN_TOLERANCE,
    MANIFEST,
    Artifact,
    GraphSpec,
    Manifest,
    file_faults,
    read_manifest,
)
from mvfoul.errors import ArtifactError, PlanError
from mvfoul.plan import TensorRTHost, check_plan


@dataclass
class Inspection:
    """What was found."""

    directory: Path
    manifest: Manifest | None = None
    passed: list[str] = field(default_factory=list)
    """One sentence per thing that was verified."""
    faults: list[str] = field(default_factory=list)
    host: TensorRTHost | None = None
    """Where a plan shall run; None looks at this machine."""
    notes: list[str] = field(default_factory=list)
    """What could not be verified here, or is unusual."""

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        manifest = self.manifest
        described = None
        if manifest is not None:
            described = {**asdict(manifest), "clip": manifest.clip.to_json()}
        return {
            "directory": str(self.directory),
            "sound": self.sound,
            "version": Artifact(self.directory, manifest).version if manifest else None,
            "faults": self.faults,
            "passed": self.passed,
            "notes": self.notes,
            "sizes_bytes": _sizes(self.directory, manifest),
            "manifest": described,
        }


def inspect_artifact(directory: Path, *, host: TensorRTHost | None = None) -> Inspection:
    """Verify an artifact, on this machine or for another `host`; never raises on a fault."""
    found = Inspection(directory, host=host)
    try:
        found.manifest = read_manifest(directory)
    except (ArtifactError, OSError) as error:
        found.faults.append(str(error))
        return found
    found.passed.append(f"{MANIFEST}: schema {found.manifest.schema_version}, labels, clip specification")
    steps: tuple[Callable[[Inspection, Manifest], None], ...] = (
        _check_files,
        _check_graphs,
        _check_self_test,
        _check_plan,
        _check_verdict,
    )
    for step in steps:
        try:
            step(found, found.manifest)
        except (ArtifactError, OSError) as error:
            found.faults.append(str(error))
    return found


def inspection_lines(found: Inspection) -> Iterator[str]:
    """Return what the command prints."""
    if (manifest := found.manifest) is not None:
        yield from _described(found, manifest)
    yield from (f"  ok      {line}" for line in found.passed)
    yield from (f"  note    {line}" for line in found.notes)
    yield from (f"  FAULT   {line}" for line in found.faults)
    count = len(found.faults)
    yield ""
    yield "sound" if found.sound else f"{count} fault{'' if count == 1 else 's'}: do not serve it"


def _described(found: Inspection, manifest: Manifest) -> Iterator[str]:
    origin, clip = manifest.origin, manifest.clip
    sizes = _sizes(found.directory, manifest)
    score = manifest.evaluation.get("score")
    yield f"{found.directory} (version {Artifact(found.directory, manifest).version}, made {manifest.created_at})"
    yield f"  network     {origin.backbone}, {origin.aggregation}, epoch {origin.epoch}, {manifest.precision}"
    yield f"  checkpoint  SHA-256 {origin.checkpoint_sha256[:12]}..."
    yield f"  clip        {clip.num_frames} frames of {clip.size_px} px, {clip.resize}, up to {clip.max_views} views"
    yield f"  score       {f'{100 * score:.1f}' if isinstance(score, (int, float)) else 'not known'}"
    yield f"  temperature {', '.join(f'{head} {value:.4g}' for head, value in manifest.temperatures.items())}"
    if manifest.plan is not None:
        plan = manifest.plan
        yield f"  plan        {plan.gpu_architecture} ({plan.gpu}), TensorRT {plan.tensorrt_version}"
    for name, size in sizes.items():
        yield f"  {size / 1e6:9.3f} MB  {name}"
    yield f"  {sum(sizes.values()) / 1e6:9.3f} MB  in all"
    yield ""


def _check_files(found: Inspection, manifest: Manifest) -> None:
    faults = list(file_faults(found.directory, manifest))
    found.faults += faults
    if not faults:
        found.passed.append(f"files: {len(manifest.files)} are there and have the manifest's SHA-256")
    listed = {*manifest.files, MANIFEST}
    if strange := sorted(path.name for path in found.directory.iterdir() if path.name not in listed):
        found.notes.append(f"not in the manifest, and not part of the artifact: {', '.join(strange)}")


def _check_graphs(found: Inspection, manifest: Manifest) -> None:
    graphs: list[GraphSpec] = [manifest.encoder, manifest.head, *([manifest.merged] if manifest.merged else [])]
    for graph in graphs:
        try:
            actual = spec_of(graph.file, onnx_session(found.directory / graph.file))
        except ArtifactError as error:
            found.faults.append(str(error))
            continue
        checks = list(structure_checks(graph, actual))
        wrong = [f"{check.name}: {reason}" for check in checks for reason in check.failures]
        found.faults += [f"{graph.file} is not what the manifest promises: {reason}" for reason in wrong]
        if not wrong:
            found.passed.append(f"{graph.file}: loads in ONNX Runtime, tensors as promised")


def _check_self_test(found: Inspection, manifest: Manifest) -> None:
    if (limit := GOLDEN_TOLERANCE.get(manifest.precision)) is None:
        found.faults.append(f"precision {manifest.precision!r} is not known here: {', '.join(GOLDEN_TOLERANCE)}")
        return
    golden = Artifact(found.directory, manifest).golden()
    try:
        check = check_golden(OnnxRunner(found.directory), golden, limit=limit)
    except Exception as error:  # noqa: BLE001  # graphs with other inputs make ONNX Runtime raise anything
        found.faults.append(f"self-test: {type(error).__name__}: {str(error).splitlines()[0]}")
        return
    found.faults += [f"self-test against {GOLDEN}: {reason}" for reason in check.failures]
    if check.passed:
        found.passed.append(f"self-test: {check.measured} off PyTorch's answers, limit {check.limit}")


def _check_plan(found: Inspection, manifest: Manifest) -> None:
    if (plan := manifest.plan) is None:
        return
    try:
        host = found.host or find_host()
    except PlanError as error:
        found.notes.append(f"{plan.file} cannot be checked here: {error}")
        return
    found.notes += check_plan(plan, host)
    found.passed.append(f"{plan.file}: may run on this GPU with this TensorRT")


def _check_verdict(found: Inspection, manifest: Manifest) -> None:
    path = found.directory / "parity.json"
    try:
        document = json.loads(path.read_text())
        passed, checks = document["passed"], document["checks"]
    except (ValueError, KeyError, TypeError) as error:
        found.faults.append(f"{path} is no parity report ({error!r}); export again.")
        return
    failed = [check["name"] for check in checks if not check["passed"]]
    if passed is not True or failed or manifest.parity.get("passed") is not True:
        found.faults.append(f"{path}: parity has not passed ({', '.join(failed) or 'no verdict'}); export again.")
    else:
        found.passed.append(f"parity: {len(checks)} checks passed, {manifest.parity.get('candidate')}")


def _sizes(directory: Path, manifest: Manifest | None) -> Mapping[str, int]:
    names = [*(manifest.files if manifest else {}), MANIFEST]
    return {name: (directory / name).stat().st_size for name in names if (directory / name).is_file()}
