"""From annotations.json to the actions that can be used, and a report of those that cannot.

    <root>/<split>/annotations.json    <root>/<split>/action_<id>/clip_<k>.mp4

Where they lie on disk is `mvfoul.layout`'s. The official filter leaves 2,319 of 2,916 training actions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from mvfoul.errors import AnnotationError, LabelError
from mvfoul.labels import (
    ACTION_CLASSES,
    VOCABULARIES,
    FoulLabels,
    Head,
    normalise_action_class,
    normalise_offence,
    normalise_severity,
    offence_severity_index,
)
from mvfoul.layout import Split, canonical_split, clip_items, clip_path, find_split, mp4_files, read_actions

_LABEL_FIELDS: Final = ("Action class", "Offence", "Severity")


@dataclass(frozen=True)
class ClipRecord:
    """One view's file and what the annotations say of it."""

    path: Path
    camera_type: str
    replay_speed: float | None
    """How many times slower than life the replay runs, 1 to 10; None where the annotations give no number."""
    timestamp_ms: float | None
    """Position in the broadcast half; None where the annotations give no number."""

    @property
    def is_replay(self) -> bool:
        """Whether this view is a replay: every clip but `clip_0`, and `clip_0` too where it is slowed.

        The data set lists the live picture first; a replay at life speed (1.0) can only be told by its place.
        """
        return self.path.stem != "clip_0" or (self.replay_speed or 1.0) > 1.0


@dataclass(frozen=True)
class ActionRecord:
    """One incident and the clips of it that are on disk, in the annotations' order."""

    action_id: str
    split: Split
    labels: FoulLabels | None
    """None in a challenge split without labels, and for actions that only `filtered=False` keeps."""
    clips: tuple[ClipRecord, ...]


@dataclass(frozen=True)
class Dropped:
    """An action that is not used, and why."""

    action_id: str
    reason: str


@dataclass(frozen=True)
class ClipIssue:
    """Something odd about the clips of an action that is used nevertheless."""

    action_id: str
    path: Path
    reason: Literal["missing on disk", "gap in the clip numbers", "listed twice", "on disk but not in the annotations"]


@dataclass(frozen=True)
class Annotations:
    """One split."""

    split: Split
    folder: Path
    records: tuple[ActionRecord, ...]
    dropped: tuple[Dropped, ...]
    clip_issues: tuple[ClipIssue, ...]

    def class_counts(self, head: Head) -> tuple[int, ...]:
        """Return how many labelled actions each label of `head` has, in the order of the vocabulary."""
        counts = Counter(getattr(record.labels, head) for record in self.records if record.labels is not None)
        return tuple(counts[index] for index in range(len(VOCABULARIES[head])))

    def view_counts(self) -> Mapping[int, int]:
        """Return how many actions have 1, 2, ... clips on disk."""
        return dict(sorted(Counter(len(record.clips) for record in self.records).items()))

    def dropped_table(self) -> str:
        """Return plain text: how many actions were dropped, per reason, and how many are left."""
        rows = Counter(item.reason for item in self.dropped).most_common()
        lines = [f"{self.split}: {len(self.records)} actions used, {len(self.dropped)} dropped"]
        return "\n".join(lines + [f"{count:>7}  {reason}" for reason, count in rows])


def load_annotations(root: Path, split: str, *, filtered: bool = True) -> Annotations:
    """Read one split, with the official filter.

    The filter drops the action class "" or "Dont know"; the offence "" or "Between" unless the class is Dive; the
    severity "", 2.0 or 4.0 unless the class is Dive or there is no offence. Of what is left, the offence "" or
    "Between" counts as Offence, and the severity "", 2.0 or 4.0 as 1.0 (no card).

    Args:
        root: The folder with the splits in it.
        split: In any known spelling.
        filtered: False keeps the actions that the filter would drop, without labels. A challenge split in which no
            action has a label is never filtered.

    Raises:
        AnnotationError: The folder or the file is not what it should be, a label is unknown, or no action is left.
    """
    name = canonical_split(split)
    folder = find_split(Path(root), name)
    actions = read_actions(folder / "annotations.json")
    labelled = name != "challenge" or any(
        _text(fields.get(key)) for fields in actions.values() for key in _LABEL_FIELDS
    )
    records: list[ActionRecord] = []
    dropped: list[Dropped] = []
    issues: list[ClipIssue] = []
    for action_id, fields in actions.items():
        labels = _labels(action_id, fields, folder) if labelled else None
        if isinstance(labels, str) and filtered:
            dropped.append(Dropped(action_id, labels))
            continue
        clips, odd = _clips(action_id, fields, folder)
        issues += odd
        if clips:
            records.append(ActionRecord(action_id, name, labels if isinstance(labels, FoulLabels) else None, clips))
        else:
            dropped.append(Dropped(action_id, "no clip on disk"))
    annotations = Annotations(name, folder, tuple(records), tuple(dropped), tuple(issues))
    if not records:
        raise AnnotationError(f"{folder} has no usable action.\n{annotations.dropped_table()}")
    return annotations


def _labels(action_id: str, fields: Mapping[str, Any], folder: Path) -> FoulLabels | str:
    """Return the labels, or the reason why the official filter drops the action."""
    try:
        return _filter(
            normalise_action_class(fields.get("Action class")),
            normalise_offence(fields.get("Offence")),
            normalise_severity(fields.get("Severity")),
        )
    except LabelError as error:
        raise AnnotationError(f"{folder / 'annotations.json'}, action {action_id}: {error}") from error


def _filter(action_class: str, offence: str, severity: str) -> FoulLabels | str:
    dive, undecided = action_class == "Dive", severity in ("", "2.0", "4.0")
    if not action_class:
        return 'action class is "" or "Dont know"'
    if offence in ("", "Between") and not dive:
        return f'offence is "{offence}"'
    if undecided and not dive and offence != "No offence":
        return f'severity is "{severity}"'
    offence = "Offence" if offence in ("", "Between") else offence
    severity = "1.0" if undecided else severity
    return FoulLabels(ACTION_CLASSES.index(action_class), offence_severity_index(offence, severity))


def _clips(
    action_id: str, fields: Mapping[str, Any], folder: Path
) -> tuple[tuple[ClipRecord, ...], tuple[ClipIssue, ...]]:
    """Return the clips that are on disk, and what is odd about the rest."""
    listed = [_clip(action_id, item, folder) for item in clip_items(action_id, fields, folder)]
    on_disk = {path for parent in {clip.path.parent for clip in listed} for path in mp4_files(parent)}
    unique = {clip.path: clip for clip in listed}
    missing = [path for path in unique if path not in on_disk]
    issues = [
        *_issues(action_id, missing, "missing on disk"),
        *_issues(action_id, sorted(on_disk - set(unique)), "on disk but not in the annotations"),
        *_issues(action_id, [path for path, n in Counter(c.path for c in listed).items() if n > 1], "listed twice"),
        *_issues(action_id, _gaps(unique), "gap in the clip numbers"),
    ]
    return tuple(clip for path, clip in unique.items() if path in on_disk), tuple(issues)


def _clip(action_id: str, item: Mapping[str, Any], folder: Path) -> ClipRecord:
    return ClipRecord(
        clip_path(action_id, item, folder),
        _text(item.get("Camera type")),
        _number(item.get("Replay speed")),
        _number(item.get("Timestamp")),
    )


def _gaps(paths: Iterable[Path]) -> list[Path]:
    """Return the clips that the numbering skips, from clip_0 to the highest number."""
    by_number = {int(path.stem.removeprefix("clip_")): path for path in paths}
    skipped = sorted(set(range(max(by_number, default=0))) - set(by_number))
    return [by_number[max(by_number)].with_name(f"clip_{number}.mp4") for number in skipped]


def _issues(action_id: str, paths: Iterable[Path], reason: Any) -> list[ClipIssue]:
    return [ClipIssue(action_id, path, reason) for path in paths]


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _number(value: Any) -> float | None:
    try:
        return float(_text(value))
    except ValueError:
        return None
