"""What made a run: versions, the revision of the code, and the data."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from training.annotations import Annotations

UNKNOWN: Final = "unknown"


def versions() -> dict[str, str]:
    """Return the versions of Python and of what decides the numbers of a run."""
    found = {"python": platform.python_version()}
    for name in ("vars-platform", "torch", "torchvision", "av", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_revision(folder: Path = Path(__file__).parent) -> dict[str, Any]:
    """Return {"revision": commit, "dirty": whether tracked files differ}, or {"revision": "unknown"}.

    Unknown where this code is installed rather than checked out, or where there is no git.
    """
    here = Path(__file__).name
    # An installed copy may lie inside somebody else's repository: this file must be a tracked one.
    if _git(folder, "ls-files", "--error-unmatch", here) is None:
        return {"revision": UNKNOWN}
    revision, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "-uno")
    if revision is None or changes is None:
        return {"revision": UNKNOWN}
    return {"revision": revision, "dirty": bool(changes)}


def data_identity(annotations: Annotations) -> dict[str, Any]:
    """Return what tells two splits apart: counts, and a hash of the actions' names, labels and clips, in order."""
    digest = hashlib.sha256()
    for record in annotations.records:
        clips = [clip.path.name for clip in record.clips]
        digest.update(repr((record.action_id, record.labels, clips)).encode())
    return {
        "actions": len(annotations.records),
        "clips": sum(len(record.clips) for record in annotations.records),
        "sha256": digest.hexdigest(),
    }


def _git(folder: Path, *args: str) -> str | None:
    """Return what git says, or None where it fails or does not exist."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *args],  # noqa: S607  (whichever git the user has)
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
