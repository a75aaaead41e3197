"""Reviewing recorded actions: the decision beside the annotation, each view alone, what moved it, cases from files.

Everything asked of the server goes through one thread at a time for what takes long: a new question replaces the one
that runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from mvfoul.clip import ClipSpec
from mvfoul.errors import MVFoulError
from mvfoul.video import decode_clip
from serving.client import FoulClient
from serving.live.board import Board
from serving.live.clock import now_s
from serving.live.desk import Desk, DeskError
from serving.live.incident import Incident, free_name
from serving.live.library import Case
from serving.live.saliency import CancelledError, Probe, occlusion
from serving.live.server_clip import server_clip_spec

MAX_DROPPED: Final = 50
"""Cases of dropped files in memory; the oldest goes."""

log = logging.getLogger("mvfoul.live")


@dataclass
class Examination:
    """What was found out about one case beyond its decision."""

    incident_id: str
    case_id: str
    alone: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """The decision on each view alone."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why a view alone has none."""
    saliency: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    """What runs: view, done, total; or error."""

    def to_json(self) -> dict[str, Any]:
        """Return what the page gets."""
        return {
            "incident_id": self.incident_id,
            "case_id": self.case_id,
            "alone": dict(self.alone),
            "failed": dict(self.failed),
            "saliency": dict(self.saliency),
            "job": dict(self.job),
        }


class Review:
    """All cases, and what was found out about those that were opened."""

    def __init__(
        self, cases: dict[str, Case], desk: Desk, client: FoulClient, board: Board, *, artifact: Path | None = None
    ) -> None:
        self._cases, self._desk, self._client, self._board, self._artifact = cases, desk, client, board, artifact
        self._examinations: dict[str, Examination] = {}
        self._spec: ClipSpec | None = None
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None
        self._cancel = threading.Event()

    def cases(self) -> list[dict[str, Any]]:
        """Return all cases for the page."""
        with self._mutex:
            return [case.to_json() for case in self._cases.values()]

    def examinations(self) -> list[dict[str, Any]]:
        """Return what was found out, for the page."""
        with self._mutex:
            return [examination.to_json() for examination in self._examinations.values()]

    def add(self, case_id: str, name: str, clip: bytes) -> None:
        """Add a dropped file to a case of dropped files, which begins with its first one."""
        with self._mutex:
            known = self._cases.get(case_id)
            if known is not None and not all(isinstance(value, bytes) for value in known.clips.values()):
                raise DeskError(f"{case_id} is a case on disk; dropped files make their own.")
            clips = dict(known.clips) if known else {}
            clips[free_name(name, clips)] = clip
            self._cases[case_id] = Case(case_id, clips)
            dropped = [c.id for c in self._cases.values() if all(isinstance(v, bytes) for v in c.clips.values())]
            for old in dropped[:-MAX_DROPPED]:
                del self._cases[old]
            self._board.publish("cases", [case.to_json() for case in self._cases.values()])

    def open(self, case_id: str, *, by: str = "") -> Incident:
        """Ask about a case: all views, then each alone; `by` as in `Desk.open_clips`.

        Raises:
            DeskError: There is no such case.
            ConfigError: Its clips cannot be read.
        """
        case = self._case(case_id)
        clips = case.read()
        incident = self._desk.open_clips(clips, "review", now_s=now_s(), note=case_id, by=by)
        with self._mutex:
            self._examinations[incident.id] = Examination(incident.id, case_id)
        self._start(self._ask_alone, incident.id, clips)
        return incident

    def explain(self, incident_id: str, view: str) -> None:
        """Compute what moved the decision in one view; the page is told as it goes.

        Raises:
            DeskError: There is no such incident or view here.
        """
        incident = self._desk.find(incident_id)
        clips = {v.name: v.data for v in incident.views.values() if v.data and v.state in ("used", "ready")}
        if incident_id not in self._examinations or view not in clips:
            raise DeskError(f"incident {incident_id} has no clip of a view {view!r} here; open its case again.")
        self._start(self._explain, incident_id, view, clips)

    def cancel(self) -> None:
        """Stop what runs; returns once it has."""
        self._cancel.set()
        if self._thread is not None:
            self._thread.join()

    def truth(self, incident_id: str) -> Mapping[str, str] | None:
        """Return what was annotated for an opened case."""
        with self._mutex:
            examination = self._examinations.get(incident_id)
            case = self._cases.get(examination.case_id) if examination else None
        return case.truth if case else None

    def _case(self, case_id: str) -> Case:
        with self._mutex:
            if case_id not in self._cases:
                raise DeskError(f"there is no case {case_id!r}.")
            return self._cases[case_id]

    def _start(self, work: Any, incident_id: str, *arguments: Any) -> None:
        self.cancel()
        self._cancel = threading.Event()

        def run() -> None:
            try:
                work(incident_id, *arguments)
            except CancelledError:
                self._tell(incident_id, job={})
            except MVFoulError as error:
                log.warning("review of %s: %s", incident_id, error)
                self._tell(incident_id, job={"error": str(error)})
            except Exception as error:
                log.exception("a bug in the review of %s", incident_id)
                self._board.notice("bug-review", "error", "a fault of the review itself; its log has it.")
                self._tell(incident_id, job={"error": f"a fault of the review itself: {error!r}"})

        self._thread = threading.Thread(target=run, name="review", daemon=True)
        self._thread.start()

    def _ask_alone(self, incident_id: str, clips: Mapping[str, bytes]) -> None:
        for name, clip in clips.items():
            self._go_on()
            try:
                decision = self._client.classify([clip], priority="bulk")
                self._examinations[incident_id].alone[name] = decision.document
            except MVFoulError as error:
                self._examinations[incident_id].failed[name] = str(error)
            self._tell(incident_id)

    def _explain(self, incident_id: str, view: str, clips: Mapping[str, bytes]) -> None:
        self._tell(incident_id, job={"view": view, "done": 0, "total": 1})
        spec = self._server_spec(list(clips.values()))
        views = {name: decode_clip(clip, spec) for name, clip in clips.items()}
        examined = views.pop(view)
        probe = Probe(
            self._client, np.stack(list(views.values())) if views else np.empty((0, *spec.view_shape), np.uint8)
        )

        def progress(done: int, total: int) -> None:
            self._go_on()
            self._tell(incident_id, job={"view": view, "done": done, "total": total})

        result = occlusion(probe.ask, examined, spec, progress=progress)
        self._examinations[incident_id].saliency[view] = result.to_json()
        self._tell(incident_id, job={})

    def _server_spec(self, clips: list[bytes]) -> ClipSpec:
        if self._spec is None:
            self._spec = server_clip_spec(self._client, clips, self._artifact)
        return self._spec

    def _go_on(self) -> None:
        if self._cancel.is_set():
            raise CancelledError

    def _tell(self, incident_id: str, *, job: dict[str, Any] | None = None) -> None:
        with self._mutex:
            examination = self._examinations[incident_id]
            if job is not None:
                examination.job = job
            # Inside, so that pages are told in the order in which it changed.
            self._board.publish("examination", examination.to_json())
