"""Recorded actions to review: the official layout, or any folder with clips; what was annotated, where it was.

<root>/<split>/annotations.json   <root>/<split>/action_<id>/clip_<k>.mp4        the official layout, or one split of it
<root>/<anything>/*.mp4   <root>/*.mp4                                           each folder is a case
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mvfoul.errors import ConfigError, LabelError
from mvfoul.labels import (
    OFFENCE_SEVERITIES,
    normalise_action_class,
    normalise_offence,
    normalise_severity,
    offence_severity_index,
)

SUFFIXES: Final = (".mp4", ".mkv", ".webm", ".mov", ".ts", ".avi")

log = logging.getLogger("mvfoul.live")


@dataclass(frozen=True)
class Case:
    """One recorded action."""

    id: str
    clips: Mapping[str, Path | bytes]
    """By the name of the view, in order."""
    truth: Mapping[str, str] | None = None
    """Annotated label by head, "" where it is unknown; None without annotations."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What else the annotations say, worth showing."""

    def to_json(self) -> dict[str, Any]:
        """Return what the page gets."""
        truth = None if self.truth is None else dict(self.truth)
        return {"id": self.id, "views": list(self.clips), "truth": truth, "facts": dict(self.facts)}

    def read(self) -> dict[str, bytes]:
        """Return the clips' bytes.

        Raises:
            ConfigError: One is no longer readable.
        """
        try:
            return {name: clip if isinstance(clip, bytes) else clip.read_bytes() for name, clip in self.clips.items()}
        except OSError as error:
            raise ConfigError(f"a clip of {self.id} cannot be read: {error}.") from error


def find_cases(root: Path) -> dict[str, Case]:
    """Return the cases below a folder by id, in order.

    Raises:
        ConfigError: There are none.
    """
    cases = {case.id: case for case in _cases(root)}
    if not cases:
        raise ConfigError(
            f"--review {root} has no clips in it ({', '.join(SUFFIXES)}). Pass the folder that holds them."
        )
    return cases


def _cases(root: Path) -> Iterator[Case]:
    annotations: dict[Path, Mapping[str, Any]] = {}
    folders = {path.parent for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()}
    for folder in sorted(folders, key=_natural):
        clips = sorted((p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES), key=_natural)
        if folder.parent not in annotations:
            annotations[folder.parent] = _annotated(folder.parent)
        fields = annotations[folder.parent].get(folder.name.removeprefix("action_"))
        name = folder.relative_to(root).as_posix()
        case_id = root.name if name == "." else name
        views = {path.stem: path for path in clips}
        if isinstance(fields, Mapping):
            yield Case(case_id, views, _truth(fields, case_id), _facts(fields))
        else:
            yield Case(case_id, views)


def _annotated(folder: Path) -> Mapping[str, Any]:
    path = folder / "annotations.json"
    if not path.is_file():
        return {}
    try:
        actions = json.loads(path.read_bytes())["Actions"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read (%r); its actions are shown without annotations", path, error)
        return {}
    return actions if isinstance(actions, Mapping) else {}


def _truth(fields: Mapping[str, Any], case_id: str) -> dict[str, str]:
    try:
        offence, severity = normalise_offence(fields.get("Offence")), normalise_severity(fields.get("Severity"))
        action = normalise_action_class(fields.get("Action class"))
    except LabelError as error:
        log.warning("%s: %s; shown as unknown", case_id, error)
        return {"action": "", "offence_severity": ""}
    try:
        return {"action": action, "offence_severity": OFFENCE_SEVERITIES[offence_severity_index(offence, severity)]}
    except LabelError:  # "Between", or a severity between two cards: people did not agree
        return {"action": action, "offence_severity": ""}


def _facts(fields: Mapping[str, Any]) -> dict[str, str]:
    keys = ("Contact", "Bodypart", "Try to play", "Touch ball", "Handball", "Offence", "Severity")
    facts = {key: str(fields[key]) for key in keys if fields.get(key)}
    clips = fields.get("Clips") or []
    for i, clip in enumerate(c for c in clips if isinstance(c, Mapping)):
        facts[f"clip_{i}"] = f"{clip.get('Camera type', '')}, replay speed {clip.get('Replay speed', '')}"
    return facts


def _natural(path: Path) -> tuple[Any, ...]:
    """Sort action_10 after action_2."""
    pieces = re.split(r"(\d+)", path.as_posix())
    return tuple(int(piece) if i % 2 else piece for i, piece in enumerate(pieces))
