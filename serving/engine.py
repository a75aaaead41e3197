"""The core of the server: clips or views of one action in, an answer out. Knows no protocol.

    CLIPS ──decode (thread pool, views in parallel)──▶ VIEWS uint8 [V,3,T,H,W] ──queue──▶ encode ──▶ head ──▶ Answer

Both graphs run on one thread of their own, one action after the other: ONNX Runtime uses all its threads for each call,
and the event loop stays free for health checks and metrics.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mvfoul.artifact import Artifact
from mvfoul.errors import InvalidClipError, OverloadedError, RequestError
from mvfoul.prediction import Prediction, make_prediction
from mvfoul.video import decode_clip
from serving.graphs import Scores

STAGES = ("decode", "queue", "encode", "head", "total")
"""decode: all clips, waiting for a decoder included. queue: waiting for the graphs. total: from admission to answer."""


class Graphs(Protocol):
    """What the engine needs of a backend."""

    def encode(self, views: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return features `[N, D]` of views `[N, 3, T, H, W]`."""

    def classify(self, features: NDArray[np.float32]) -> Scores:
        """Score one action from the features `[V, D]` of its views."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Limits of the engine."""

    decode_workers: int
    max_in_flight: int
    abstain_below: float


@dataclass(frozen=True)
class Answer:
    """The decision on one action, and the seconds that each stage took (`STAGES`; no decode for views)."""

    scores: Scores
    prediction: Prediction
    stages_s: Mapping[str, float]


@dataclass
class _StageClock:
    """Seconds by stage of one request."""

    started: float = field(default_factory=time.perf_counter)
    stages_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.stages_s[name] = time.perf_counter() - start


class Engine:
    """Answers requests one by one from an event loop; `close` it at the end."""

    def __init__(self, artifact: Artifact, graphs: Graphs, settings: EngineSettings) -> None:
        self.artifact = artifact
        self.settings = settings
        self._graphs = graphs
        self._decoders = ThreadPoolExecutor(settings.decode_workers, thread_name_prefix="decode")
        self._graph_thread = ThreadPoolExecutor(1, thread_name_prefix="graphs")
        self._in_flight = 0

    @property
    def in_flight(self) -> int:
        """Requests admitted and not yet answered."""
        return self._in_flight

    def check_capacity(self) -> None:
        """Refuse a request that would be one too many.

        Raises:
            OverloadedError: The limit is reached.
        """
        if self._in_flight >= self.settings.max_in_flight:
            raise OverloadedError(
                f"{self._in_flight} requests are in flight, which is this server's limit. "
                "Send the request again later, with backoff."
            )

    async def predict(self, clips: Sequence[bytes]) -> Answer:
        """Classify one action from its encoded clips, one per view.

        Raises:
            RequestError: There are no clips, or more than the artifact's `max_views`.
            InvalidClipError: Clips are unusable; the message has the number and the reason of each.
            OverloadedError: Too many requests are in flight.
        """
        self._check_view_count(len(clips))
        with self._admitted() as clock:
            with clock.stage("decode"):
                views = await self._decode(clips)
            return await self._infer(views, clock)

    async def predict_views(self, views: NDArray[np.uint8]) -> Answer:
        """Classify one action from decoded views `[V, 3, T, H, W]`.

        Raises:
            RequestError: There are no views, too many, or they have another shape than the artifact's.
            OverloadedError: Too many requests are in flight.
        """
        self._check_view_count(len(views))
        if views.shape[1:] != self.artifact.manifest.clip.view_shape:
            raise RequestError(
                f"a view has shape {views.shape[1:]}; expected {self.artifact.manifest.clip.view_shape}."
            )
        with self._admitted() as clock:
            return await self._infer(views, clock)

    async def idle(self, timeout_s: float) -> None:
        """Wait until nothing is in flight, but not longer than `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self._in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Wait for running work and end the threads."""
        self._decoders.shutdown(cancel_futures=True)
        self._graph_thread.shutdown(cancel_futures=True)

    @contextmanager
    def _admitted(self) -> Iterator[_StageClock]:
        self.check_capacity()
        self._in_flight += 1
        try:
            yield _StageClock()
        finally:
            self._in_flight -= 1

    def _check_view_count(self, count: int) -> None:
        maximum = self.artifact.manifest.clip.max_views
        if not 1 <= count <= maximum:
            raise RequestError(f"the action has {count} views; send from 1 to {maximum}.")

    async def _decode(self, clips: Sequence[bytes]) -> NDArray[np.uint8]:
        views = np.empty((len(clips), *self.artifact.manifest.clip.view_shape), dtype=np.uint8)
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self._decoders, self._decode_into, views, v, clip) for v, clip in enumerate(clips)]
        # All clips are tried, so that the message names every bad one. A cancelled request cancels what has not begun.
        failures = [error for error in await asyncio.gather(*jobs, return_exceptions=True) if error is not None]
        for error in failures:
            if not isinstance(error, InvalidClipError):
                raise error
        if failures:
            raise InvalidClipError(" ".join(map(str, failures)))
        return views

    def _decode_into(self, views: NDArray[np.uint8], v: int, clip: bytes) -> None:
        try:
            views[v] = decode_clip(clip, self.artifact.manifest.clip)
        except InvalidClipError as error:
            raise InvalidClipError(f"CLIPS[{v}]: {error}") from error

    async def _infer(self, views: NDArray[np.uint8], clock: _StageClock) -> Answer:
        submitted = time.perf_counter()
        loop = asyncio.get_running_loop()
        scores = await loop.run_in_executor(self._graph_thread, self._run_graphs, views, clock, submitted)
        prediction = make_prediction(
            scores.action_probabilities,
            scores.offence_severity_probabilities,
            scores.view_weights,
            abstain_below=self.settings.abstain_below,
        )
        clock.stages_s["total"] = time.perf_counter() - clock.started
        return Answer(scores, prediction, clock.stages_s)

    def _run_graphs(self, views: NDArray[np.uint8], clock: _StageClock, submitted: float) -> Scores:
        clock.stages_s["queue"] = time.perf_counter() - submitted
        with clock.stage("encode"):
            features = self._graphs.encode(views)
        with clock.stage("head"):
            return self._graphs.classify(features)
