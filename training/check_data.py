"""`python -m training.check_data --root DIR`: what of a data set can be used, what cannot, and why.

The quick scan reads every clip's packets without decoding a picture: it finds missing, truncated, foreign and short
files. Damage inside pictures shows only with `--deep`, which decodes what training would. Clips of actions that the
official filter drops are not looked at.

measured, per clip and core, real clips in the page cache: 2 ms; with `--deep` 35 ms.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from mvfoul.clip import TIMELINE_FPS, ClipSpec, Preset, preset
from mvfoul.command import exit_code_of
from mvfoul.errors import ConfigError, InvalidClipError
from mvfoul.labels import VOCABULARIES
from mvfoul.layout import Split, canonical_split, find_split, split_folders
from training.annotations import ActionRecord, Annotations, ClipRecord, load_annotations

if TYPE_CHECKING:
    from rich.console import Console

EXIT_UNUSABLE = 1

_MAX_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Check a data set in the official layout before training on it.

    Exit codes: 0 every clip is usable, 1 something is not, 2 the data set could not be read.
    """

    root: Path
    """The folder with the splits (train, valid, test, challenge) in it."""
    split: tuple[str, ...] = ()
    """Splits to check. Default: all that are there."""
    deep: bool = False
    """Decode the frames that training would; many times slower, and the only way to find damaged pictures."""
    preset: Preset = "two-second"
    """Which frames are needed: a clip that ends before them is too short."""
    threads: int = 4
    """Clips read at the same time."""
    json: Path | None = None
    """Also write everything to this file."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"--threads is {self.threads}; use 1 or more.")


@dataclass(frozen=True)
class ClipFault:
    """A clip that training will leave out."""

    action_id: str
    path: str
    kind: Literal["missing", "too short", "unreadable"]
    reason: str


@dataclass(frozen=True)
class SplitReport:
    """What was found in one split."""

    annotations: Annotations
    faults: tuple[ClipFault, ...]
    """Missing files first, then by action."""

    @property
    def clips(self) -> int:
        """Clips on disk of the actions that are used."""
        return sum(len(record.clips) for record in self.annotations.records)

    @property
    def actions_without_view(self) -> tuple[str, ...]:
        """Ids of actions that pass the filter and have no usable clip."""
        bad = {fault.path for fault in self.faults}
        blind = [r.action_id for r in self.annotations.records if all(str(clip.path) in bad for clip in r.clips)]
        return (*(item.action_id for item in self.annotations.dropped if item.reason == "no clip on disk"), *blind)

    @property
    def clean(self) -> bool:
        """Whether every annotated clip of the used actions can be used."""
        return not self.faults and not self.actions_without_view

    def to_json(self) -> dict[str, Any]:
        """Return plain types."""
        found = self.annotations
        return {
            "clean": self.clean,
            "folder": str(found.folder),
            "actions": len(found.records),
            "clips": self.clips,
            "class_counts": {
                head: dict(zip(names, found.class_counts(head), strict=True)) for head, names in VOCABULARIES.items()
            },
            "actions_by_views": {str(views): count for views, count in found.view_counts().items()},
            "dropped": [asdict(item) for item in found.dropped],
            "clip_issues": [{**asdict(issue), "path": str(issue.path)} for issue in found.clip_issues],
            "actions_without_view": list(self.actions_without_view),
            "faults": [asdict(fault) for fault in self.faults],
        }


def check_split(
    annotations: Annotations,
    spec: ClipSpec,
    *,
    deep: bool = False,
    threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> SplitReport:
    """Read every clip of a split's usable actions.

    Args:
        annotations: The split.
        spec: The frames that are needed.
        deep: Decode them.
        threads: Clips read at the same time.
        progress: Called with (clips done, clips in all).
    """
    missing = [
        ClipFault(issue.action_id, str(issue.path), "missing", "annotated, but not on disk")
        for issue in annotations.clip_issues
        if issue.reason == "missing on disk"
    ]
    clips = [(record, clip) for record in annotations.records for clip in record.clips]
    faults: list[ClipFault] = []

    def check(pair: tuple[ActionRecord, ClipRecord]) -> ClipFault | None:
        return _check_clip(pair[0].action_id, pair[1].path, spec, deep=deep)

    pool = ThreadPoolExecutor(threads)
    try:
        for done, fault in enumerate(pool.map(check, clips), start=1):
            faults += [fault] if fault else []
            if progress is not None:
                progress(done, len(clips))
    finally:
        # On Ctrl-C: do not read what is still waiting.
        pool.shutdown(cancel_futures=True)
    return SplitReport(annotations, (*missing, *faults))


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code."""

    def check() -> int:
        return run(
            tyro.cli(
                CheckConfig,
                args=arguments,
                prog="python -m training.check_data",
                config=(tyro.conf.FlagCreatePairsOff,),
            )
        )

    return exit_code_of(check)


def run(config: CheckConfig) -> int:
    """Check, print, write; return the exit code.

    Raises:
        AnnotationError: A split is missing, or its annotations cannot be used.
    """
    from rich.console import Console

    from mvfoul.artifact import write_json

    spec = preset(config.preset)
    everything = {split: load_annotations(config.root, split) for split in _splits(config.root, requested=config.split)}
    reports = {split: _with_progress(annotations, spec, config) for split, annotations in everything.items()}
    for report in reports.values():
        _print(Console(), report)
    clean = all(report.clean for report in reports.values())
    if config.json is not None:
        splits = {split: report.to_json() for split, report in reports.items()}
        write_json(config.json, {"root": str(config.root), "deep": config.deep, "clean": clean, "splits": splits})
    return 0 if clean else EXIT_UNUSABLE


def _splits(root: Path, *, requested: Iterable[str]) -> tuple[Split, ...]:
    splits = tuple(dict.fromkeys(canonical_split(name) for name in requested)) or tuple(split_folders(root))
    if not splits:
        find_split(root, "train")  # says what is wrong with the root
    return splits


def _check_clip(action_id: str, path: Path, spec: ClipSpec, *, deep: bool) -> ClipFault | None:
    from mvfoul.video import decode_clip, probe_clip

    try:
        info = probe_clip(path)
        needed_s = spec.frame_indices[-1] / TIMELINE_FPS
        if info.duration_s <= needed_s:
            reason = f"{info.frames} frames, {info.duration_s:.2f} s; a frame at {needed_s:.2f} s is needed"
            return ClipFault(action_id, str(path), "too short", reason)
        if deep:
            decode_clip(path, spec)
    except (InvalidClipError, OSError) as error:
        return ClipFault(action_id, str(path), "unreadable", str(error))
    return None


def _with_progress(annotations: Annotations, spec: ClipSpec, config: CheckConfig) -> SplitReport:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{annotations.split}: {'decoding' if config.deep else 'reading'} clips")
        return check_split(
            annotations,
            spec,
            deep=config.deep,
            threads=config.threads,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _print(console: Console, report: SplitReport) -> None:
    found = report.annotations
    console.rule(f"{found.split}: {found.folder}", align="left")
    dropped = Counter(item.reason for item in found.dropped)
    console.print(
        f"{len(found.records)} actions used, {len(found.dropped)} dropped; {report.clips} clips", style="bold"
    )
    _print_table(console, ("dropped because", "actions"), dropped.most_common())
    _print_table(console, ("views", "actions"), found.view_counts().items())
    for head, names in VOCABULARIES.items():
        _print_table(console, (head, "actions"), zip(names, found.class_counts(head), strict=True))
    _print_table(console, ("remark", "clips"), Counter(issue.reason for issue in found.clip_issues).most_common())
    _print_faults(console, report)


def _print_table(console: Console, header: tuple[str, str], rows: Iterable[tuple[object, int]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(header[0])
    table.add_column(header[1], justify="right")
    for name, count in rows:
        table.add_row(Text(str(name)), f"{count:,}")
    if table.row_count:
        console.print(table)


def _print_faults(console: Console, report: SplitReport) -> None:
    from rich.table import Table
    from rich.text import Text

    if report.clean:
        console.print("every clip is usable", style="green")
        return
    table = Table("action", "clip", "problem", "reason")
    for fault in report.faults[:_MAX_ROWS]:
        table.add_row(fault.action_id, Path(fault.path).stem, fault.kind, Text(fault.reason))
    console.print(table)
    if len(report.faults) > _MAX_ROWS:
        console.print(f"and {len(report.faults) - _MAX_ROWS} more; --json FILE lists all")
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(fault.kind for fault in report.faults).items())
    console.print(
        f"{len(report.faults)} clips will be left out ({kinds}); "
        f"{len(report.actions_without_view)} actions have no view left",
        style="red",
    )


if __name__ == "__main__":
    sys.exit(main())
