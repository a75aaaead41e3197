"""From views that are ready to a decision on disk and on the page, refined as more become ready.

The server may be away, overloaded, or refuse a view: it is asked again, or asked without that view. A decision is shown
only after its line is in the audit log; where that fails (a full disk), it is shown as not recorded.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from mvfoul.errors import OverloadedError, RequestError, ServiceError, UnavailableError, UnknownModelError
from serving.client import Decision
from serving.live.audit import AuditError
from serving.live.board import Board
from serving.live.incident import Incident, Ruling, View, audit_data
from serving.live.metrics import LiveMetrics
from serving.live.recorder import Recorder
from serving.live.session import ServerSession

RETRY_S: Final = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0)
"""Pauses between questions while the server is away; then the operator has to ask again."""

log = logging.getLogger("mvfoul.live")


class Opened:
    """An incident that is worked on."""

    def __init__(self, incident: Incident, session: ServerSession) -> None:
        self.incident = incident
        self.session = session
        self.is_asked = False
        """Whether a thread asks about it. There is one at most; it takes along what becomes ready meanwhile."""
        self.is_wanted = False
        """Ask once more, even if no view is new."""
        self.is_anew = False
        """The next question is in a new session. Only who asks touches the session."""
        self.started_s = time.monotonic()
        """When the trigger or the operator's latest action came."""
        self.cut_round = 0
        """Counts how often the cameras were cut: a cut of an earlier round, and an answer on one, is thrown away."""


class Judge:
    """Asks the server about incidents. Usable from several threads."""

    def __init__(
        self,
        recorder: Recorder,
        board: Board,
        metrics: LiveMetrics,
        mutex: threading.RLock,
        stopped: threading.Event,
    ) -> None:
        """`mutex` guards every incident; `stopped` ends the waiting for a server."""
        self._recorder, self._board, self._metrics = recorder, board, metrics
        self._mutex, self._stopped = mutex, stopped

    def ask(self, opened: Opened) -> None:
        """Ask until no view is ready and nothing is wanted; if another thread asks, leave it to that one."""
        with self._mutex:
            if opened.is_asked:
                return
            opened.is_asked = True
        try:
            while self._goes_on(opened):
                if not self._ask_patiently(opened) and self._gives_up(opened):
                    return
        except BaseException:
            with self._mutex:
                opened.is_asked = False
            raise

    def _goes_on(self, opened: Opened) -> bool:
        """Whether there is something to ask. If not, the next view finds nobody asking: both under one lock."""
        with self._mutex:
            opened.is_asked = not self._stopped.is_set() and (
                opened.is_wanted or bool(opened.incident.of_state("ready"))
            )
            return opened.is_asked

    def _gives_up(self, opened: Opened) -> bool:
        """Leave the views that got no answer, unless the operator asked again meanwhile."""
        with self._mutex:
            opened.is_asked = opened.is_wanted and not self._stopped.is_set()
            return not opened.is_asked

    def _ask_patiently(self, opened: Opened) -> bool:
        """Ask once, again while the server is away; return whether it answered."""
        for pause_s in (*RETRY_S, None):
            try:
                self._ask_once(opened)
            except (UnavailableError, OverloadedError) as error:
                self._board.notice("server", "error", str(error))
                self._wait_for_server(opened, str(error), pause_s)
                if pause_s is None or self._stopped.wait(pause_s):
                    break
            except ServiceError as error:
                self.fail(opened.incident, str(error))
                break
            else:
                return True
        return False

    def _ask_once(self, opened: Opened) -> None:
        incident = opened.incident
        with self._mutex:
            opened.is_wanted = False
            if opened.is_anew:
                opened.session.forget()
                opened.is_anew = False
            cut_round = opened.cut_round
            _mask_copies(incident)
            asked = [v for v in incident.views.values() if v.state in ("ready", "used")]
            if not asked and incident.of_state("waiting"):
                return  # The contact was moved meanwhile; the new cuts ask for themselves.
            incident.state = "asking"
        if not asked:
            self.fail(incident, "no view is left to decide on")
            return
        self.tell(incident)
        try:
            decision, order = opened.session.ask({view.name: view.data for view in asked})
        except UnknownModelError:
            raise
        except RequestError as error:
            self._refuse(opened, cut_round, asked, error)
            return
        self._board.clear("server")
        by_name = {view.name: view for view in asked}
        self._rule(opened, cut_round, decision, [by_name[name] for name in order])

    def _refuse(self, opened: Opened, cut_round: int, asked: Sequence[View], error: RequestError) -> None:
        """Mask the view that the server refuses, so that the others can be decided on."""
        incident = opened.incident
        named = {int(number) for number in re.findall(r"CLIPS\[(\d+)\]", str(error))}
        fresh = [view for view in asked if view.state == "ready"] or list(asked)
        guilty = [view for i, view in enumerate(asked) if i in named] or fresh[-1:]
        with self._mutex:
            if opened.cut_round != cut_round:
                return
            for view in guilty:
                view.state, view.reason = "refused", str(error)
            for view in asked:
                if view not in guilty:
                    view.state = "ready"
        log.warning("incident %s: the server refuses %s: %s", incident.id, [v.name for v in guilty], error)
        if len(guilty) == len(asked):
            self.fail(incident, str(error))

    def _rule(self, opened: Opened, cut_round: int, decision: Decision, used: Sequence[View]) -> None:
        incident, answered_s = opened.incident, time.monotonic()
        slowest = max((v for v in used if v.state == "ready"), key=lambda v: v.ready_at_s, default=used[0])
        with self._mutex:
            if opened.cut_round != cut_round:
                return  # The contact was moved meanwhile; the new cuts ask for themselves.
            for view in used:
                view.state = "used" if view.state == "ready" else view.state
        kept = self._recorder.keep_clips(used)
        stages = {"wait": slowest.wait_s, "cut": slowest.cut_s}
        stages["request"] = max(0.0, answered_s - max(slowest.ready_at_s, opened.started_s))
        ruling = _ruling(incident, decision, used, stages)
        with self._mutex:
            if opened.cut_round != cut_round:
                return
            # Now, so that the line has the contact that was decided on, even if it is moved while the disk is slow.
            data = audit_data(incident, ruling, used)
        line = self._record(data)
        now_s = time.monotonic()
        stages = {**stages, "audit": now_s - answered_s, "total": now_s - opened.started_s}
        with self._mutex:
            incident.rulings.append(replace(ruling, line=line, stages_s=stages))
            # Not before: who sees "decided" must find this ruling.
            if opened.cut_round == cut_round:
                incident.state, incident.message = "decided", ""
        self._count(incident, decision, stages)
        if kept:
            self._board.clear("disk")
        self.tell(incident)

    def _record(self, data: Mapping[str, Any]) -> int:
        try:
            line = self._recorder.record(data)
        except AuditError as error:
            self._metrics.audit_failures.inc()
            self._board.notice(
                "audit", "error", f"decisions are NOT recorded: {error} Free the disk; the rest goes on."
            )
            return 0
        self._board.clear("audit")
        return line

    def _count(self, incident: Incident, decision: Decision, stages: Mapping[str, float]) -> None:
        abstains = decision.action.abstain or decision.offence_severity.abstain
        self._metrics.decisions.labels(incident.trigger, "abstained" if abstains else "decided").inc()
        for stage, seconds in stages.items():
            self._metrics.stage_s.labels(stage).observe(seconds)

    def _wait_for_server(self, opened: Opened, reason: str, pause_s: float | None) -> None:
        if pause_s is None:
            self.fail(opened.incident, f"{reason} Ask again when it is back.")
            return
        with self._mutex:
            opened.incident.message = f"{reason} Asking again."
        self.tell(opened.incident)

    def fail(self, incident: Incident, reason: str) -> None:
        """Say why there is no decision."""
        with self._mutex:
            incident.state, incident.message = "failed", reason
        log.error("incident %s: no decision: %s", incident.id, reason)
        self._metrics.decisions.labels(incident.trigger, "failed").inc()
        self.tell(incident)

    def tell(self, incident: Incident) -> None:
        """Show an incident as it is now."""
        # Inside, so that pages are told in the order in which it changed.
        with self._mutex:
            self._board.publish("incident", incident.to_json())


def _ruling(incident: Incident, decision: Decision, used: Sequence[View], stages: Mapping[str, float]) -> Ruling:
    return Ruling(
        revision=len(incident.rulings) + 1,
        at_s=time.time(),
        views=tuple(view.name for view in used),
        document=decision.document,
        probabilities={str(head): values for head, values in decision.probabilities.items()},
        stages_s=stages,
    )


def _mask_copies(incident: Incident) -> None:
    """Leave out a clip that is there twice: a session knows views by content, and a copy must not count double."""
    seen: dict[bytes, str] = {}
    for view in incident.views.values():
        if view.state not in ("ready", "used"):
            continue
        if view.data in seen:
            view.state, view.reason = "refused", f"the same clip as {seen[view.data]}"
        seen.setdefault(view.data, view.name)
