"""The parameters of a request, checked: who waits how long, how urgent it is, which session it belongs to."""

from __future__ import annotations

import reprlib
import time
from collections.abc import Mapping
from typing import Any, Final

from mvfoul.errors import RequestError
from serving.call import BULK, LIVE, PRIORITIES, Call, Transport

ACTION_ID: Final = "action_id"
DROP_VIEWS: Final = "drop_views"
PRIORITY: Final = "priority"
TIMEOUT: Final = "timeout"

REQUEST_PARAMETERS: Final = (ACTION_ID, DROP_VIEWS, PRIORITY, TIMEOUT)
_MAX_ACTION_ID_CHARS: Final = 128
_MAX_TIMEOUT_US: Final = 24 * 3600 * 1_000_000


def read_call(request_id: str, parameters: Mapping[str, Any], transport: Transport) -> Call:
    """Return the call that a request makes.

    Args:
        request_id: As the client or the server chose it.
        parameters: Of the request itself, by name; those that are not `REQUEST_PARAMETERS` are not looked at.
        transport: What its protocol knows.

    Raises:
        RequestError: A parameter has a value that makes no sense.
    """
    action_id = _action_id(parameters.get(ACTION_ID, ""))
    drop_views = _drop_views(parameters.get(DROP_VIEWS, ""))
    if drop_views and not action_id:
        raise RequestError(f"{DROP_VIEWS} is given without {ACTION_ID}; it names views of a session.")
    return Call(
        request_id=request_id,
        client=transport.client,
        max_in_flight=transport.max_in_flight,
        priority=_priority(parameters.get(PRIORITY, LIVE)),
        deadline=_deadline(parameters.get(TIMEOUT, 0), transport.deadline),
        version=transport.version,
        trace=transport.trace,
        action_id=action_id,
        drop_views=drop_views,
    )


def _action_id(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_ACTION_ID_CHARS or not value.isprintable():
        raise RequestError(
            f"{ACTION_ID} is {reprlib.repr(value)}; use a text of 1 to {_MAX_ACTION_ID_CHARS} printable characters."
        )
    return value


def _drop_views(value: Any) -> tuple[int, ...]:
    if not isinstance(value, str):
        raise RequestError(f'{DROP_VIEWS} is {reprlib.repr(value)}; use a text of view numbers, such as "0,2".')
    numbers = [number.strip() for number in value.split(",")] if value.strip() else []
    if any(not (number.isascii() and number.isdigit() and len(number) <= 3) for number in numbers):
        raise RequestError(f'{DROP_VIEWS} is {reprlib.repr(value)}; use numbers of views, such as "0,2".')
    return tuple(sorted({int(number) for number in numbers}))


def _priority(value: Any) -> int:
    if isinstance(value, bool) or value not in PRIORITIES:
        raise RequestError(f"{PRIORITY} is {reprlib.repr(value)}; use {LIVE} (live) or {BULK} (bulk).")
    return int(value)


def _deadline(timeout_us: Any, deadline: float | None) -> float | None:
    """Return the earlier of the protocol's deadline and the request's own; 0 is none."""
    if isinstance(timeout_us, bool) or not isinstance(timeout_us, int) or not 0 <= timeout_us <= _MAX_TIMEOUT_US:
        raise RequestError(
            f"{TIMEOUT} is {reprlib.repr(timeout_us)}; use microseconds, a whole number from 1 to {_MAX_TIMEOUT_US}."
        )
    own = time.monotonic() + timeout_us / 1e6 if timeout_us else None
    return min((moment for moment in (own, deadline) if moment is not None), default=None)
