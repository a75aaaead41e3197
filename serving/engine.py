"""The core of the server: clips or views of one action in, an answer out. Knows no protocol.

    CLIPS ──decode (threads, views in parallel)──▶ VIEWS uint8 [V,3,T,H,W] ──backend: queue, encode, head──▶ Answer

Requests over the limit are refused at once, so that nobody waits in a queue whose end he will not see.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mvfoul.artifact import Artifact
from mvfoul.errors import DeadlineError, RequestError, UnknownModelError
from mvfoul.prediction import Prediction, make_prediction
from mvfoul.video import DecodeLimits
from serving.admission import Admission
from serving.backend import Scored
from serving.call import BULK, Call
from serving.decoding import ClipDecoder
from serving.generation import Generation, Role, Router
from serving.graphs import Scores
from serving.sessions import SeenView, Session, SessionLimits, SessionState, SessionStore, digest

Inputs = Sequence[bytes] | NDArray[np.uint8]
"""The clips, or the decoded views `[V, 3, T, H, W]`, of one action."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Limits of the engine."""

    decode_workers: int
    max_in_flight: int
    max_request_s: float = 60.0
    """From admission to answer, whatever the client's deadline is."""
    abstain_below: float
    decode: DecodeLimits = field(default_factory=DecodeLimits)
    sessions: SessionLimits = field(default_factory=SessionLimits)


@dataclass(frozen=True)
class Answer:
    """The decision on one action, who gave it, and the seconds that each stage took (`STAGES`; no decode for views)."""

    scores: Scores
    prediction: Prediction
    stages_s: Mapping[str, float]
    artifact: Artifact
    role: Role
    engine: str
    """Name and version of what computed."""
    new_views: int
    """Views that this request encoded; in a session fewer than the answer is about."""
    session: SessionState | None = None

    @property
    def stages_ms(self) -> dict[str, float]:
        """`stages_s` in milliseconds, rounded for people."""
        return {stage: round(seconds * 1000, 3) for stage, seconds in self.stages_s.items()}


class Engine:
    """Answers requests from one event loop; `aclose` it at the end."""

    def __init__(self, router: Router, settings: EngineSettings) -> None:
        self.settings = settings
        self.router = router
        self.decoder = ClipDecoder(settings.decode_workers, settings.decode)
        self.sessions = SessionStore(settings.sessions)
        self.last_answer = 0.0
        """`time.monotonic()` of the primary's last answer."""
        self.admission = Admission(settings.max_in_flight)

    @property
    def artifact(self) -> Artifact:
        """The primary's."""
        return self.router.primary.artifact

    @property
    def in_flight(self) -> int:
        """Requests admitted and not yet answered."""
        return self.admission.in_flight

    def route(self, call: Call, view_shape: tuple[int, ...] | None = None) -> Generation:
        """Return the generation that must answer the call; see `Router.pick`.

        Raises:
            UnknownModelError: The call names a version that nobody has.
        """
        if call.action_id and (session := self.sessions.find(call)):
            # Whatever was swapped since: features of two artifacts do not go together.
            own = session.generation.artifact.version
            if call.version not in ("", own):
                raise UnknownModelError(
                    f"the session {call.action_id[:64]!r} began with version {own} and is answered by it to its end; "
                    f"for version {call.version[:64]!r} take another action_id."
                )
            return session.generation
        if call.version:
            return self.router.named(call.version)
        key = f"{call.client}/{call.action_id}" if call.action_id else call.request_id
        return self.router.pick(key, view_shape)

    async def answer(self, inputs: Inputs, call: Call, generation: Generation | None = None) -> Answer:
        """Classify one action from its clips or its decoded views.

        Args:
            inputs: In a session these are the new views, and there may be none.
            call: What accompanies the request.
            generation: What `route` returned.

        Raises:
            RequestError: There are no views, too many, or they have another shape than the artifact's.
            InvalidClipError: Clips are unusable; the message has the number and the reason of each.
            OverloadedError: Too many requests are in flight.
            DeadlineError: The call's deadline passed, or `max_request_s`.
        """
        generation = generation or self.route(call)
        if isinstance(inputs, np.ndarray) and inputs.shape[1:] != generation.clip.view_shape:
            raise RequestError(f"a view has shape {inputs.shape[1:]}; expected {generation.clip.view_shape}.")
        _check_view_count(len(inputs), generation, at_least=0 if call.action_id else 1)
        bulk = call.priority >= BULK
        latest = time.monotonic() + self.settings.max_request_s
        call.deadline = latest if call.deadline is None else min(call.deadline, latest)
        with self.admission.admitted(call.client, call.max_in_flight, bulk=bulk), generation.in_use():
            try:
                async with asyncio.timeout(call.remaining_s()):
                    return await self._answer(inputs, call, generation)
            except TimeoutError as error:
                raise DeadlineError(
                    f"no answer within the request's deadline or the server's own ({self.settings.max_request_s:g} s); "
                    f"it was here for {time.perf_counter() - call.started:.3f} s. Allow more time or send fewer views."
                ) from error

    async def idle(self, timeout_s: float) -> None:
        """Wait until nothing is in flight, but not longer than `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    async def aclose(self) -> None:
        """Wait for running work and end the threads and connections."""
        self.sessions.close()
        self.decoder.close()
        for generation in (self.router.primary, self.router.canary):
            if generation is not None:
                generation.retire()
                await generation.closed()

    async def _answer(self, inputs: Inputs, call: Call, generation: Generation) -> Answer:
        if call.action_id:
            with self.sessions.opened(call, generation) as session:
                async with session.lock:
                    return await self._add_views(session, inputs, call)
        scored = await generation.backend.score(await self._views(inputs, call, generation), None, call)
        return self._finish(scored, call, generation, len(inputs))

    async def _add_views(self, session: Session, inputs: Inputs, call: Call) -> Answer:
        """Answer over the session's views and the new ones; the session changes only if there is an answer."""
        generation, kept = session.generation, session.kept(call.drop_views)
        seen = {view.digest for view in kept}
        # By content, which also takes out what one request sends twice.
        fresh = {d: number for number, item in enumerate(inputs) if (d := digest(item)) not in seen}
        _check_view_count(len(kept) + len(fresh), generation)
        views = await self._views(_selected(inputs, list(fresh.values())), call, generation)
        earlier = np.stack([view.features for view in kept]) if kept else None
        scored = await generation.backend.score(views, earlier, call)
        session.views = [*kept, *map(SeenView, fresh, scored.features)]
        state = SessionState(call.action_id, len(session.views), self.sessions.limits.ttl_s)
        return self._finish(scored, call, generation, len(fresh), state)

    async def _views(self, inputs: Inputs, call: Call, generation: Generation) -> NDArray[np.uint8]:
        if isinstance(inputs, np.ndarray):
            return inputs
        with call.stage("decode"):
            return await self.decoder.decode(inputs, generation.clip, call)

    def _finish(
        self, scored: Scored, call: Call, generation: Generation, new_views: int, session: SessionState | None = None
    ) -> Answer:
        scores = scored.scores
        prediction = make_prediction(
            scores.action_probabilities,
            scores.offence_severity_probabilities,
            scores.view_weights,
            abstain_below=self.settings.abstain_below,
        )
        call.finish()
        if generation is self.router.primary:
            self.last_answer = time.monotonic()
        return Answer(
            scores=scores,
            prediction=prediction,
            stages_s=call.stages_s,
            artifact=generation.artifact,
            role=generation.role,
            engine=generation.backend.name,
            new_views=new_views,
            session=session,
        )


def _check_view_count(count: int, generation: Generation, *, at_least: int = 1) -> None:
    maximum = generation.clip.max_views
    if not at_least <= count <= maximum:
        raise RequestError(f"the action has {count} views; send from 1 to {maximum}.")


def _selected(inputs: Inputs, numbers: list[int]) -> Inputs:
    return inputs[numbers] if isinstance(inputs, np.ndarray) else [inputs[number] for number in numbers]
