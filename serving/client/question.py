"""One question to a server, without sending it: its request, its answer, and what follows from an error.

Both clients send it, each in its way, so that nothing of this is written twice.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from mvfoul.artifact import ACTION_PROBABILITIES, OFFENCE_SEVERITY_PROBABILITIES, VIEWS
from mvfoul.errors import (
    DeadlineError,
    OverloadedError,
    RequestError,
    RequestTooLargeError,
    ServiceError,
    UnauthenticatedError,
    UnavailableError,
    UnknownModelError,
)
from mvfoul.labels import Head
from serving.call import BULK, LIVE
from serving.client.connection import Connection, check_timeout
from serving.client.decision import Decision, read_decision
from serving.parameters import ACTION_ID, DROP_VIEWS

Priority = Literal["live", "bulk"]
"""A live request overtakes bulk ones that have not begun."""

_PRIORITIES: Final[Mapping[str, int]] = {"live": LIVE, "bulk": BULK}
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0
_MOST_DOUBLINGS: Final = 5
"""The longest pause is reached. Beyond a thousand of them a float overflows, and bulk asks that often."""

_ERRORS: Final[Mapping[str, type[ServiceError]]] = {
    "StatusCode.INVALID_ARGUMENT": RequestError,
    "StatusCode.NOT_FOUND": UnknownModelError,
    "StatusCode.RESOURCE_EXHAUSTED": OverloadedError,
    "StatusCode.UNAVAILABLE": UnavailableError,
    "StatusCode.DEADLINE_EXCEEDED": DeadlineError,
    "StatusCode.UNAUTHENTICATED": UnauthenticatedError,
    # We never cancel, so the server did: it stopped while the request was on its way.
    "StatusCode.CANCELLED": UnavailableError,
}


_TOO_LARGE: Final = ("larger than max", " bytes or more; ")
"""How the gRPC library and our server say that a request is too large. The status is that of an overload, and the
difference matters: no repetition cures it."""


class Question:
    """One request, however often it is sent.

    A session recognises a view that it has by its content, so adding views twice is adding them once. `drop_views` are
    numbers, though: after an answer that was lost on its way, the same numbers are other views.
    """

    def __init__(
        self,
        connection: Connection,
        inputs: Sequence[bytes] | NDArray[np.uint8],
        *,
        request_id: str,
        parameters: Mapping[str, str],
        priority: Priority,
        timeout_s: float | None,
    ) -> None:
        if priority not in _PRIORITIES:
            raise RequestError(f"priority is {priority!r}; use {' or '.join(_PRIORITIES)}.")
        if timeout_s is not None:
            check_timeout(timeout_s)
        self._connection = connection
        self._inputs = _as_array(inputs)
        # Made here, so that an error can name it and the server's log can be searched for it.
        self.request_id = request_id or uuid.uuid4().hex
        self._parameters = parameters
        self._priority = _PRIORITIES[priority]
        self._timeout_s = connection.timeout_s if timeout_s is None else timeout_s
        self._start = time.perf_counter()
        self._repetitions = 0

    def arguments(self, triton: Any) -> dict[str, Any]:
        """Return the arguments of `infer`.

        Args:
            triton: The module `tritonclient.grpc`.

        Raises:
            DeadlineError: No time is left.
        """
        left_s = self._left_s()
        if left_s <= 0:
            raise self._too_late()
        datatype, name = ("UINT8", VIEWS) if self._inputs.dtype == np.uint8 else ("BYTES", "CLIPS")
        tensor = triton.InferInput(name, list(self._inputs.shape), datatype)
        tensor.set_data_from_numpy(self._inputs)
        return {
            "model_name": self._connection.model_name,
            "model_version": self._connection.version,
            "inputs": [tensor],
            "request_id": self.request_id,
            "priority": self._priority,
            # Both, because a proxy on the way may drop the protocol's own deadline.
            "client_timeout": left_s,
            "timeout": max(1, round(left_s * 1e6)),
            "parameters": dict(self._parameters),
            "headers": self._connection.headers,
        }

    def decision(self, result: Any) -> Decision:
        """Return what the result of `infer` says."""
        client_ms = (time.perf_counter() - self._start) * 1000
        probabilities: dict[Head, tuple[float, ...]] = {
            "action": tuple(result.as_numpy(ACTION_PROBABILITIES).tolist()),
            "offence_severity": tuple(result.as_numpy(OFFENCE_SEVERITY_PROBABILITIES).tolist()),
        }
        return read_decision(json.loads(result.as_numpy("DECISION")[0]), probabilities, client_ms=client_ms)

    def pause_after(self, status: str | None, message: str) -> float:
        """Return how many seconds to wait until the request is sent again.

        Args:
            status: Of the failed call, as `tritonclient` writes it.
            message: The server's, or the library's.

        Raises:
            ServiceError: It is not sent again; the class says why.
        """
        failure = self._failure(status, message)
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._repetitions, _MOST_DOUBLINGS))
        if not self._may_repeat(failure) or self._repetitions >= self._connection.retries or self._left_s() <= pause_s:
            raise failure
        self._repetitions += 1
        return pause_s * random.uniform(0.5, 1.0)  # noqa: S311  # so that not all come back at once

    def _may_repeat(self, failure: ServiceError) -> bool:
        """Return whether a repetition can help and does no harm."""
        if DROP_VIEWS in self._parameters:
            # Nothing of a request that was refused for want of room was done. One that met a server which stopped, or a
            # connection which broke, may have been: only its answer is missing.
            return isinstance(failure, OverloadedError)
        return isinstance(failure, OverloadedError | UnavailableError) and not isinstance(failure, DeadlineError)

    def _left_s(self) -> float:
        return self._timeout_s - (time.perf_counter() - self._start)

    def _failure(self, status: str | None, message: str) -> ServiceError:
        if str(status) == "StatusCode.DEADLINE_EXCEEDED":
            return self._too_late()
        return failure_of(self._connection, status, f"{message.rstrip('.')} (request {self.request_id})")

    def _too_late(self) -> DeadlineError:
        return DeadlineError(
            f"{self._connection.target} did not answer within {self._timeout_s:g} s (request {self.request_id}); "
            "raise the timeout or try later."
        )


def failure_of(connection: Connection, status: str | None, message: str) -> ServiceError:
    """Return the error that a failed call is.

    Args:
        connection: To the server that was asked.
        status: As `tritonclient` writes it.
        message: The server's, or the library's.
    """
    kind = _ERRORS.get(str(status), ServiceError)
    target = connection.target
    if kind is OverloadedError and any(phrase in message for phrase in _TOO_LARGE):
        cure = "Send smaller clips, or start the server with a larger --max-request-bytes."
        return RequestTooLargeError(f"{target} refused the request: {message.rstrip('.')}. {cure}")
    if kind is DeadlineError:
        return DeadlineError(f"{target} did not answer within {connection.timeout_s:g} s; raise the timeout.")
    if kind is UnavailableError:
        return kind(
            f"{target} is not available ({message.rstrip('.')}). Is the server running, is this its gRPC port, and do "
            "both sides use TLS or neither?"
        )
    return kind(f"{target} refused the request: {message}")


def session_parameters(action_id: str, drop_views: Sequence[int]) -> dict[str, str]:
    """Return the parameters that name a session and the views that leave it."""
    parameters = {ACTION_ID: action_id, DROP_VIEWS: ",".join(map(str, drop_views))}
    return {name: value for name, value in parameters.items() if value}


def _as_array(inputs: Sequence[bytes] | NDArray[np.uint8]) -> NDArray[Any]:
    """Return views as they are, `[V, 3, T, H, W]`, and clips as an array of objects, `[V]`."""
    if not isinstance(inputs, np.ndarray):
        # The last element keeps NumPy from looking into the others.
        return np.array([*inputs, None], dtype=np.object_)[:-1]
    if inputs.dtype != np.uint8:
        raise RequestError(f"views have dtype {inputs.dtype}; send uint8, as mvfoul.video.decode_clip gives them.")
    return inputs
