"""Decisions and clips to disk, and back after a restart; what cannot be written is told and lost, the rest goes on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from serving.live.audit import AuditLog
from serving.live.board import Board
from serving.live.clips import RETENTION, ClipStore
from serving.live.incident import Incident, View, restored_incident

DECISION = "decision"


class Recorder:
    """The audit log and the clips of one directory."""

    def __init__(self, log: AuditLog, board: Board) -> None:
        self._log = log
        self._clips = ClipStore(log.directory)
        self._board = board
        if log.repaired:
            board.notice("repaired", "warning", f"audit log: {log.repaired}")

    @property
    def head(self) -> tuple[int, str]:
        """Number and hash of the log's last line."""
        return self._log.head

    def keep_clips(self, views: Sequence[View]) -> bool:
        """Write the clips of views that have none yet; return whether all are on disk."""
        for view in views:
            if view.kept:
                continue
            try:
                view.sha256 = self._clips.remember(view.data)
                self._clips.put(view.data)
                view.kept = True
            except OSError as error:
                reason = f"clips are NOT kept: cannot write {self._log.directory}: {error.strerror}. Free the disk."
                self._board.notice("disk", "error", reason)
        return all(view.kept for view in views)

    def record(self, data: Mapping[str, Any]) -> int:
        """Write one decision, `serving.live.incident.audit_data`; return its line's number once it is on disk.

        Raises:
            AuditError: It could not be written.
        """
        return self._log.append(DECISION, data).n

    def clip(self, sha256: str) -> bytes | None:
        """Return a clip, or None if it is gone."""
        return self._clips.get(sha256)

    def restored(self, count: int) -> dict[str, Incident]:
        """Return the latest incidents of the log, oldest first."""
        incidents: dict[str, Incident] = {}
        for entry in self._log.entries():
            if entry.kind == DECISION:
                name = entry.data["incident"]["id"]
                incidents[name] = restored_incident(entry.data, entry.n, incidents.pop(name, None))
        return dict(list(incidents.items())[-count:])

    def apply_retention(self, *, max_age_s: float, max_bytes: int, in_use: Collection[str]) -> None:
        """Remove clips by the policy; the log names them first.

        Raises:
            AuditError: That could not be written; nothing was removed.
        """
        names = self._clips.expired(max_age_s=max_age_s, max_bytes=max_bytes, in_use=in_use)
        if names:
            self._log.append(RETENTION, {"removed": names})
            self._clips.remove(names)
