"""Ask a server for a decision, from Python or from a shell.

    from serving.client import FoulClient

    with FoulClient("127.0.0.1:8081") as client:
        decision = client.classify([Path("clip_0.mp4").read_bytes(), Path("clip_1.mp4").read_bytes()])
        print(decision.action.label, decision.offence_severity.label)

    python -m serving.client clip_0.mp4 clip_1.mp4      (`serving.client_cli`)

Needs `tritonclient[grpc]` only. That library and `kserve` cannot be imported in one process (both register the same
protobuf messages), so nothing of the server is imported here.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mvfoul.artifact import ACTION_PROBABILITIES, OFFENCE_SEVERITY_PROBABILITIES, VIEWS
from mvfoul.errors import (
    OverloadedError,
    RequestError,
    RequestTooLargeError,
    ServiceError,
    UnavailableError,
    UnknownModelError,
)
from mvfoul.labels import Head
from mvfoul.prediction import Candidate

_ERRORS: Mapping[str, type[ServiceError]] = {
    "StatusCode.INVALID_ARGUMENT": RequestError,
    "StatusCode.NOT_FOUND": UnknownModelError,
    "StatusCode.RESOURCE_EXHAUSTED": OverloadedError,
    "StatusCode.UNAVAILABLE": UnavailableError,
    "StatusCode.DEADLINE_EXCEEDED": UnavailableError,
    # We never cancel, so the server did: it stopped while the request was on its way.
    "StatusCode.CANCELLED": UnavailableError,
}


@dataclass(frozen=True)
class HeadDecision:
    """The answer of one head."""

    label: str
    confidence: float
    abstain: bool
    """The confidence is below the server's threshold: show no decision."""
    top2: tuple[Candidate, Candidate]


@dataclass(frozen=True)
class Decision:
    """A server's answer on one action."""

    action: HeadDecision
    offence_severity: HeadDecision
    view_weights: tuple[float, ...]
    """One per view, in the order they were sent."""
    artifact: str
    """Version of the artifact that answered."""
    request_id: str
    server_ms: Mapping[str, float]
    """By stage: decode, queue, encode, head, total."""
    client_ms: float
    """From call to answer, as the client saw it."""
    document: Mapping[str, Any]
    """The `DECISION` object as the server sent it."""
    probabilities: Mapping[Head, tuple[float, ...]]
    """All of a head's, in the order of its vocabulary."""


class FoulClient:
    """A connection to one server; usable from several threads."""

    def __init__(self, target: str = "127.0.0.1:8081", *, model_name: str = "mvfoul", timeout_s: float = 30.0) -> None:
        """Prepare the connection to `target` ("host:port" of the server's gRPC); nothing is sent yet."""
        # Late, so that `--help` answers at once.
        import tritonclient.grpc as triton

        self._triton = triton
        self._client = triton.InferenceServerClient(target)
        self._target = target
        self._model_name = model_name
        self._timeout_s = timeout_s

    def classify(self, clips: Sequence[bytes], *, request_id: str = "") -> Decision:
        """Classify one action from its encoded clips, one per view.

        Raises:
            RequestError: The server refuses the clips or the model's name. Do not retry.
            OverloadedError: It has too many requests in flight. Retry with backoff.
            UnavailableError: It cannot be reached, or did not answer within `timeout_s`.
            ServiceError: Anything else.
        """
        return self._infer("CLIPS", "BYTES", np.array([*clips, None], dtype=np.object_)[:-1], request_id)

    def classify_views(self, views: NDArray[np.uint8], *, request_id: str = "") -> Decision:
        """Classify one action from decoded views `[V, 3, T, H, W]`; raises as `classify` does."""
        return self._infer(VIEWS, "UINT8", views, request_id)

    def view_shape(self) -> tuple[int, ...]:
        """Return `[3, T, H, W]` of one decoded view, as the server's metadata tells.

        Raises:
            ServiceError: As `classify`.
        """
        try:
            metadata = self._client.get_model_metadata(self._model_name, as_json=True, client_timeout=self._timeout_s)
        except self._triton.InferenceServerException as error:
            raise self._error(error.status(), error.message()) from error
        shape = next(tensor["shape"] for tensor in metadata["inputs"] if tensor["name"] == VIEWS)
        return tuple(int(size) for size in shape[1:])

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _infer(self, name: str, datatype: str, values: NDArray[Any], request_id: str) -> Decision:
        tensor = self._triton.InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values)
        start = time.perf_counter()
        try:
            result = self._client.infer(
                self._model_name, [tensor], request_id=request_id, client_timeout=self._timeout_s
            )
        except self._triton.InferenceServerException as error:
            raise self._error(error.status(), error.message()) from error
        client_ms = (time.perf_counter() - start) * 1000
        probabilities: dict[Head, tuple[float, ...]] = {
            "action": tuple(result.as_numpy(ACTION_PROBABILITIES).tolist()),
            "offence_severity": tuple(result.as_numpy(OFFENCE_SEVERITY_PROBABILITIES).tolist()),
        }
        return _decision(json.loads(result.as_numpy("DECISION")[0]), client_ms, probabilities)

    def _error(self, status: str | None, message: str) -> ServiceError:
        kind = _ERRORS.get(str(status), ServiceError)
        if kind is OverloadedError and "larger than max" in message:
            # The gRPC library uses the same status for a message over the size limit, which no retry cures.
            cure = "Send smaller clips, or start the server with a larger --max-request-bytes."
            return RequestTooLargeError(f"{self._target} refused the request: {message}. {cure}")
        if str(status) == "StatusCode.DEADLINE_EXCEEDED":
            return kind(f"{self._target} did not answer within {self._timeout_s:g} s; raise the timeout or try later.")
        if kind is UnavailableError:
            reason = message.rstrip(".")
            return kind(
                f"{self._target} is not available ({reason}). Is the server running, and is this its gRPC port?"
            )
        return kind(f"{self._target} refused the request: {message}")


def _decision(
    document: Mapping[str, Any], client_ms: float, probabilities: Mapping[Head, tuple[float, ...]]
) -> Decision:
    return Decision(
        action=_head(document["action"]),
        offence_severity=_head(document["offence_severity"]),
        view_weights=tuple(document["view_weights"]),
        artifact=document["artifact"],
        request_id=document["id"],
        server_ms=document["timings_ms"],
        client_ms=client_ms,
        document=document,
        probabilities=probabilities,
    )


def _head(document: Mapping[str, Any]) -> HeadDecision:
    first, second = (Candidate(item["label"], item["probability"]) for item in document["top2"])
    return HeadDecision(document["label"], document["confidence"], document["abstain"], (first, second))


if __name__ == "__main__":
    from serving.client_cli import main

    sys.exit(main())
