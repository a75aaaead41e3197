"""The actions of a split and their clips on disk, without a look at any label."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mvfoul.layout import Split, clip_items, clip_path, find_split, mp4_files, read_actions


@dataclass(frozen=True)
class Action:
    """One incident."""

    action_id: str
    clips: tuple[Path, ...]
    """Those on disk, in the annotations' order."""

    fingerprint: list[list[str | int]] = field(default_factory=list)
    """What tells whether the clips are still those of an earlier run: name, bytes and time of change of each."""


def list_actions(root: Path, split: Split, *, max_views: int) -> tuple[Action, ...]:
    """Return all actions of a split, in the annotations' order; those without a clip on disk too.

    Raises:
        AnnotationError: The layout is not the official one.
    """
    folder = find_split(root, split)
    actions = []
    for action_id, fields in read_actions(folder / "annotations.json").items():
        listed = dict.fromkeys(clip_path(action_id, item, folder) for item in clip_items(action_id, fields, folder))
        there = {path for parent in {path.parent for path in listed} for path in mp4_files(parent)}
        clips = [path for path in listed if path in there][:max_views]
        actions.append(Action(action_id, tuple(clips), [_fingerprint(path) for path in clips]))
    return tuple(actions)


def _fingerprint(path: Path) -> list[str | int]:
    state = path.stat()
    return [path.name, state.st_size, state.st_mtime_ns]
