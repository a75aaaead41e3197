"""The engine without a protocol. Its graphs are real; a gate in front of them makes "in flight" a state to test in."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

import serving.decoding
from mvfoul.errors import DeadlineError, InvalidClipError, OverloadedError, RequestError
from serving.call import BULK, LIVE, Call
from serving.engine import Engine, EngineSettings
from serving.generation import Generation, Router
from serving.graphs import OnnxGraphs
from serving.metrics import Metrics
from tests.serving.alone import AloneBackend

SETTINGS = EngineSettings(decode_workers=2, max_in_flight=2, abstain_below=0.5)


class GatedGraphs(OnnxGraphs):
    """Waits before each encoder call until the gate opens."""

    def __init__(self, artifact):
        super().__init__(artifact, threads=1)
        self.gate = threading.Event()
        self.calls = 0

    def encode(self, views):
        assert self.gate.wait(30)
        self.calls += 1
        return super().encode(views)


@pytest.fixture
def graphs(artifact):
    made = GatedGraphs(artifact)
    yield made
    made.gate.set()


@pytest.fixture
def engine(artifact, graphs):
    return _engine(artifact, graphs, SETTINGS)


def _engine(artifact, graphs, settings):
    return Engine(Router(Generation(artifact, AloneBackend(graphs))), settings)


def _run(engine, scenario):
    """Run a coroutine, then close the engine in the same event loop."""

    async def both():
        try:
            return await scenario
        finally:
            await engine.aclose()

    return asyncio.run(both())


async def _until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the state was not reached within 10 s")


def test_clips_and_their_views_get_one_answer(engine, graphs, clips, views):
    graphs.gate.set()

    async def both():
        return await engine.answer(clips, Call()), await engine.answer(views, Call())

    from_clips, from_views = _run(engine, both())
    assert from_clips.prediction == from_views.prediction
    assert set(from_clips.stages_s) - set(from_views.stages_s) == {"decode"}


def test_the_same_views_give_the_same_bits(engine, graphs, views):
    graphs.gate.set()

    async def often():
        return [await engine.answer(views, Call()) for _ in range(5)]

    answers = _run(engine, often())
    assert len({answer.scores.action_probabilities.tobytes() for answer in answers}) == 1


def test_one_request_too_many_is_refused_at_once_and_the_others_are_answered(engine, graphs, views):
    async def scenario():
        admitted = [asyncio.create_task(engine.answer(views, Call())) for _ in range(2)]
        await _until(lambda: engine.in_flight == 2)
        with pytest.raises(OverloadedError, match="2 requests are in flight"):
            await engine.answer(views, Call())
        graphs.gate.set()
        return await asyncio.gather(*admitted)

    assert len(_run(engine, scenario())) == 2
    assert engine.in_flight == 0


def test_the_gauges_of_the_queues_say_what_waits(artifact, graphs, clips, views):
    engine, registry = _engine(artifact, graphs, replace(SETTINGS, max_in_flight=3)), CollectorRegistry()
    Metrics(registry=registry).watch(engine, ready=lambda: True)

    def depths():
        return [registry.get_sample_value("mvfoul_queue_depth", {"queue": queue}) for queue in ("decode", "encode")]

    async def scenario():
        seen = [depths()]
        asked = [asyncio.create_task(engine.answer(inputs, Call())) for inputs in (views, clips[:3], clips[3:])]
        await asyncio.sleep(0)  # each has begun; what ends from now on is only noticed later
        seen.append(depths())
        await _until(lambda: depths()[0] == 0)
        await _until(lambda: depths()[1] == 3)
        graphs.gate.set()
        await asyncio.gather(*asked)
        await _until(lambda: depths()[1] == 0)
        return seen

    assert _run(engine, scenario()) == [[0, 0], [5, 1]]


def test_the_event_loop_stays_free_while_the_graphs_run(engine, graphs, views):
    async def scenario():
        request = asyncio.create_task(engine.answer(views, Call()))
        await _until(lambda: engine.in_flight == 1)  # needs a loop that runs while the encoder waits
        assert not request.done()
        graphs.gate.set()
        await request

    _run(engine, scenario())


def test_a_cancelled_request_gives_its_place_back_and_is_not_computed(engine, graphs, views):
    async def scenario():
        first = asyncio.create_task(engine.answer(views, Call()))
        second = asyncio.create_task(engine.answer(views, Call()))
        await _until(lambda: engine.in_flight == 2)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert engine.in_flight == 1
        graphs.gate.set()
        await first

    _run(engine, scenario())
    assert graphs.calls == 1


def test_all_bad_clips_are_named_and_the_place_is_given_back(engine, clips):
    with pytest.raises(InvalidClipError, match=r"CLIPS\[0\]: .*CLIPS\[2\]: "):
        _run(engine, engine.answer([b"x", clips[0], b"y"], Call()))
    assert engine.in_flight == 0


def test_views_of_another_shape_never_reach_the_graphs(engine, graphs):
    graphs.gate.set()
    with pytest.raises(RequestError, match="expected"):
        _run(engine, engine.answer(np.zeros((1, 3, 1, 2, 2), np.uint8), Call()))
    assert graphs.calls == 0


@pytest.mark.parametrize("count", [0, 6])
def test_no_view_and_six_views_are_refused(engine, clips, count):
    with pytest.raises(RequestError, match=f"{count} views; send from 1 to 5"):
        _run(engine, engine.answer([clips[0]] * count, Call()))


def test_a_head_below_the_threshold_abstains(artifact, graphs, views):
    graphs.gate.set()
    engine = _engine(artifact, graphs, EngineSettings(decode_workers=1, max_in_flight=1, abstain_below=1.0))
    answer = _run(engine, engine.answer(views, Call()))
    assert answer.prediction.action.abstains
    assert answer.prediction.offence_severity.abstains


def test_a_request_over_its_deadline_is_an_error_at_once_and_is_not_computed(engine, graphs, views):
    async def scenario():
        first = asyncio.create_task(engine.answer(views[:1], Call()))
        await _until(lambda: engine.in_flight == 1)
        start = time.monotonic()
        with pytest.raises(DeadlineError, match="within the request's deadline"):
            await engine.answer(views[:1], Call(deadline=start + 0.2))
        waited_s = time.monotonic() - start
        graphs.gate.set()
        await first
        return waited_s

    assert 0.2 <= _run(engine, scenario()) < 10
    assert (graphs.calls, engine.in_flight) == (1, 0)


def test_a_deadline_that_has_passed_costs_nothing(engine, graphs, clips):
    graphs.gate.set()
    with pytest.raises(DeadlineError):
        _run(engine, engine.answer(clips, Call(deadline=time.monotonic() - 1)))
    assert graphs.calls == 0


def test_live_requests_overtake_bulk_requests(artifact, graphs, views):
    """Each kind of request has another number of views, so that the order can be seen."""
    engine = _engine(artifact, graphs, EngineSettings(decode_workers=2, max_in_flight=8, abstain_below=0.5))
    order = []
    encode = graphs.encode

    def noting(batch):
        features = encode(batch)
        order.append(len(batch))
        return features

    graphs.encode = noting

    async def scenario():
        asked = [asyncio.create_task(engine.answer(views[:1], Call()))]
        await _until(lambda: engine.router.primary.backend.depth == 1)
        for count, priority in ((2, BULK), (3, LIVE), (2, BULK), (3, LIVE)):
            asked.append(asyncio.create_task(engine.answer(views[:count], Call(priority=priority))))
        await _until(lambda: engine.router.primary.backend.depth == 5)
        graphs.gate.set()
        await asyncio.gather(*asked)

    _run(engine, scenario())
    assert order == [1, 3, 3, 2, 2]


def test_bulk_requests_leave_places_to_live_ones(artifact, graphs, views):
    engine = _engine(artifact, graphs, EngineSettings(decode_workers=1, max_in_flight=4, abstain_below=0.5))

    async def scenario():
        bulk = [asyncio.create_task(engine.answer(views[:1], Call(priority=BULK))) for _ in range(3)]
        await _until(lambda: engine.in_flight == 3)
        with pytest.raises(OverloadedError, match="limit for bulk requests"):
            await engine.answer(views[:1], Call(priority=BULK))
        live = asyncio.create_task(engine.answer(views[:1], Call(priority=LIVE)))
        await _until(lambda: engine.in_flight == 4)
        graphs.gate.set()
        await asyncio.gather(live, *bulk)

    _run(engine, scenario())


def test_clips_of_live_requests_are_decoded_before_waiting_bulk_ones(artifact, graphs, clips, monkeypatch):
    engine = _engine(artifact, graphs, EngineSettings(decode_workers=1, max_in_flight=8, abstain_below=0.5))
    graphs.gate.set()
    gate, decoded = threading.Event(), []
    decode = serving.decoding.decode_clip

    def held(clip, *args, **kwargs):
        assert gate.wait(30)
        decoded.append(clips.index(clip))
        return decode(clip, *args, **kwargs)

    monkeypatch.setattr(serving.decoding, "decode_clip", held)

    async def scenario():
        asked = []
        for clip, priority in ((0, BULK), (1, BULK), (2, LIVE)):
            asked.append(asyncio.create_task(engine.answer(clips[clip : clip + 1], Call(priority=priority))))
            await _until(lambda: engine.decoder.depth == len(asked))
        gate.set()
        await asyncio.gather(*asked)

    _run(engine, scenario())
    assert decoded == [0, 2, 1]


@pytest.mark.parametrize("own_s", [None, 3600.0])
def test_no_request_keeps_its_place_for_longer_than_the_server_allows(artifact, graphs, views, own_s):
    """A backend that hangs, and a client that would wait for ever."""
    settings = EngineSettings(decode_workers=1, max_in_flight=1, max_request_s=0.2, abstain_below=0.5)
    engine = _engine(artifact, graphs, settings)

    async def scenario():
        deadline = None if own_s is None else time.monotonic() + own_s
        with pytest.raises(DeadlineError, match=r"the server's own \(0\.2 s\)"):
            await engine.answer(views[:1], Call(deadline=deadline))
        assert engine.in_flight == 0
        graphs.gate.set()

    _run(engine, scenario())
