"""Whether the server is ready: a real inference of golden.npz, repeated and rate-limited.

A backend's own word is not enough: Triton stays "ready" when its python backend was killed. As long as requests are
answered, they are proof enough and nothing is sent on top.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from mvfoul.errors import ArtifactError, MVFoulError, OverloadedError, ServiceError
from serving.backend import self_test
from serving.call import Call
from serving.engine import Engine

_FIRST: Final = 0
"""Priority of the self-test: before live requests, or a full queue would make a healthy server look ill."""
_RETRY_S: Final = 1.0
"""Between self-tests while they fail."""

log = logging.getLogger("mvfoul.serving")


class Readiness:
    """Tests the primary in the background; `ready` is its last verdict."""

    def __init__(self, engine: Engine, *, interval_s: float, timeout_s: float) -> None:
        self._engine = engine
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._tested = 0.0
        self._doubted = asyncio.Event()
        self._passed = asyncio.Event()
        self._judged = asyncio.Event()
        self.failure: MVFoulError | None = None
        """Why the last self-test failed."""
        self.observe: Callable[[str, float], None] = lambda _outcome, _seconds: None
        """Called after each self-test with "ok", "failed" (wrong answer or bug) or "unavailable", and its duration."""

    @property
    def ready(self) -> bool:
        """Whether the last self-test passed."""
        return self._passed.is_set()

    @property
    def computes_something_else(self) -> bool:
        """Whether the backend answers, and wrongly: then nothing it says may leave the server."""
        return isinstance(self.failure, ArtifactError)

    def doubt(self) -> None:
        """Test soon: a request has just failed for want of a backend."""
        self._doubted.set()

    async def first_verdict(self) -> None:
        """Wait until a self-test has ended, well or not."""
        await self._judged.wait()

    async def first_pass(self) -> None:
        """Wait until a self-test has passed."""
        await self._passed.wait()

    async def run(self) -> None:
        """Test for ever."""
        while True:
            if self._engine.last_answer <= self._tested or not self.ready:
                await self.test()
            else:
                self._tested = time.monotonic()
            await self._pause()

    async def test(self) -> None:
        """Test now."""
        self._tested = time.monotonic()
        generation = self._engine.router.primary
        call = Call(request_id="self-test", priority=_FIRST, deadline=self._tested + self._timeout_s)
        try:
            # The deadline alone ends no computation that has begun, and none that hangs.
            async with asyncio.timeout(self._timeout_s):
                with generation.in_use():
                    await self_test(generation.backend, generation.artifact, call)
        except OverloadedError as error:
            if self._answers_within(self._timeout_s):
                return  # busy is not ill
            self._fail(
                "unavailable",
                ServiceError(f"no room for the self-test and no answer for {self._timeout_s:g} s: {error}"),
            )
        except TimeoutError:
            if self._answers_within(self._timeout_s):
                return
            self._fail("unavailable", ServiceError(f"the self-test had no answer within {self._timeout_s:g} s."))
        except ArtifactError as error:
            self._fail("failed", error)
        except MVFoulError as error:
            # Nobody answered: that says nothing about what the artifact computes, and every cold start begins so.
            self._fail("unavailable", error)
        except Exception as error:
            # A bug, or an engine's own exception: the server must not stay "ready" because its watchman died.
            log.exception("the self-test broke")
            self._fail("failed", ServiceError(f"the self-test broke: {error!r}"))
        else:
            self._pass()

    def _answers_within(self, seconds: float) -> bool:
        """Return whether a request was answered lately."""
        return self._engine.last_answer > time.monotonic() - seconds

    async def _pause(self) -> None:
        # At least a second between tests, however many requests doubt.
        await asyncio.sleep(min(_RETRY_S, self._interval_s))
        if self.ready:
            try:
                async with asyncio.timeout(max(0.0, self._interval_s - _RETRY_S)):
                    await self._doubted.wait()
                # What failed may have failed after the last answer: answers before it prove nothing.
                self._tested = time.monotonic()
            except TimeoutError:
                pass
        self._doubted.clear()

    def _pass(self) -> None:
        if not self.ready:
            log.info("ready: the self-test has passed in %s", self._engine.router.primary.backend.name)
        self.failure = None
        self._passed.set()
        self._judged.set()
        self.observe("ok", time.monotonic() - self._tested)

    def _fail(self, outcome: str, error: MVFoulError) -> None:
        if self.failure is None or str(error) != str(self.failure):
            log.error("not ready: %s", error)
        self.failure = error
        self._passed.clear()
        self._judged.set()
        self.observe(outcome, time.monotonic() - self._tested)
