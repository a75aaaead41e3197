"""What accompanies a request besides its tensors: who asks, how urgent it is, until when, how long each stage took."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from mvfoul.errors import DeadlineError

STAGES: Final = ("decode", "queue", "encode", "head", "total")
"""decode: all clips, waiting for a decoder included. queue: waiting for the graphs (in front of Triton there is
none: waiting for its batcher is a part of encode). total: from admission to answer."""

LIVE: Final = 1
BULK: Final = 2
PRIORITIES: Final = (LIVE, BULK)
"""As in the model repository: a request of a lower number overtakes those of a higher one that have not begun."""


class Trace(Protocol):
    """The span of one request, where tracing is on."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Make a span of what happens within."""

    def past_stage(self, name: str, seconds: float) -> None:
        """Make a span of what ends now and took so long."""

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Return what makes the spans of another server children of the stage in progress."""

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Note facts of the answer."""

    def failed(self, reason: str) -> None:
        """Note that there is no answer."""


class Tracing(Protocol):
    """Makes traces; `serving.tracing` has the one implementation, so that nobody else imports its libraries."""

    def request(self, protocol: str, headers: Iterable[tuple[str, str | bytes]]) -> AbstractContextManager[Trace]:
        """Make the span of a request, in the client's trace where the headers name one."""

    def close(self) -> None:
        """Send what is left."""


@dataclass(frozen=True)
class Transport:
    """What only the protocol knows of a request."""

    client: str = ""
    """Who asks, as far as it is proven: sessions of one client are not those of another."""
    max_in_flight: int = 0
    """Requests that this client may have in flight; 0: as many as all together."""
    deadline: float | None = None
    """`time.monotonic()` at which the client stops waiting."""
    version: str = ""
    """The artifact's version that must answer; empty leaves it to the server."""
    request_id: str = ""
    """As the client chose it, or made."""
    trace: Trace | None = None


TRANSPORT: ContextVar[Transport] = ContextVar("transport", default=Transport())  # noqa: B039  # frozen
"""Set by the server of a protocol before it hands a request to KServe, which has no argument for it."""


@dataclass
class Call:
    """One request on its way through the server."""

    request_id: str = ""
    client: str = ""
    max_in_flight: int = 0
    """Of this client; 0: as many as all together."""
    priority: int = LIVE
    deadline: float | None = None
    version: str = ""
    """Non-empty: this version of the artifact must answer."""
    action_id: str = ""
    """Non-empty: the request belongs to a session."""
    drop_views: tuple[int, ...] = ()
    """Views of the session to forget first, by their number in it."""
    trace: Trace | None = None
    started: float = field(default_factory=time.perf_counter)
    stages_s: dict[str, float] = field(default_factory=dict)

    def remaining_s(self) -> float | None:
        """Return the seconds left until the deadline; None where there is none.

        Raises:
            DeadlineError: It has passed.
        """
        if self.deadline is None:
            return None
        if (left := self.deadline - time.monotonic()) <= 0:
            raise DeadlineError("the request's deadline passed before its answer; allow more time or send fewer views.")
        return left

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of `STAGES`; a stage that ends with an error is not noted."""
        start = time.perf_counter()
        with self.trace.stage(name) if self.trace else nullcontext():
            yield
        self.stages_s[name] = time.perf_counter() - start

    def waited(self, name: str, since: float) -> None:
        """Note a stage that began at `since` (`time.perf_counter()`) and ends now."""
        self.stages_s[name] = time.perf_counter() - since
        if self.trace:
            self.trace.past_stage(name, self.stages_s[name])

    def finish(self) -> None:
        """Note the total."""
        self.stages_s["total"] = time.perf_counter() - self.started
