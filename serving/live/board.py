"""What the page shows, and who is told when it changes: snapshots of plain data to any number of subscribers.

A subscriber that does not read (a browser that went away without a word) loses its backlog, not the others theirs: it
gets one whole snapshot when it reads again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Level = Literal["info", "warning", "error"]

_BACKLOG: Final = 200
_NOTICES: Final = 50

log = logging.getLogger("mvfoul.live")


@dataclass(frozen=True)
class Event:
    """One change: `kind` names the part of the page."""

    kind: str
    data: Any


@dataclass
class Subscriber:
    """One page's backlog."""

    wake: Callable[[], None]
    """Called from any thread when there is something to read; returns at once, and calls nothing of the board."""
    events: list[Event] = field(default_factory=list)
    lost: bool = False
    """It was too slow: the next thing it reads is a snapshot."""


class Board:
    """Notices and subscribers. Usable from several threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._subscribers: list[Subscriber] = []
        self._notices: dict[str, dict[str, Any]] = {}
        self._ends_s: dict[str, float] = {}
        """Of notices about an event, not a state: `time.monotonic()` until when they are shown."""
        self.is_closed = False
        """The console stops: pages are no longer told anything."""

    def subscribe(self, wake: Callable[[], None]) -> Subscriber:
        """Add a page."""
        subscriber = Subscriber(wake)
        with self._mutex:
            self._subscribers.append(subscriber)
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Forget a page."""
        with self._mutex:
            self._subscribers.remove(subscriber)

    def take(self, subscriber: Subscriber) -> tuple[list[Event], bool]:
        """Return a page's backlog, and whether it lost some of it."""
        with self._mutex:
            events, lost = subscriber.events, subscriber.lost
            subscriber.events, subscriber.lost = [], False
        return events, lost

    def publish(self, kind: str, data: Any) -> None:
        """Tell every page; `data` must not be changed afterwards."""
        with self._mutex:
            self._tell(kind, data)

    def _tell(self, kind: str, data: Any) -> None:
        """Tell every page; the caller holds the lock, so that no page gets an older state after a newer one."""
        for subscriber in self._subscribers:
            if len(subscriber.events) >= _BACKLOG:
                subscriber.events, subscriber.lost = [], True
            subscriber.events.append(Event(kind, data))
            subscriber.wake()

    def close(self) -> None:
        """Let every page's stream of events end."""
        self.is_closed = True
        with self._mutex:
            subscribers = list(self._subscribers)
        for subscriber in subscribers:
            subscriber.wake()

    def notice(self, key: str, level: Level, text: str, *, shown_s: float | None = None) -> None:
        """Show and log a sentence; another one with the same key replaces it, the same one changes nothing.

        Args:
            key: What it is about.
            level: How bad it is.
            text: The sentence.
            shown_s: For something that happened, not a state that ends: `expire` takes it back after so many seconds.
        """
        with self._mutex:
            self._ends_s.pop(key, None)
            if shown_s is not None:
                self._ends_s[key] = time.monotonic() + shown_s
            if self._notices.get(key, {}).get("text") == text:
                return
            self._notices.pop(key, None)
            self._notices[key] = {"key": key, "level": level, "text": text, "at_s": time.time()}
            while len(self._notices) > _NOTICES:
                self._notices.pop(next(iter(self._notices)))
            self._tell("notices", self._shown())
        log.log({"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}[level], "%s", text)

    def clear(self, key: str) -> None:
        """Take a notice back: it is no longer true."""
        with self._mutex:
            self._ends_s.pop(key, None)
            if (gone := self._notices.pop(key, None)) is None:
                return
            self._tell("notices", self._shown())
        log.info("no longer: %s", gone["text"])

    def expire(self) -> None:
        """Take back the notices that were shown long enough; call it now and then."""
        now_s = time.monotonic()
        with self._mutex:
            over = [key for key, end_s in self._ends_s.items() if end_s <= now_s]
            for key in over:
                del self._ends_s[key]
                self._notices.pop(key, None)
            if over:
                self._tell("notices", self._shown())

    def notices(self) -> list[dict[str, Any]]:
        """Return all notices, oldest first."""
        with self._mutex:
            return self._shown()

    def _shown(self) -> list[dict[str, Any]]:
        return [dict(notice) for notice in self._notices.values()]
