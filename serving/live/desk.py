"""All incidents of a console, and what the operator may do with them.

Each camera is waited for and cut in a thread of its own (`serving.live.cutting`). The first one that is ready asks
(`serving.live.judge`); those that become ready meanwhile go together in the next question.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

from mvfoul.clip import CONTACT_FRAME, TIMELINE_FPS
from serving.client import FoulClient
from serving.live.board import Board
from serving.live.camera import Camera
from serving.live.cutting import DeskSettings, cut_view
from serving.live.incident import Incident, Trigger, View, ViewState, free_name
from serving.live.judge import Judge, Opened
from serving.live.metrics import LiveMetrics
from serving.live.recorder import Recorder
from serving.live.session import ServerSession

DOUBLE_PRESS_S: Final = 0.5
BEFORE_S: Final = CONTACT_FRAME / TIMELINE_FPS
"""Of a cut, before the contact."""
_ASKERS: Final = 32
"""Incidents that are asked about at once. While the server is away, each waits for half a minute."""
_IN_MEMORY: Final = 20
"""Incidents whose clips are in memory, ready to be asked about again."""
_KEPT: Final = 200
"""Incidents in memory; older ones are in the audit log."""

log = logging.getLogger("mvfoul.live")


class DeskError(ValueError):
    """The operator asked for something that is not there or makes no sense; the message says what."""


class Desk:
    """All incidents of one console."""

    def __init__(
        self,
        cameras: Sequence[Camera],
        client: FoulClient,
        recorder: Recorder,
        board: Board,
        metrics: LiveMetrics,
        settings: DeskSettings,
    ) -> None:
        self._cameras = {camera.spec.name: camera for camera in cameras}
        self._client, self._recorder, self._board = client, recorder, board
        self._settings = settings
        self._mutex = threading.RLock()
        self._stopped = threading.Event()
        self._judge = Judge(recorder, board, metrics, self._mutex, self._stopped)
        self._open: dict[str, Opened] = {}
        self._incidents: dict[str, Incident] = recorder.restored(_KEPT)
        # Two, so that questions which wait for the server keep no camera from being cut while its buffer has it.
        self._cuts = ThreadPoolExecutor(max_workers=4 * max(1, len(cameras)) + 8, thread_name_prefix="cut")
        self._asks = ThreadPoolExecutor(max_workers=_ASKERS, thread_name_prefix="ask")

    def trigger(
        self, contact_s: float, trigger: Trigger, *, now_s: float, operator: str = "", note: str = ""
    ) -> Incident:
        """Open an incident; the decision follows on the board.

        Args:
            contact_s: When the contact was, UNIX seconds on the cameras' common clock.
            trigger: What asked for it.
            now_s: The clock that `contact_s` counts on, now.
            operator: Who asked; the console's operator if empty.
            note: Free text.

        Returns:
            The new incident, or the one that the same press opened already.
        """
        with self._mutex:
            if (same := self._pressed_twice(contact_s, trigger)) is not None:
                return same
            who = operator or self._settings.operator
            incident = Incident(_new_id(now_s), trigger, who, now_s, contact_s, note)
            incident.views = {name: View(name, "camera") for name in self._cameras}
            opened = self._remember(incident)
        self._judge.tell(incident)
        self._cut_all(opened)
        return incident

    def open_clips(
        self, clips: Mapping[str, bytes], trigger: Trigger, *, now_s: float, note: str = "", by: str = ""
    ) -> Incident:
        """Open an incident of files, one view each, and ask about it; `by`: who asked, empty for the operator."""
        incident = Incident(_new_id(now_s), trigger, by or self._settings.operator, now_s, now_s, note)
        for name, data in clips.items():
            incident.views[name] = View(name, "file", "ready", data=data, ready_at_s=time.monotonic())
        with self._mutex:
            opened = self._remember(incident)
        self._judge.tell(incident)
        self._ask(opened)
        return incident

    def add_replay(self, incident_id: str, name: str, data: bytes, *, by: str = "") -> None:
        """Add a clip of the incident, its contact 3 s after its start, and ask again; `by` as in `open_clips`.

        Raises:
            DeskError: Unknown incident.
        """
        opened = self._opened(incident_id, "add", name, by)
        with self._mutex:
            views = opened.incident.views
            unique = free_name(name, views)
            views[unique] = View(unique, "replay", "ready", data=data, ready_at_s=time.monotonic())
        self._ask(opened)

    def drop(self, incident_id: str, name: str, *, back: bool = False, by: str = "") -> None:
        """Decide without a view, or with it again; `by` as in `open_clips`.

        Raises:
            DeskError: Unknown incident or view, or the last one.
        """
        opened = self._opened(incident_id, "take back" if back else "drop", name, by)
        incident = opened.incident
        with self._mutex:
            view = incident.views.get(name)
            if view is None or not (view.data or view.state in ("waiting", "dropped")):
                raise DeskError(f"incident {incident_id} has no clip of a view {name!r}.")
            others = [v for v in incident.views.values() if v.state in ("ready", "used", "waiting") and v is not view]
            if not back and not others:
                raise DeskError(f"{name} is the last view; a decision needs one.")
            # Without a clip it is still being cut.
            here: ViewState = "ready" if view.data else "waiting"
            view.state, view.reason = (here, "") if back else ("dropped", "by the operator")
            view.ready_at_s = time.monotonic()
        self._ask(opened, forced=True)

    def shift(self, incident_id: str, frames: int, *, by: str = "") -> None:
        """Move the contact by frames at 25 fps, cut the cameras anew and ask in a new session; `by` as in `open_clips`.

        Raises:
            DeskError: Unknown incident, or no camera still has it in its buffer.
        """
        with self._mutex:
            moved_s = self.find(incident_id).contact_s + frames / TIMELINE_FPS
            if not any(self._holds(camera, moved_s) for camera in self._cameras.values()):
                raise DeskError("no camera's buffer holds this contact any more; it cannot be moved.")
            opened = self._opened(incident_id, "shift", f"{frames:+d} frames", by)
            opened.incident.shift_frames += frames
            opened.incident.contact_s = moved_s
            self._cut_all(opened)

    def _holds(self, camera: Camera, contact_s: float) -> bool:
        """Whether a camera's buffer reaches from before a contact up to it, or will in the time that it is waited for.

        An empty buffer's latest instant is minus infinity.
        """
        latest_s = camera.now_s()
        oldest_s = latest_s - camera.health().buffer_s
        return oldest_s <= contact_s - BEFORE_S and contact_s <= latest_s + self._settings.wait_s

    def ask_again(self, incident_id: str, *, by: str = "") -> None:
        """Ask about all views once more, in a new session; `by` as in `open_clips`.

        Raises:
            DeskError: Unknown incident.
        """
        opened = self._opened(incident_id, "ask again", "", by)
        self._ask(opened, forced=True, anew=True)

    def incidents(self) -> list[dict[str, Any]]:
        """Return all incidents for the page, oldest first."""
        with self._mutex:
            return [incident.to_json() for incident in self._incidents.values()]

    def find(self, incident_id: str) -> Incident:
        """Return an incident.

        Raises:
            DeskError: There is none of that name.
        """
        with self._mutex:
            if incident_id not in self._incidents:
                raise DeskError(f"there is no incident {incident_id!r}.")
            return self._incidents[incident_id]

    def complete(self, incident_id: str) -> Incident:
        """Return a copy of an incident with all clips that are still kept.

        Raises:
            DeskError: There is none of that name.
        """
        incident = self.find(incident_id)
        views = {
            name: view if view.data or not view.sha256 else replace(view, data=self._recorder.clip(view.sha256) or b"")
            for name, view in incident.views.items()
        }
        return replace(incident, views=views)

    def clips_in_use(self) -> set[str]:
        """Return the hashes of clips that can still be asked about."""
        with self._mutex:
            return {v.sha256 for o in self._open.values() for v in o.incident.views.values() if v.sha256}

    def close(self) -> None:
        """Stop asking; what is running ends with its answer."""
        self._stopped.set()
        for pool in (self._cuts, self._asks):
            pool.shutdown(wait=True, cancel_futures=True)

    def _pressed_twice(self, contact_s: float, trigger: Trigger) -> Incident | None:
        latest = next(reversed(self._incidents.values()), None)
        if latest is None or latest.trigger != trigger or latest.restored or trigger not in ("operator", "http"):
            return None
        opened = self._open.get(latest.id)
        if opened is None:  # Its clips were let go: it is long ago.
            return None
        age_s = time.monotonic() - opened.started_s
        same = age_s < DOUBLE_PRESS_S and abs(latest.contact_s - contact_s) < DOUBLE_PRESS_S
        return latest if same else None

    def _remember(self, incident: Incident) -> Opened:
        opened = Opened(incident, ServerSession(self._client))
        self._incidents[incident.id] = incident
        self._open[incident.id] = opened
        while len(self._incidents) > _KEPT:
            oldest = next(iter(self._incidents))
            del self._incidents[oldest]
            self._open.pop(oldest, None)
        for old in list(self._open.values())[:-_IN_MEMORY]:
            self._release(old)
        return opened

    def _release(self, opened: Opened) -> None:
        """Forget the clips of an incident that are on disk; whoever wants to ask again loads them."""
        incident = opened.incident
        if opened.is_asked or opened.is_wanted or incident.of_state("waiting") or incident.of_state("ready"):
            return
        if all(view.kept or not view.data for view in incident.views.values()):
            for view in incident.views.values():
                view.data = b""
            del self._open[incident.id]

    def _opened(self, incident_id: str, action: str, detail: str, by: str) -> Opened:
        incident = self.find(incident_id)
        with self._mutex:
            if incident_id not in self._open:
                self._reopen(incident)
            opened = self._open[incident_id]
            opened.started_s = time.monotonic()
            who = by or self._settings.operator
            incident.actions.append({"at_s": time.time(), "action": action, "detail": detail, "by": who})
        self._judge.tell(incident)
        return opened

    def _reopen(self, incident: Incident) -> None:
        """Load the clips of an incident that was read from the log.

        Raises:
            DeskError: None is left.
        """
        for view in incident.views.values():
            if not view.sha256:
                continue
            view.data = self._recorder.clip(view.sha256) or b""
            if not view.data:
                view.state, view.reason = "masked", "its clip is no longer kept"
        if not any(view.data for view in incident.views.values()):
            raise DeskError(f"the clips of incident {incident.id} are no longer kept.")
        self._open[incident.id] = Opened(incident, ServerSession(self._client))

    def _cut_all(self, opened: Opened) -> None:
        with self._mutex:
            opened.cut_round += 1
            opened.is_anew = True
            contact_s, views = opened.incident.contact_s, opened.incident.views
            names = [v.name for v in views.values() if v.source == "camera" and v.name in self._cameras]
            # New ones: nothing may bring back a clip around another contact.
            views.update({name: View(name, "camera") for name in names})
            for name in names:
                self._submit(self._cuts, self._cut, opened, name, opened.cut_round, contact_s)

    def _cut(self, opened: Opened, name: str, cut_round: int, contact_s: float) -> None:
        view = self._view_of(name, contact_s)
        with self._mutex:
            if cut_round != opened.cut_round:
                return
            before, opened.incident.views[name] = opened.incident.views[name], view
            if before.state == "dropped" and view.state == "ready":
                view.state, view.reason = before.state, before.reason
            nothing = not any(v.state in ("waiting", "ready", "used") for v in opened.incident.views.values())
        if view.state == "ready":
            self._ask(opened)
            return
        if view.state == "dropped":
            self._judge.tell(opened.incident)
            return
        log.warning("incident %s: camera %s is masked: %s", opened.incident.id, name, view.reason)
        if nothing:
            self._judge.fail(opened.incident, "no camera has a picture of it")
        self._judge.tell(opened.incident)

    def _view_of(self, name: str, contact_s: float) -> View:
        """Return a camera's view, masked if that goes wrong in a way that nobody thought of."""
        try:
            return cut_view(self._cameras[name], contact_s, self._settings)
        except Exception as error:
            log.exception("a bug while cutting camera %s", name)
            self._board.notice(f"bug-{name}", "error", f"a fault of the console in cutting {name}; its log has it.")
            return View(name, "camera", "masked", f"a fault of the console: {error!r}", ready_at_s=time.monotonic())

    def _ask(self, opened: Opened, *, forced: bool = False, anew: bool = False) -> None:
        with self._mutex:
            opened.is_wanted |= forced
            opened.is_anew |= anew
        self._submit(self._asks, self._judge.ask, opened)

    def _submit(self, pool: ThreadPoolExecutor, work: Callable[..., None], *arguments: Any) -> None:
        def run() -> None:
            try:
                work(*arguments)
            except Exception:
                log.exception("a bug while working on an incident")
                self._board.notice("bug", "error", "a fault of the console itself; its log has it. The rest goes on.")

        if not self._stopped.is_set():
            pool.submit(run)


def _new_id(now_s: float) -> str:
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime(now_s)) + uuid.uuid4().hex[:6]
