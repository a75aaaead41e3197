"""Sessions: the views of one action arrive one by one, and only new ones are encoded.

A session keeps the features of its views, some kilobytes, never their pixels. It belongs to one client and to one
generation; it expires, and there are only so many. Requests of one session are answered one after the other.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mvfoul.errors import OverloadedError, RequestError
from serving.call import Call
from serving.generation import Generation

EXPIRED, EVICTED = "expired", "evicted"
END_REASONS = (EXPIRED, EVICTED)


@dataclass(frozen=True, kw_only=True)
class SessionLimits:
    """How many sessions there are, and for how long."""

    max_sessions: int = 1024
    max_per_client: int = 64
    ttl_s: float = 120.0
    """From the last request."""


@dataclass(frozen=True)
class SeenView:
    """A view that was encoded before."""

    digest: bytes
    """SHA-256 of what was sent: the same clip sent again is the same view."""
    features: NDArray[np.float32]
    """`[D]`"""


@dataclass(eq=False)
class Session:
    """One action of one client."""

    key: tuple[str, str]
    generation: Generation
    expires: float
    """On the store's clock."""
    views: list[SeenView] = field(default_factory=list)
    requests: int = 0
    """Requests that wait for their answer; such a session does not end."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def kept(self, drop: Sequence[int]) -> list[SeenView]:
        """Return the views without those numbered in `drop`.

        Raises:
            RequestError: There is no view of such a number.
        """
        if unknown := [number for number in drop if not 0 <= number < len(self.views)]:
            raise RequestError(f"drop_views names {unknown}; the session has views 0 to {len(self.views) - 1}.")
        return [view for number, view in enumerate(self.views) if number not in drop]


@dataclass(frozen=True)
class SessionState:
    """What an answer says about its session."""

    action_id: str
    views: int
    expires_in_s: float


class SessionStore:
    """All sessions of a server. Used from the event loop only."""

    def __init__(self, limits: SessionLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.on_end: Callable[[str], None] = lambda _reason: None
        """Called with a reason of `END_REASONS`."""
        self._clock = clock
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()  # the next to expire first

    def __len__(self) -> int:
        self._expire()
        return len(self._sessions)

    def find(self, call: Call) -> Session | None:
        """Return the session that the call names, if it is there."""
        self._expire()
        return self._sessions.get((call.client, call.action_id))

    @contextmanager
    def opened(self, call: Call, generation: Generation) -> Iterator[Session]:
        """Yield the session that the call names; a new one belongs to `generation`. It keeps what it got in there.

        Raises:
            OverloadedError: There are too many sessions. Those of other clients are never evicted for it, nor those
                with a request in progress.
        """
        session = self.find(call)
        if session is None:
            self._make_room(call.client)
            session = Session((call.client, call.action_id), generation, self._clock() + self.limits.ttl_s)
            generation.hold()
            self._sessions[session.key] = session
        session.requests += 1
        try:
            yield session
        finally:
            session.requests -= 1
            self._touch(session)

    def close(self) -> None:
        """End all sessions."""
        for session in list(self._sessions.values()):
            self._end(session)

    def _make_room(self, client: str) -> None:
        own = [session for session in self._sessions.values() if session.key[0] == client]
        if len(own) >= self.limits.max_per_client:
            oldest = next((session for session in own if not session.requests), None)
            if oldest is None:
                raise OverloadedError(
                    f"this client has {len(own)} sessions with requests in progress, which is its limit. Wait for an "
                    "answer, or send all views of the action in one request without action_id."
                )
            self._end(oldest, EVICTED)
        elif len(self._sessions) >= self.limits.max_sessions:
            raise OverloadedError(
                f"{len(self._sessions)} sessions are open, which is this server's limit. Send all views of the action "
                "in one request without action_id, or again later."
            )

    def _touch(self, session: Session) -> None:
        """Start the session's time anew; one whose first request failed never was."""
        if self._sessions.get(session.key) is not session:
            return  # evicted meanwhile
        if not session.views and not session.requests:
            self._end(session)
            return
        session.expires = self._clock() + self.limits.ttl_s
        self._sessions.move_to_end(session.key)

    def _expire(self) -> None:
        now = self._clock()
        for session in list(self._sessions.values()):
            if session.expires > now:
                return
            # Somebody waits for its answer: it gets its time when that is given.
            if not session.requests:
                self._end(session, EXPIRED)

    def _end(self, session: Session, reason: str = "") -> None:
        del self._sessions[session.key]
        session.generation.release()
        if reason:
            self.on_end(reason)


def digest(data: bytes | NDArray[np.uint8]) -> bytes:
    """Return what tells one view from another: SHA-256 of the clip's bytes or of the view's pixels."""
    return hashlib.sha256(data if isinstance(data, bytes) else np.ascontiguousarray(data).data).digest()
