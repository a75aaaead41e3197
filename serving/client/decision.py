"""What a server answers, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mvfoul.artifact import VIEWS
from mvfoul.labels import Head
from mvfoul.prediction import Candidate


@dataclass(frozen=True)
class HeadDecision:
    """The answer of one head."""

    label: str
    confidence: float
    abstain: bool
    """The confidence is below the server's threshold: show no decision."""
    top2: tuple[Candidate, Candidate]


@dataclass(frozen=True)
class SessionInfo:
    """The session that a decision is about."""

    action_id: str
    views: int
    """In the session now; the decision is over all of them."""
    expires_in_s: float
    """Without another request."""


@dataclass(frozen=True)
class Decision:
    """A server's answer on one action."""

    action: HeadDecision
    offence_severity: HeadDecision
    view_weights: tuple[float, ...]
    """One per view, in the order they were sent; in a session one for each of its views."""
    artifact: str
    """Version of the artifact that answered."""
    request_id: str
    server_ms: Mapping[str, float]
    """By stage: decode, queue, encode, head, total."""
    client_ms: float
    """From call to answer, as the client saw it, repetitions included."""
    document: Mapping[str, Any]
    """The `DECISION` object as the server sent it."""
    probabilities: Mapping[Head, tuple[float, ...]]
    """All of a head's, in the order of its vocabulary."""
    session: SessionInfo | None = None
    """Where an action_id was given."""
    engine: str = ""
    """Name and version of what computed; empty from a server that does not say."""


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of the model."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 is the number of views."""


@dataclass(frozen=True)
class ModelInfo:
    """What a server says about its model."""

    name: str
    versions: tuple[str, ...]
    """Of the artifacts on duty."""
    platform: str
    """What computes."""
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    @property
    def view_shape(self) -> tuple[int, ...]:
        """`[3, T, H, W]` of one decoded view."""
        return next(tensor.shape[1:] for tensor in self.inputs if tensor.name == VIEWS)


def read_decision(
    document: Mapping[str, Any], probabilities: Mapping[Head, tuple[float, ...]], *, client_ms: float
) -> Decision:
    """Return the decision that a `DECISION` object holds."""
    session = document.get("session")
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
        session=SessionInfo(session["action_id"], session["views"], session["expires_in_s"]) if session else None,
        engine=document.get("engine", ""),
    )


def read_model_info(metadata: Any) -> ModelInfo:
    """Return what the protocol's message `ModelMetadataResponse` says."""
    inputs, outputs = (
        tuple(TensorInfo(item.name, item.datatype, tuple(item.shape)) for item in tensors)
        for tensors in (metadata.inputs, metadata.outputs)
    )
    return ModelInfo(metadata.name, tuple(metadata.versions), metadata.platform, inputs, outputs)


def _head(document: Mapping[str, Any]) -> HeadDecision:
    first, second = (Candidate(item["label"], item["probability"]) for item in document["top2"])
    return HeadDecision(document["label"], document["confidence"], document["abstain"], (first, second))
