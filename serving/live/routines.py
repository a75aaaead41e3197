"""What a console does by itself, a thread each: look after cameras, follow timecodes, watch continuously, tidy up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from mvfoul.artifact import without_nan
from mvfoul.errors import MVFoulError
from mvfoul.labels import OFFENCE_SEVERITIES
from serving.client import FoulClient
from serving.live.audit import AuditError
from serving.live.board import Board
from serving.live.camera import Camera
from serving.live.clock import now_s
from serving.live.clock_watch import ClockWatch
from serving.live.config import LiveConfig
from serving.live.continuous import CandidateFilter
from serving.live.desk import Desk
from serving.live.recorder import Recorder
from serving.live.timecodes import Timecode

TIDY_S: Final = 300.0
LOOK_S: Final = 1.0
JUMP_SHOWN_S: Final = 120.0
"""A jump is over when it is told; the log and the metrics keep it."""
_NO_OFFENCE: Final = OFFENCE_SEVERITIES.index("No offence")

log = logging.getLogger("mvfoul.live")


class Routines:
    """The threads of one console."""

    def __init__(
        self,
        config: LiveConfig,
        cameras: Sequence[Camera],
        desk: Desk,
        board: Board,
        recorder: Recorder,
        client: FoulClient,
        contacts: Sequence[Timecode],
    ) -> None:
        self._clock_watch = ClockWatch()
        self._config, self._cameras, self._desk, self._board = config, cameras, desk, board
        self._recorder, self._client, self._contacts = recorder, client, contacts
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._jumps: dict[str, int] = {}
        """What was told of already, by camera."""
        self._filter = CandidateFilter(config.continuous)
        self.watching: dict[str, Any] = {"on": config.continuous.every_s > 0, "level": 0.0, "reason": ""}
        """State of the continuous mode for the page."""

    def start(self) -> None:
        """Start the threads that the flags ask for."""
        self._repeat("cameras", LOOK_S, self._look)
        self._repeat("tidy", TIDY_S, self._tidy)
        if self._contacts:
            self._start("timecodes", self._follow)
        if self._config.continuous.every_s and self._cameras:
            self._repeat("continuous", self._config.continuous.every_s, self._watch)

    def stop(self) -> None:
        """End the threads and wait for them."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def healths(self) -> list[dict[str, Any]]:
        """Return every camera's health for the page."""
        return [without_nan(asdict(camera.health())) for camera in self._cameras]

    def _start(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _repeat(self, name: str, every_s: float, work: Callable[[], None]) -> None:
        def loop() -> None:
            while True:
                start = time.monotonic()
                self._attempt(name, work)
                if self._stopped.wait(max(0.05, every_s - (time.monotonic() - start))):
                    return

        self._start(name, loop)

    def _attempt(self, name: str, work: Callable[[], object]) -> None:
        """Work; a fault that nobody thought of is told, and the routine goes on."""
        try:
            work()
        except Exception:
            log.exception("a bug in the routine %s", name)
            self._board.notice(f"bug-{name}", "error", f"a fault of the console in {name}; its log has it.")

    def _look(self) -> None:
        healths = self.healths()
        for health in healths:
            key = f"camera-{health['name']}"
            if health["state"] == "ok":
                self._board.clear(key)
            else:
                reason = f": {health['reason']}" if health["reason"] else ""
                self._board.notice(key, "warning", f"camera {health['name']} is {health['state']}{reason}")
            self._tell_of_jumps(health["name"], health["clock_jumps"])
        self._board.publish("cameras", healths)
        if jump := self._clock_watch.jump():
            self._board.notice("clock", "warning", jump, shown_s=JUMP_SHOWN_S)
        self._board.expire()

    def _tell_of_jumps(self, name: str, jumps: int) -> None:
        new, self._jumps[name] = jumps - self._jumps.get(name, 0), jumps
        if new > 0:
            self._board.notice(
                f"jump-{name}",
                "warning",
                f"camera {name}: its clock jumped, {jumps} times by now; the pictures are joined to those before. "
                "If it goes on, look at the camera's time server.",
                shown_s=JUMP_SHOWN_S,
            )

    def _tidy(self) -> None:
        config = self._config
        try:
            self._recorder.apply_retention(
                max_age_s=config.keep_days * 86_400,
                max_bytes=int(config.keep_gib * (1 << 30)),
                in_use=self._desk.clips_in_use(),
            )
        except (AuditError, OSError) as error:
            self._board.notice("tidy", "error", f"old clips are not removed: {error}")
        else:
            self._board.clear("tidy")

    def _follow(self) -> None:
        start_s = now_s()
        for timecode in sorted(self._contacts, key=lambda item: item.contact_s(start_s)):
            contact_s = timecode.contact_s(start_s)
            if self._stopped.wait(max(0.0, contact_s - now_s())):
                return
            self._attempt("timecodes", partial(self._trigger, contact_s, timecode.note))

    def _trigger(self, contact_s: float, note: str) -> None:
        self._desk.trigger(contact_s, "timecode", now_s=now_s(), note=note)

    def _watch(self) -> None:
        contact_s = now_s() - self._config.after_s - 0.4
        try:
            cut = self._cameras[0].cut(contact_s, after_s=self._config.after_s)
            # Without a session: it would take the place of an incident's.
            decision = self._client.classify([cut.data], priority="bulk")
        except MVFoulError as error:
            self._show_watching(str(error))
            return
        if self._filter.update(1 - decision.probabilities["offence_severity"][_NO_OFFENCE]):
            note = f"candidate: an offence with probability {self._filter.level:.2f} over the last answers"
            self._desk.trigger(contact_s, "continuous", now_s=now_s(), operator="continuous mode", note=note)
        self._show_watching("")

    def _show_watching(self, reason: str) -> None:
        self.watching = {"on": True, "level": self._filter.level, "inside": self._filter.is_inside, "reason": reason}
        self._board.publish("watching", self.watching)
