"""Readiness: the verdict of a real inference, not of a flag."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from mvfoul.errors import ArtifactError, OverloadedError, UnavailableError
from serving.backend import Scored
from serving.call import Call
from serving.engine import Engine, EngineSettings
from serving.generation import Generation, Router
from serving.graphs import OnnxGraphs, Scores
from serving.readiness import Readiness
from tests.serving.alone import AloneBackend

SETTINGS = EngineSettings(decode_workers=1, max_in_flight=4, abstain_below=0.5)


class SickBackend(AloneBackend):
    """The real one, with an illness that can be given to it and cured."""

    def __init__(self, graphs):
        super().__init__(graphs)
        self.illness = None
        self.calls = 0

    async def score(self, views, earlier, call):
        self.calls += 1
        if isinstance(self.illness, Exception):
            raise self.illness
        if self.illness == "hangs":
            await asyncio.sleep(call.remaining_s() + 1)
        scored = await super().score(views, earlier, call)
        if self.illness == "lies":
            answers = scored.scores
            return Scored(
                scored.features,
                Scores(
                    answers.action_probabilities[::-1], answers.offence_severity_probabilities, answers.view_weights
                ),
            )
        return scored


@pytest.fixture
def backend(artifact):
    return SickBackend(OnnxGraphs(artifact, threads=1))


@pytest.fixture
def run(artifact, backend):
    """`run(scenario)`: run `scenario(engine, readiness)` with the background tests."""

    def run(scenario, *, interval_s=0.05, timeout_s=5.0):
        async def closing():
            engine = Engine(Router(Generation(artifact, backend)), SETTINGS)
            readiness = Readiness(engine, interval_s=interval_s, timeout_s=timeout_s)
            watching = asyncio.create_task(readiness.run())
            try:
                await asyncio.wait_for(readiness.first_verdict(), 30)
                return await asyncio.wait_for(scenario(engine, readiness), 60)
            finally:
                watching.cancel()
                backend.illness = None
                await engine.aclose()

        return asyncio.run(closing())

    return run


def counted(readiness):
    """The outcomes that self-tests are counted with from now on."""
    outcomes = set()
    readiness.observe = lambda outcome, _: outcomes.add(outcome)
    return outcomes


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("illness", "outcome"),
    [(UnavailableError("gone"), "unavailable"), (ZeroDivisionError("a bug"), "failed")],
)
def test_it_turns_false_when_the_backend_fails_and_true_when_that_is_cured(run, backend, illness, outcome):
    async def scenario(_, readiness):
        assert readiness.ready
        outcomes = counted(readiness)
        backend.illness = illness
        await until(lambda: not readiness.ready)
        assert not readiness.computes_something_else
        backend.illness = None
        await until(lambda: readiness.ready)
        return readiness.failure, outcomes

    failure, outcomes = run(scenario)
    assert failure is None
    assert outcomes - {"ok"} == {outcome}


def test_a_backend_that_computes_something_else_is_told_from_one_that_is_gone(run, backend):
    async def scenario(_, readiness):
        outcomes = counted(readiness)
        backend.illness = "lies"
        await until(lambda: not readiness.ready)
        return readiness.computes_something_else, readiness.failure, outcomes

    lies, failure, outcomes = run(scenario)
    assert lies
    assert outcomes - {"ok"} == {"failed"}
    assert isinstance(failure, ArtifactError)
    assert "ACTION_PROBABILITIES" in str(failure)


def test_a_backend_that_hangs_is_not_ready(run, backend):
    async def scenario(_, readiness):
        outcomes = counted(readiness)
        backend.illness = "hangs"
        await until(lambda: not readiness.ready)
        return outcomes

    assert run(scenario, timeout_s=0.3) - {"ok"} == {"unavailable"}


def test_a_full_backend_stays_ready_as_long_as_it_answers(run, backend):
    async def scenario(engine, readiness):
        backend.illness = OverloadedError("full")
        for _ in range(5):
            engine.last_answer, before = time.monotonic(), backend.calls
            await readiness.test()
            assert backend.calls > before
            assert readiness.ready
        engine.last_answer = time.monotonic() - 6
        await readiness.test()
        return readiness.ready, str(readiness.failure)

    ready, failure = run(scenario, interval_s=60, timeout_s=5)
    assert not ready, "it takes nothing and answers nothing"
    assert "no answer for 5 s: full" in failure


def test_answers_are_proof_enough_so_that_nothing_is_sent_on_top(run, backend, views):
    async def scenario(engine, _):
        enough = asyncio.get_running_loop().time() + 1.6
        asked, before = 0, backend.calls
        while asyncio.get_running_loop().time() < enough:
            await engine.answer(views[:1], Call())
            asked += 1
            await asyncio.sleep(0.01)
        return backend.calls - before - asked

    assert run(scenario, interval_s=0.5) <= 1


def test_the_self_test_overtakes_waiting_requests(artifact, views):
    """A full queue must not make a healthy server look ill."""
    gate, order = threading.Event(), []

    class Ordered(OnnxGraphs):
        def encode(self, batch):
            assert gate.wait(30)
            order.append(len(batch))
            return super().encode(batch)

    async def scenario():
        engine = Engine(Router(Generation(artifact, AloneBackend(Ordered(artifact, threads=1)))), SETTINGS)
        readiness = Readiness(engine, interval_s=1, timeout_s=30)
        asked = [asyncio.create_task(engine.answer(views[:1], Call())) for _ in range(3)]
        await until(lambda: engine.router.primary.backend.depth == 3)
        test = asyncio.create_task(readiness.test())
        await until(lambda: engine.router.primary.backend.depth == 4)
        gate.set()
        await asyncio.gather(*asked, test)
        await engine.aclose()
        assert readiness.ready

    asyncio.run(asyncio.wait_for(scenario(), 60))
    golden = len(artifact.golden()["VIEWS"])
    assert order == [1, golden, 1, 1]


def test_a_computation_that_never_ends_is_not_ready(artifact):
    """Its thread cannot be ended: only the wait for it can."""
    gate = threading.Event()

    class Stuck(OnnxGraphs):
        def encode(self, batch):
            assert gate.wait(30)
            return super().encode(batch)

    async def scenario():
        engine = Engine(Router(Generation(artifact, AloneBackend(Stuck(artifact, threads=1)))), SETTINGS)
        readiness = Readiness(engine, interval_s=1, timeout_s=0.2)
        await readiness.test()
        verdict, failure = readiness.ready, str(readiness.failure)
        gate.set()
        while not readiness.ready:  # or it never ends
            await readiness.test()
        await engine.aclose()
        return verdict, failure

    verdict, failure = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert not verdict
    assert "no answer within 0.2 s" in failure
