"""Another artifact goes live: nothing fails, nothing is mixed, a bad one is refused. Also canary and shadow."""

from __future__ import annotations

import asyncio
import errno
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from mvfoul.artifact import ENCODER, load_artifact
from mvfoul.errors import ArtifactError, ServiceError, UnknownModelError
from serving.call import Call
from serving.client import FoulClient
from serving.config import ServeConfig
from serving.engine import Engine, EngineSettings
from serving.generation import Generation, Router
from serving.graphs import OnnxGraphs
from serving.loading import LocalLoader, load_here
from serving.priority_pool import PriorityPool
from serving.shadow import COMPARED, DROPPED, FAILED, Shadow
from serving.swap import Directories, Swapper
from tests.serving.alone import AloneBackend

SETTINGS = EngineSettings(decode_workers=2, max_in_flight=32, abstain_below=0.5)


def replace(directory, source):
    """Put another artifact in the place of one, as `mvfoul.artifact.publish` does."""
    new = directory.with_name("new")
    shutil.copytree(source, new)
    shutil.rmtree(directory)
    new.rename(directory)


@pytest.fixture
def directory(tiny_artifact, tmp_path):
    return shutil.copytree(tiny_artifact, tmp_path / "artifact")


@pytest.fixture
def run(directory):
    """`run(scenario, **directories)`: run `scenario(engine, swapper)`, then close both."""

    def run(scenario, *, canary_share=0.0, **directories):
        async def closing():
            config, line = ServeConfig(artifact=directory, threads=1), PriorityPool(1, "graphs")
            router = Router(load_here(config, directory, "primary", line), canary_share=canary_share)
            engine = Engine(router, SETTINGS)
            swapper = Swapper(
                engine,
                LocalLoader(config, line),
                Directories(directory, **directories),
                lambda generation: Shadow(engine, generation, lambda *_: None),
            )
            try:
                await swapper.start()
                return await asyncio.wait_for(scenario(engine, swapper), 60)
            finally:
                await swapper.aclose()
                await engine.aclose()
                line.close()

        return asyncio.run(closing())

    return run


def expected(directory, views):
    graphs = OnnxGraphs(load_artifact(directory), threads=1)
    return graphs.classify(graphs.encode(views)).action_probabilities


def test_a_swap_puts_the_new_artifact_on_duty_and_closes_the_old_one(run, directory, second_artifact, views):
    async def scenario(engine, swapper):
        old = engine.router.primary
        replace(directory, second_artifact)
        versions = await swapper.swap()
        await old.closed()
        return versions, await engine.answer(views[:2], Call())

    versions, answer = run(scenario)
    assert versions == {"primary": load_artifact(second_artifact).version}
    assert answer.artifact.version == versions["primary"]
    np.testing.assert_allclose(answer.scores.action_probabilities, expected(second_artifact, views[:2]), atol=1e-5)


def test_a_request_in_flight_is_answered_by_the_artifact_that_took_it(run, directory, second_artifact, clips):
    async def scenario(engine, swapper):
        old = engine.artifact.version
        replace(directory, second_artifact)
        generation = engine.route(Call())
        swap = asyncio.create_task(swapper.swap())
        answers = [await engine.answer(clips[:1], Call(), generation)]
        await swap
        answers.append(await engine.answer(clips[:1], Call(), engine.route(Call())))
        return old, [answer.artifact.version for answer in answers]

    old, versions = run(scenario)
    assert versions == [old, load_artifact(second_artifact).version]


def test_a_session_stays_with_its_artifact_which_closes_after_it(run, directory, second_artifact, clips):
    async def scenario(engine, swapper):
        old = engine.router.primary
        call = {"client": "one", "action_id": "a"}
        await engine.answer(clips[:1], Call(**call))
        replace(directory, second_artifact)
        await swapper.swap()
        answer = await engine.answer(clips[1:2], Call(**call))
        fresh = await engine.answer(clips[:1], Call(client="two", action_id="a"))
        assert old._closing is None
        engine.sessions.close()
        await old.closed()
        return old.artifact.version, answer, fresh

    old, answer, fresh = run(scenario)
    assert (answer.artifact.version, answer.session.views) == (old, 2)
    assert fresh.artifact.version == load_artifact(second_artifact).version


def test_a_damaged_artifact_is_refused_and_the_old_one_stays(run, directory, second_artifact, views):
    async def scenario(engine, swapper):
        outcomes = []
        swapper.observe = outcomes.append
        version = engine.artifact.version
        replace(directory, second_artifact)
        (directory / ENCODER).write_bytes(b"damaged")
        with pytest.raises(ArtifactError, match="damaged"):
            await swapper.swap()
        answer = await engine.answer(views[:1], Call())
        return outcomes, version, answer.artifact.version

    outcomes, version, answered = run(scenario)
    assert outcomes == ["refused"]
    assert answered == version


def test_what_breaks_while_it_loads_is_refused_and_counted_like_what_is_refused(run, directory, second_artifact):
    async def scenario(engine, swapper):
        old, outcomes = engine.artifact.version, []
        swapper.observe = outcomes.append
        replace(directory, second_artifact)

        async def full(_directory, _role):
            raise OSError(errno.ENOSPC, "No space left on device")

        swapper._loader.load = full
        with pytest.raises(ServiceError, match="No space left on device"):
            await swapper.swap()
        return old, engine.artifact.version, outcomes

    old, now, outcomes = run(scenario)
    assert now == old
    assert outcomes == ["refused"]


def test_an_artifact_that_has_not_changed_is_not_loaded_again(run):
    async def scenario(engine, swapper):
        before = engine.router.primary
        await swapper.swap()
        return engine.router.primary is before

    assert run(scenario)


def test_the_canary_gets_its_share_and_the_same_action_always_the_same_artifact(run, second_artifact, views):
    async def scenario(engine, _):
        calls = [Call(request_id=f"request-{n}") for n in range(400)]
        roles = [engine.route(call).role for call in calls]
        again = [engine.route(call).role for call in calls]
        session = [engine.route(Call(client="c", action_id="a", request_id=str(n))).role for n in range(20)]
        canary = next(call for call, role in zip(calls, roles, strict=True) if role == "canary")
        return roles, again, session, await engine.answer(views[:1], canary)

    roles, again, session, answer = run(scenario, canary=second_artifact, canary_share=0.25)
    assert 0.15 < roles.count("canary") / len(roles) < 0.35
    assert again == roles
    assert len(set(session)) == 1
    assert (answer.role, answer.artifact.version) == ("canary", load_artifact(second_artifact).version)


def test_a_canary_that_cannot_be_loaded_is_left_out_and_the_primary_answers(run, second_artifact, tmp_path, views):
    """By then the server is ready: to end would take the primary's answers along."""
    broken = shutil.copytree(second_artifact, tmp_path / "broken")
    (broken / ENCODER).write_bytes(b"no graph")

    async def scenario(engine, swapper):
        assert engine.router.canary is None
        answer = await engine.answer(views[:1], Call())
        replace(broken, second_artifact)
        versions = await swapper.swap()
        return answer.role, versions["canary"]

    role, canary = run(scenario, canary=broken, canary_share=1.0)
    assert role == "primary"
    assert canary == load_artifact(second_artifact).version


def test_a_version_that_is_named_decides_who_answers(run, artifact, second_artifact):
    second = load_artifact(second_artifact).version

    async def scenario(engine, _):
        with pytest.raises(UnknownModelError, match="0" * 12):
            engine.route(Call(version="0" * 12))
        return [engine.route(Call(version=version)).role for version in (artifact.version, second)]

    assert run(scenario, canary=second_artifact) == ["primary", "canary"]


def test_views_that_the_canary_cannot_take_go_to_the_primary(run, second_artifact):
    async def scenario(engine, _):
        return engine.route(Call(request_id="x"), (3, 1, 2, 2)).role, engine.route(Call(request_id="x")).role

    assert run(scenario, canary=second_artifact, canary_share=1.0) == ("primary", "canary")


class Shadowed:
    """An engine with a shadow whose comparisons are noted."""

    def __init__(self, artifact, other):
        self.seen = []
        self.engine = Engine(Router(Generation(artifact, AloneBackend(OnnxGraphs(artifact, threads=1)))), SETTINGS)
        generation = Generation(other, AloneBackend(OnnxGraphs(other, threads=1)), "shadow")
        self.shadow = Shadow(self.engine, generation, lambda *seen: self.seen.append(seen))

    async def aclose(self):
        await self.shadow.aclose()
        await self.engine.aclose()


@pytest.mark.parametrize("kind", ["clips", "views"])
def test_the_shadow_is_compared_with_what_was_answered(artifact, second_artifact, clips, views, kind):
    inputs = clips[:2] if kind == "clips" else views[:2]

    async def scenario():
        both = Shadowed(artifact, load_artifact(second_artifact))
        answer = await both.engine.answer(inputs, Call())
        both.shadow.offer(inputs, answer)
        while not both.seen:
            await asyncio.sleep(0.01)
        await both.aclose()
        return answer, both.seen

    answer, [(outcome, shadow, answered)] = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert outcome == COMPARED
    assert answered == answer.prediction
    np.testing.assert_allclose(shadow.action.probabilities, expected(second_artifact, views[:2]), atol=1e-5)


def test_a_busy_shadow_is_passed_by_and_counted(artifact, views):
    async def scenario():
        both = Shadowed(artifact, artifact)
        answer = await both.engine.answer(views[:1], Call())
        for _ in range(5):
            both.shadow.offer(views[:1], answer)
        while len(both.seen) < 5:
            await asyncio.sleep(0.01)
        await both.aclose()
        return [outcome for outcome, *_ in both.seen]

    outcomes = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert sorted(outcomes) == [COMPARED] * 2 + [DROPPED] * 3


def test_a_shadow_that_fails_is_counted_and_harms_nobody(artifact, clips):
    async def scenario():
        both = Shadowed(artifact, artifact)
        answer = await both.engine.answer(clips[:1], Call())
        both.shadow.offer([b"no video"], answer)
        while not both.seen:
            await asyncio.sleep(0.01)
        await both.aclose()
        return both.seen

    [(outcome, shadow, _)] = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert (outcome, shadow) == (FAILED, None)


def test_swaps_under_load_fail_no_request_and_mix_no_answer(
    start_server, directory, tiny_artifact, second_artifact, views
):
    """By the admin call and by SIGHUP, both protocols' server; answers are compared with those of their artifact."""
    sources = {load_artifact(path).version: path for path in (tiny_artifact, second_artifact)}
    answers = {version: expected(path, views[:2]) for version, path in sources.items()}
    enough = threading.Event()

    def ask(target):
        seen = []
        with FoulClient(target) as client:
            while not enough.is_set():
                decision = client.classify_views(views[:2])
                seen.append((decision.artifact, decision.action.top2[0].probability))
        return seen

    with start_server("--admin", artifact=directory) as server, ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, server.grpc) for _ in range(3)]
        try:
            for source in (second_artifact, tiny_artifact):
                replace(directory, source)
                done = httpx.post(f"{server.http}/admin/reload", timeout=60)
                assert (done.status_code, done.json()) == (200, {"primary": load_artifact(source).version})
            replace(directory, second_artifact)
            server.process.send_signal(signal.SIGHUP)
            wanted = load_artifact(second_artifact).version
            with FoulClient(server.grpc) as client:
                while client.classify_views(views[:1]).artifact != wanted:  # pytest's timeout ends it
                    pass
            (directory / ENCODER).write_bytes(b"damaged")
            shutil.copy(tiny_artifact / "manifest.json", directory / "manifest.json")
            refused = httpx.post(f"{server.http}/admin/reload", timeout=60)
        finally:
            enough.set()
        seen = [pair for future in asking for pair in future.result()]
    assert refused.status_code == 409
    assert "damaged" in refused.json()["error"]
    assert {version for version, _ in seen} == set(sources)
    for version, probability in seen:
        assert probability == pytest.approx(answers[version].max(), abs=1e-5), version


def test_reloading_by_request_is_off_unless_asked_for(rest):
    assert rest.post("/admin/reload").status_code == 404
