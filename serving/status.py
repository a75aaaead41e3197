"""One table: which error becomes which gRPC status, HTTP status and metric label."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from mvfoul.errors import (
    ClientGoneError,
    DeadlineError,
    InvalidClipError,
    OverloadedError,
    RequestError,
    RequestTooLargeError,
    UnauthenticatedError,
    UnavailableError,
    UnknownModelError,
)


@dataclass(frozen=True)
class Status:
    """How an error looks from outside."""

    reason: str
    """The label `reason` of `mvfoul_errors_total`."""
    grpc: str
    """Name of a `grpc.StatusCode`."""
    http: int


INTERNAL: Final = Status("internal", "INTERNAL", 500)

# The first class that fits wins: subclasses stand before their bases.
_STATUSES: Final[tuple[tuple[type[BaseException], Status], ...]] = (
    (InvalidClipError, Status("invalid_clip", "INVALID_ARGUMENT", 400)),
    (UnknownModelError, Status("unknown_model", "NOT_FOUND", 404)),
    (RequestTooLargeError, Status("too_large", "RESOURCE_EXHAUSTED", 413)),
    (RequestError, Status("invalid_request", "INVALID_ARGUMENT", 400)),
    (UnauthenticatedError, Status("unauthenticated", "UNAUTHENTICATED", 401)),
    (OverloadedError, Status("overloaded", "RESOURCE_EXHAUSTED", 429)),
    (DeadlineError, Status("deadline", "DEADLINE_EXCEEDED", 504)),
    (UnavailableError, Status("unavailable", "UNAVAILABLE", 503)),
    (ClientGoneError, Status("cancelled", "CANCELLED", 499)),
    (asyncio.CancelledError, Status("cancelled", "CANCELLED", 499)),
)

REASONS: Final = tuple(dict.fromkeys((*(status.reason for _, status in _STATUSES), INTERNAL.reason)))


_MAX_CHARS: Final = 1000
"""Of a message: it may quote the request, and gRPC's clients take a few kilobytes of it."""


def message_of(error: BaseException) -> str:
    """Return what a client is told, of bounded length."""
    message = str(error)
    return message if len(message) <= _MAX_CHARS else f"{message[:_MAX_CHARS]} (and so on)"


def status_of(error: BaseException) -> Status:
    """Return how `error` looks from outside; `INTERNAL` for bugs."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), INTERNAL)
