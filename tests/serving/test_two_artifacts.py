"""Servers with `--canary` and `--shadow` as they are started: who answers, and what the metrics say of it."""

from __future__ import annotations

from collections import Counter

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mvfoul.artifact import load_artifact
from mvfoul.errors import UnknownModelError
from mvfoul.labels import VOCABULARIES
from serving.client import FoulClient

REQUESTS = 24


@pytest.fixture(scope="module")
def versions(tiny_artifact, second_artifact):
    """Of the primary, and of the other artifact."""
    return tuple(load_artifact(directory).version for directory in (tiny_artifact, second_artifact))


@pytest.fixture(scope="module")
def with_canary(start_server, second_artifact):
    with start_server("--canary", str(second_artifact), "--canary-share", "0.5") as server:
        yield server


@pytest.fixture
def ask(with_canary):
    with FoulClient(with_canary.grpc) as client:
        yield client


def counted(server, name, label, **labels):
    """The samples of a counter by one of its labels, of those that have the other ones."""
    families = text_string_to_metric_families(httpx.get(f"{server.http}/metrics", timeout=30).text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return {s.labels[label]: s.value for s in samples if labels.items() <= s.labels.items()}


def routed(server):
    return Counter(counted(server, "mvfoul_routed_requests_total", "role"))


def test_half_of_the_requests_get_the_canary_and_the_metric_says_how_many(with_canary, ask, versions, views):
    before = routed(with_canary)
    answered = [ask.classify_views(views[:1], request_id=f"request {n}") for n in range(REQUESTS)]
    moved = routed(with_canary)
    moved.subtract(before)
    by_version = Counter(decision.artifact for decision in answered)
    assert by_version.keys() == set(versions)
    assert min(by_version.values()) >= REQUESTS / 6
    assert moved == {"primary": by_version[versions[0]], "canary": by_version[versions[1]]}
    # Whose answer it is, not only whose name stands on it.
    assert len({(decision.artifact, round(decision.action.confidence, 4)) for decision in answered}) == 2
    again = [ask.classify_views(views[:1], request_id=f"request {n}").artifact for n in range(REQUESTS)]
    assert again == [decision.artifact for decision in answered]


def test_an_action_whose_views_arrive_one_by_one_is_answered_by_one_artifact(ask, versions, views):
    seen = {}
    for view in range(3):
        for action in range(8):
            decision = ask.classify_views(views[view : view + 1], action_id=f"action {action}")
            assert decision.session.views == view + 1
            seen.setdefault(action, set()).add(decision.artifact)
    assert all(len(artifacts) == 1 for artifacts in seen.values())
    assert set().union(*seen.values()) == set(versions)


def test_a_version_that_is_named_answers(with_canary, ask, versions, views):
    assert ask.metadata().versions == versions
    for role, version in zip(("primary", "canary"), versions, strict=True):
        before = routed(with_canary)[role]
        ask.pin(version)
        assert {ask.classify_views(views[:1]).artifact for _ in range(4)} == {version}
        assert routed(with_canary)[role] == before + 4
    ask.pin("0" * 12)
    with pytest.raises(UnknownModelError, match="0" * 12):
        ask.classify_views(views[:1])


def test_both_are_shown_as_on_duty(with_canary, versions):
    assert counted(with_canary, "mvfoul_artifact_info", "role", version=versions[0]) == {"primary": 1}
    assert counted(with_canary, "mvfoul_artifact_info", "role", version=versions[1]) == {"canary": 1}


@pytest.fixture
def agreeing(ask, versions, clips):
    """Whether both artifacts say the same of two clips, by head; asked by their versions."""
    answers = []
    for version in versions:
        ask.pin(version)
        answers.append(ask.classify(clips[:2]).document)
    return {head: answers[0][head]["label"] == answers[1][head]["label"] for head in VOCABULARIES}


def test_a_shadow_is_compared_and_never_answers(start_server, second_artifact, versions, clips, agreeing, wait_until):
    def compared():
        return counted(server, "mvfoul_shadow_answers_total", "outcome")["compared"]

    with start_server("--shadow", str(second_artifact)) as server, FoulClient(server.grpc) as client:
        primary, other = versions
        assert client.metadata().versions == (primary,)
        assert counted(server, "mvfoul_artifact_info", "role", version=other) == {"shadow": 1}
        for number in range(4):
            assert client.classify(clips[:2]).artifact == primary
            wait_until(lambda number=number: compared() == number + 1, "compared with the shadow")
        assert client.classify(clips[:1], action_id="a").artifact == primary  # a session is not offered
        assert client.classify(clips[:2]).artifact == primary
        wait_until(lambda: compared() == 5, "compared with the shadow")
        assert counted(server, "mvfoul_shadow_answers_total", "outcome") == {"compared": 5, "dropped": 0, "failed": 0}
        for head in VOCABULARIES:
            agreements = counted(server, "mvfoul_shadow_agreements_total", "agrees", head=head)
            assert agreements == {"true": 5 * agreeing[head], "false": 5 * (not agreeing[head])}
        assert routed(server) == {"primary": 6, "canary": 0}
        client.pin(other)
        with pytest.raises(UnknownModelError, match=other):
            client.classify(clips[:1])
    assert "Traceback" not in server.log.read_text()
