"""What runs the two graphs of one artifact: in this process (`LocalBackend`) or in Triton (`serving.triton`).

A backend takes new views and the features of views that it saw before, and scores the action over both.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mvfoul.artifact import (
    ACTION_PROBABILITIES,
    OFFENCE_SEVERITY_PROBABILITIES,
    VIEW_WEIGHTS,
    VIEWS,
    Artifact,
)
from serving.call import Call
from serving.golden import check_golden
from serving.graphs import Scores
from serving.priority_pool import PriorityPool


@dataclass(frozen=True)
class Scored:
    """Scores of one action, and the features of its new views for later."""

    features: NDArray[np.float32]
    """`[N, D]` of the new views only."""
    scores: Scores
    """Over earlier and new views, in this order."""


class Backend(Protocol):
    """Runs encoder and head of one artifact."""

    @property
    def name(self) -> str:
        """Engine and version, for logs and errors."""

    @property
    def depth(self) -> int:
        """Calls that wait or run."""

    async def score(self, views: NDArray[np.uint8], earlier: NDArray[np.float32] | None, call: Call) -> Scored:
        """Encode new views `[N, 3, T, H, W]` (N may be 0), then score earlier features `[M, D]` and theirs together.

        Notes the stages encode and head in `call`, and queue where it knows it.

        Raises:
            DeadlineError: The call's deadline passed.
            OverloadedError: Its queue is full.
            UnavailableError: It cannot be reached.
        """

    async def aclose(self) -> None:
        """Give back what it holds; nothing is in flight any more."""


class Graphs(Protocol):
    """What `LocalBackend` needs of an engine in this process. Methods block."""

    @property
    def name(self) -> str:
        """Engine and version."""

    def encode(self, views: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return features `[N, D]` of views `[N, 3, T, H, W]`."""

    def classify(self, features: NDArray[np.float32]) -> Scores:
        """Score one action from the features `[V, D]` of its views."""


class LocalBackend:
    """The graphs in this process, on a thread: the event loop stays free for health checks and metrics."""

    def __init__(self, graphs: Graphs, line: PriorityPool) -> None:
        """`line`: one thread for the graphs of all artifacts, so that a shadow's work waits for live requests."""
        self._graphs = graphs
        self._line = line

    @property
    def name(self) -> str:
        """See `Backend`."""
        return self._graphs.name

    @property
    def depth(self) -> int:
        """See `Backend`."""
        return self._line.depth

    async def score(self, views: NDArray[np.uint8], earlier: NDArray[np.float32] | None, call: Call) -> Scored:
        """See `Backend`."""
        submitted = time.perf_counter()
        job = self._line.submit(call.priority, lambda: self._run(views, earlier, call, submitted))
        return await asyncio.wrap_future(job)

    async def aclose(self) -> None:
        """See `Backend`."""

    def _run(
        self, views: NDArray[np.uint8], earlier: NDArray[np.float32] | None, call: Call, submitted: float
    ) -> Scored:
        call.waited("queue", submitted)
        call.remaining_s()  # nobody waits for an answer after the deadline: do not compute it
        with call.stage("encode"):
            features = self._graphs.encode(views) if len(views) else no_features(earlier)
        with call.stage("head"):
            return Scored(features, self._graphs.classify(joined(earlier, features)))


def joined(earlier: NDArray[np.float32] | None, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the features `[M + N, D]` of earlier and new views."""
    return features if earlier is None or not len(earlier) else np.concatenate((earlier, features))


def no_features(earlier: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Return features `[0, D]` for a call without new views; such a call has earlier ones."""
    if earlier is None or not len(earlier):
        raise ValueError("neither new views nor earlier ones")
    return earlier[:0]


async def self_test(backend: Backend, artifact: Artifact, call: Call) -> None:
    """Send golden.npz through the backend as a request would go, and compare with what PyTorch answered at export.

    Raises:
        ArtifactError: An answer differs by more than `GOLDEN_TOLERANCE`.
        ServiceError: There was no answer.
    """
    golden = artifact.golden()
    scores = (await backend.score(golden[VIEWS], None, call)).scores
    found = {
        ACTION_PROBABILITIES: scores.action_probabilities,
        OFFENCE_SEVERITY_PROBABILITIES: scores.offence_severity_probabilities,
        VIEW_WEIGHTS: scores.view_weights,
    }
    check_golden(artifact, golden, found, engine=backend.name)
