"""Sessions on a real engine: views of one action one by one. The clock is turned by hand where time matters."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from mvfoul.errors import InvalidClipError, OverloadedError, RequestError, UnknownModelError
from serving.call import Call
from serving.engine import Engine, EngineSettings
from serving.generation import Generation, Router
from serving.graphs import OnnxGraphs
from serving.sessions import SessionLimits, SessionStore
from tests.serving.alone import AloneBackend


class CountingGraphs(OnnxGraphs):
    """Notes how many views each call of the encoder got."""

    def __init__(self, artifact):
        super().__init__(artifact, threads=1)
        self.batches = []

    def encode(self, views):
        self.batches.append(len(views))
        return super().encode(views)


@pytest.fixture
def graphs(artifact):
    return CountingGraphs(artifact)


@pytest.fixture
def run(artifact, graphs):
    """`run(scenario, **limits)`: run `scenario(engine)` in an event loop, then close the engine."""

    def run(scenario, **limits):
        async def closing():
            settings = EngineSettings(
                decode_workers=2, max_in_flight=8, abstain_below=0.5, sessions=SessionLimits(**limits)
            )
            engine = Engine(Router(Generation(artifact, AloneBackend(graphs))), settings)
            try:
                return await scenario(engine)
            finally:
                await engine.aclose()

        return asyncio.run(closing())

    return run


def call(action_id="a", client="one", drop_views=()):
    return Call(client=client, action_id=action_id, drop_views=drop_views)


def scores(answer):
    return np.concatenate([answer.scores.action_probabilities, answer.scores.view_weights])


def test_each_new_view_is_encoded_once_and_the_answer_is_over_all_of_them(run, graphs, clips):
    async def scenario(engine):
        at_once = await engine.answer(clips[:3], Call())
        return at_once, [await engine.answer(clips[v : v + 1], call()) for v in range(3)]

    at_once, one_by_one = run(scenario)
    assert graphs.batches == [3, 1, 1, 1]
    assert [answer.session.views for answer in one_by_one] == [1, 2, 3]
    assert [len(answer.prediction.view_weights) for answer in one_by_one] == [1, 2, 3]
    np.testing.assert_allclose(scores(one_by_one[-1]), scores(at_once), atol=1e-5)


def test_a_clip_that_is_sent_again_is_no_new_view(run, graphs, clips):
    async def scenario(engine):
        first = await engine.answer([clips[0], clips[0]], call())
        return first, await engine.answer(clips[:1], call())

    first, again = run(scenario)
    assert graphs.batches == [1]
    assert (first.session.views, again.session.views) == (1, 1)
    np.testing.assert_array_equal(scores(first), scores(again))


def test_decoded_views_and_clips_go_into_one_session(run, views):
    async def scenario(engine):
        await engine.answer(views[:2], call())
        return await engine.answer(views[1:3], call())

    assert run(scenario).session.views == 3


def test_views_can_be_dropped_with_or_without_new_ones(run, graphs, clips):
    async def scenario(engine):
        await engine.answer(clips[:3], call())
        without = await engine.answer([], call(drop_views=(1,)))
        expected = await engine.answer([clips[0], clips[2]], Call())
        replaced = await engine.answer(clips[3:4], call(drop_views=(0,)))
        return without, expected, replaced

    without, expected, replaced = run(scenario)
    assert graphs.batches == [3, 2, 1]
    np.testing.assert_allclose(scores(without), scores(expected), atol=1e-5)
    assert replaced.session.views == 2


@pytest.mark.parametrize("dropped", [(3,), (0, 9)])
def test_a_view_that_is_not_there_cannot_be_dropped_and_nothing_changes(run, clips, dropped):
    async def scenario(engine):
        await engine.answer(clips[:3], call())
        with pytest.raises(RequestError, match="the session has views 0 to 2"):
            await engine.answer([], call(drop_views=dropped))
        return await engine.answer([], call())

    assert run(scenario).session.views == 3


def test_an_action_without_any_view_is_refused_and_leaves_no_session(run, clips):
    async def scenario(engine):
        with pytest.raises(RequestError, match="0 views"):
            await engine.answer([], call())
        assert len(engine.sessions) == 0
        await engine.answer(clips[:1], call())
        with pytest.raises(RequestError, match="0 views"):
            await engine.answer([], call(drop_views=(0,)))
        return len(engine.sessions)

    assert run(scenario) == 1


def test_a_session_takes_no_more_views_than_the_artifact(run, clips, views):
    async def scenario(engine):
        await engine.answer(clips[:3], call())
        with pytest.raises(RequestError, match="6 views; send from 1 to 5"):
            await engine.answer(views[:3], call())
        return await engine.answer(clips[3:5], call())

    assert run(scenario).session.views == 5


def test_a_bad_clip_changes_nothing(run, clips):
    async def scenario(engine):
        with pytest.raises(InvalidClipError):
            await engine.answer([b"no video"], call())
        assert len(engine.sessions) == 0
        await engine.answer(clips[:1], call())
        with pytest.raises(InvalidClipError):
            await engine.answer([clips[1], b"no video"], call())
        return await engine.answer(clips[2:3], call())

    assert run(scenario).session.views == 2


def test_clients_do_not_share_a_session_of_one_name(run, clips):
    async def scenario(engine):
        await engine.answer(clips[:2], call(client="one"))
        return await engine.answer(clips[2:3], call(client="other"))

    assert run(scenario).session.views == 1


def test_requests_of_one_session_are_answered_one_after_the_other(run, clips):
    async def scenario(engine):
        answers = await asyncio.gather(*(engine.answer(clips[v : v + 1], call()) for v in range(5)))
        return sorted(answer.session.views for answer in answers)

    assert run(scenario) == [1, 2, 3, 4, 5]


def test_a_client_over_its_limit_loses_its_oldest_session_and_nobody_elses(run, clips):
    async def scenario(engine):
        ends = []
        engine.sessions.on_end = ends.append
        await engine.answer(clips[:2], call("others", client="other"))
        for name in ("oldest", "kept", "oldest", "new"):
            await engine.answer(clips[:1], call(name))
        views = [(await engine.answer(clips[1:2], call(name))).session.views for name in ("oldest", "new")]
        other = await engine.answer(clips[2:3], call("others", client="other"))
        return ends, views, other.session.views

    # "oldest" was used again before "new" came, so "kept" went.
    assert run(scenario, max_per_client=2) == (["evicted"], [2, 2], 3)


def test_a_session_with_a_request_in_progress_is_never_evicted(run, clips):
    async def scenario(engine):
        generation = engine.router.primary
        await engine.answer(clips[:1], call("b"))
        with engine.sessions.opened(call("a"), generation):
            await engine.answer(clips[:1], call("c"))  # in the place of "b"
            with engine.sessions.opened(call("c"), generation), pytest.raises(OverloadedError, match="in progress"):
                await engine.answer(clips[:1], call("d"))
            return [engine.sessions.find(call(name)) is not None for name in "abc"]

    assert run(scenario, max_per_client=2) == [True, False, True]


def test_a_session_refuses_another_version_than_its_own(run, artifact, clips):
    async def scenario(engine):
        await engine.answer(clips[:1], call())
        own, other = call(), call()
        own.version, other.version = artifact.version, "0" * 12
        assert engine.route(own) is engine.router.primary
        with pytest.raises(UnknownModelError, match=f"began with version {artifact.version}"):
            engine.route(other)

    run(scenario)


def test_a_full_store_refuses_new_sessions_and_serves_those_that_are_there(run, clips):
    async def scenario(engine):
        await engine.answer(clips[:1], call("a"))
        await engine.answer(clips[:1], call("b", client="other"))
        with pytest.raises(OverloadedError, match="2 sessions are open"):
            await engine.answer(clips[:1], call("c", client="third"))
        without = await engine.answer(clips[:1], Call())
        return (await engine.answer(clips[1:2], call("a"))).session.views, without.session

    assert run(scenario, max_sessions=2) == (2, None)


def test_a_session_expires_after_its_last_request(artifact, graphs):
    now = [0.0]

    async def scenario():
        generation = Generation(artifact, AloneBackend(graphs))
        store = SessionStore(SessionLimits(ttl_s=10), clock=lambda: now[0])
        ends = []
        store.on_end = ends.append
        with store.opened(call(), generation) as session:
            session.views.append(object())
        now[0] = 9.0
        with store.opened(call(), generation) as again:
            assert again is session
            now[0] = 30.0
            assert len(store) == 1, "it has not expired for whom waits for its answer"
        now[0] = 39.0
        assert (len(store), ends) == (1, [])
        now[0] = 40.0
        assert (len(store), ends) == (0, ["expired"])
        generation.retire()
        await generation.closed()

    asyncio.run(asyncio.wait_for(scenario(), 10))
