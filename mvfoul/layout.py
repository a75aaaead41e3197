"""The official layout of the data set on disk: splits, annotations.json, clips. What labels mean is not here.

    <root>/<split>/annotations.json    <root>/<split>/action_<id>/clip_<k>.mp4

Different tools write the splits differently (`train`, `Train`, `chall`, `challenge`): folders are found in any known
spelling, and in code a split has one name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args

from mvfoul.errors import AnnotationError

Split = Literal["train", "valid", "test", "challenge"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)

_SPELLINGS: Final[Mapping[str, Split]] = {
    **{split: split for split in SPLITS},
    "val": "valid",
    "validation": "valid",
    "chall": "challenge",
}
_URL: Final = re.compile(r"(?:^|/)(?P<action>action_\w+)/(?P<clip>clip_\d{1,4})(?:\.mp4)?$")


def canonical_split(split: str) -> Split:
    """Return the one name of a split.

    Raises:
        AnnotationError: Not a split.
    """
    if (name := _SPELLINGS.get(split.casefold())) is None:
        raise AnnotationError(f"unknown split {split!r}; known: {', '.join(_SPELLINGS)}.")
    return name


def find_split(root: Path, split: Split) -> Path:
    """Return the folder of a split, whatever its spelling.

    Raises:
        AnnotationError: The root or the split is missing, or two folders spell the same split.
    """
    if (root / "annotations.json").is_file():
        raise AnnotationError(f"{root} is itself a split (it has an annotations.json); name its parent {root.parent}.")
    folders = split_folders(root)
    found = folders.get(split, [])
    if not found:
        there = ", ".join(path.name for paths in folders.values() for path in paths) or "none"
        raise AnnotationError(f"{root} has no split {split!r} (a folder with an annotations.json); it has: {there}.")
    if len(found) > 1:
        raise AnnotationError(f"{root} has {split!r} twice: {', '.join(p.name for p in found)}; remove or rename one.")
    return found[0]


def split_folders(root: Path) -> dict[Split, list[Path]]:
    """Return the folders of `root` that hold a split, by split.

    Raises:
        AnnotationError: `root` is no folder.
    """
    if not root.is_dir():
        raise AnnotationError(f"data root {root} is not a folder; name the one that holds train, valid and test.")
    folders: dict[Split, list[Path]] = {}
    for path in sorted(root.iterdir()):
        if (split := _SPELLINGS.get(path.name.casefold())) and (path / "annotations.json").is_file():
            folders.setdefault(split, []).append(path)
    return {split: folders[split] for split in SPLITS if split in folders}


def read_actions(path: Path) -> dict[str, Mapping[str, Any]]:
    """Return the fields of each action in an annotations.json, by action id.

    Raises:
        AnnotationError: It is not such a file, or it has no action.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, and of bytes that are not UTF-8
        raise AnnotationError(f"{path} is not JSON ({error}); download it again.") from error
    actions = document.get("Actions") if isinstance(document, Mapping) else None
    if not isinstance(actions, Mapping) or not all(isinstance(fields, Mapping) for fields in actions.values()):
        raise AnnotationError(f'{path} has no object "Actions" of objects; it is not a file of SoccerNet-MVFoul.')
    if not actions:
        raise AnnotationError(f'{path} has no action: its object "Actions" is empty.')
    return {str(action_id): fields for action_id, fields in actions.items()}


def clip_items(action_id: str, fields: Mapping[str, Any], folder: Path) -> list[Mapping[str, Any]]:
    """Return what an action's fields list under "Clips".

    Raises:
        AnnotationError: No list of objects.
    """
    items = fields.get("Clips")
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise AnnotationError(f'{folder / "annotations.json"}, action {action_id}: "Clips" is not a list of objects.')
    return items


def clip_path(action_id: str, item: Mapping[str, Any], folder: Path) -> Path:
    """Return where the clip of an item of "Clips" should be.

    Args:
        action_id: As the annotations have it.
        item: Its field "Url" names the clip; what stands before action_<id> differs between tools.
        folder: Of the split.

    Raises:
        AnnotationError: The Url names no clip.
    """
    url = str(item.get("Url") or "").strip().replace("\\", "/")
    if (match := _URL.search(url)) is None:
        raise AnnotationError(
            f"{folder / 'annotations.json'}, action {action_id}: clip Url {url!r} does not end in action_<id>/clip_<k>."
        )
    return folder / match["action"] / f"{match['clip']}.mp4"


def mp4_files(folder: Path) -> Iterable[Path]:
    """Return the mp4 files in an action's folder, which may be missing."""
    # One listing per action: on network storage much faster than asking for each file.
    return folder.glob("*.mp4") if folder.is_dir() else ()
