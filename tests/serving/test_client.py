"""The client as people and scripts use it."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import socket
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2_grpc

from mvfoul.errors import (
    ConfigError,
    DeadlineError,
    OverloadedError,
    RequestError,
    RequestTooLargeError,
    UnavailableError,
    UnknownModelError,
)
from mvfoul.labels import ACTION_CLASSES, OFFENCE_SEVERITIES
from serving.client import AsyncFoulClient, FoulClient
from serving.client.connection import Connection
from serving.client.question import Question
from tests.serving.forgetful import losing


@pytest.fixture(scope="module")
def files(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for v, clip in enumerate(clips):
        (folder / f"clip_{v}.mp4").write_bytes(clip)
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def ask(run_module, server):
    return lambda *arguments: run_module("serving.client", *arguments, "--target", server.grpc)


def refused(done, code, sentence):
    assert done.returncode == code
    assert sentence in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_the_decision_is_printed_for_people(ask, files, artifact):
    done = ask(*files[:2])
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    titles = ["action class", "offence severity", "view weights", "latency", "answered by"]
    assert [line[:18].strip() for line in lines] == titles
    assert sum(name in lines[0] for name in ACTION_CLASSES) >= 2
    assert sum(name in lines[1] for name in OFFENCE_SEVERITIES) >= 2
    assert re.search(r"clip_0\.mp4 \d\.\d\d   clip_1\.mp4 \d\.\d\d", lines[2])
    assert re.search(r"\d ms, of which server .* ms \(decode .*, queue .*, encode .*, head ", lines[3])
    assert artifact.version in lines[4]


def test_json_is_one_object_in_one_line_for_scripts(ask, files, client, clips):
    done = ask("--json", *files[:2])
    assert done.returncode == 0
    decision = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    for key in ("action", "offence_severity", "view_weights", "artifact"):
        assert decision[key] == client.classify(clips[:2]).document[key]
    assert decision["client_ms"] > decision["timings_ms"]["total"]


def test_an_abstaining_head_is_shown_as_such_and_is_a_decision(start_server, run_module, files):
    with start_server("--abstain-below", "1") as server:
        done = run_module("serving.client", files[0], "--target", server.grpc)
    assert done.returncode == 0
    assert re.match(r"action class +abstains; at best .*\d%, then ", done.stdout)


def test_a_refused_clip_exits_2_and_names_it(ask, files, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    refused(ask(files[0], str(bad)), 2, "CLIPS[1]: ")


def test_six_clips_exit_2(ask, files):
    refused(ask(*files, files[0]), 2, "6 views; send from 1 to 5")


def test_an_unknown_model_exits_2(ask, files):
    refused(ask(files[0], "--model-name", "resnet"), 2, "model 'resnet' is not served here")


def test_an_oversized_request_exits_2_with_the_cure(ask, tmp_path):
    (tmp_path / "large.mp4").write_bytes(bytes(17 << 20))
    refused(ask(str(tmp_path / "large.mp4")), 2, "--max-request-bytes")


def test_a_missing_file_exits_2(ask, tmp_path):
    refused(ask(str(tmp_path / "none.mp4")), 2, "No such file or directory")


@pytest.mark.parametrize("arguments", [(), ("x.mp4", "--timeout-s", "0"), ("x.mp4", "--frames", "3")])
def test_bad_usage_exits_2_without_a_traceback(run_module, arguments):
    done = run_module("serving.client", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_an_unreachable_server_exits_3(run_module, files, dead_target):
    refused(run_module("serving.client", files[0], "--target", dead_target), 3, f"{dead_target} is not available")


def test_a_server_that_does_not_answer_in_time_exits_3(run_module, files):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        done = run_module("serving.client", files[0], "--target", target, "--timeout-s", "0.5")
    refused(done, 3, "did not answer within 0.5 s")


def test_the_class_raises_one_error_per_cure(server, client, clips):
    with pytest.raises(RequestError, match="0 views"):
        client.classify([])
    with pytest.raises(RequestTooLargeError):
        client.classify([bytes(17 << 20)])
    with FoulClient(server.grpc, model_name="x") as other, pytest.raises(UnknownModelError):
        other.classify(clips)
    with (
        FoulClient(server.grpc, timeout_s=1e-4) as hasty,
        pytest.raises(DeadlineError, match="did not answer within"),
    ):
        hasty.classify(clips)


def test_a_decision_carries_all_probabilities_of_both_heads(client: FoulClient, clips: tuple[bytes, ...]) -> None:
    decision = client.classify(clips[:1])
    assert [len(decision.probabilities[head]) for head in ("action", "offence_severity")] == [8, 4]
    assert max(decision.probabilities["action"]) == pytest.approx(decision.action.confidence, abs=1e-6)


def same_methods(kind):
    return {n: list(inspect.signature(m).parameters) for n, m in inspect.getmembers(kind, callable) if n[0] != "_"}


def test_both_clients_have_the_same_methods():
    assert same_methods(FoulClient) == same_methods(AsyncFoulClient)


def test_the_async_client_answers_as_the_other_and_many_at_a_time(server, client, clips, views):
    async def ask():
        async with AsyncFoulClient(server.grpc, retries=8) as other:
            assert await other.ready()
            assert await other.metadata() == client.metadata()
            answers = [other.classify(clips[:2], request_id=f"r{n}", priority="bulk") for n in range(6)]
            return await asyncio.gather(*answers, other.classify_views(views[:2]))

    *decisions, from_views = asyncio.run(ask())
    expected = client.classify(clips[:2])
    assert [decision.request_id for decision in decisions] == [f"r{n}" for n in range(6)]
    assert {decision.probabilities["action"] for decision in decisions} == {expected.probabilities["action"]}
    assert from_views.probabilities == client.classify_views(views[:2]).probabilities


def test_views_of_one_action_can_arrive_one_by_one(client, clips):
    first = client.classify(clips[:1], action_id="one by one")
    assert (first.session.action_id, first.session.views) == ("one by one", 1)
    assert first.session.expires_in_s > 0
    both = client.classify(clips[1:2], action_id="one by one")
    assert both.session.views == len(both.view_weights) == 2
    assert both.probabilities["action"] == pytest.approx(client.classify(clips[:2]).probabilities["action"], abs=1e-5)
    left = client.classify([], action_id="one by one", drop_views=[0])
    assert left.probabilities["action"] == pytest.approx(client.classify(clips[1:2]).probabilities["action"], abs=1e-5)
    assert client.classify(clips[:1]).session is None


def test_a_session_in_the_shell_names_the_views_it_has(ask, files):
    ask(files[0], "--action-id", "shell")
    done = ask(files[1], "--action-id", "shell", "--priority", "bulk", "--request-id", "mine")
    assert re.search(r"view 0 \d\.\d\d   clip_1\.mp4 \d\.\d\d", done.stdout)
    assert "request mine" in done.stdout
    done = ask("--action-id", "shell", "--drop-views", "0")
    assert (done.returncode, "view 0 1.00" in done.stdout) == (0, True)


def test_the_model_tells_what_it_takes(client, server, artifact):
    info = client.metadata()
    assert (info.name, info.versions) == ("mvfoul", (server.artifact,))
    assert info.view_shape == artifact.manifest.clip.view_shape
    assert (info.inputs[0].name, info.inputs[0].shape) == ("CLIPS", (-1,))
    assert client.ready()


def test_nobody_there_is_not_ready(dead_target):
    with FoulClient(dead_target) as client:
        assert not client.ready()


@pytest.fixture
def dead_target():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("kind", [FoulClient, AsyncFoulClient])
@pytest.mark.parametrize("arguments", [{"timeout_s": 0}, {"timeout_s": 1e6}, {"retries": -1}, {"token": "a b"}])
def test_senseless_settings_are_refused(kind, arguments):
    with pytest.raises(ConfigError):
        kind("127.0.0.1:1", **arguments)


def test_senseless_arguments_are_refused_before_anything_is_sent(dead_target):
    with FoulClient(dead_target) as client:
        with pytest.raises(RequestError, match="priority is 'soon'"):
            client.classify([b"x"], priority="soon")
        with pytest.raises(RequestError, match="dtype float32"):
            client.classify_views(np.zeros((1, 3, 2, 4, 4), dtype=np.float32))
        with pytest.raises(ConfigError, match="timeout_s is -1"):
            client.classify([b"x"], timeout_s=-1)


class Grudging(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A stranger's server: it refuses, notes what it was asked, and never answers."""

    def __init__(self, status):
        self.status = status
        self.requests = []

    def ModelInfer(self, request, context):  # noqa: N802
        self.requests.append((request, time.monotonic(), context.time_remaining(), dict(context.invocation_metadata())))
        context.abort(self.status, "no room")


@pytest.fixture
def grudging():
    """`grudging(grpc.StatusCode.UNAVAILABLE)`: the servicer and its address."""
    server = grpc.server(futures.ThreadPoolExecutor(2))

    def start(status):
        servicer = Grudging(status)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return servicer, f"127.0.0.1:{port}"

    yield start
    server.stop(None).wait()


def ask_with(kind, target, question=None, **settings):
    """Ask with one of the two clients; `question`: arguments of `classify`."""
    question = question or {}
    if kind is FoulClient:
        with FoulClient(target, **settings) as client:
            return client.classify([b"clip"], **question)

    async def ask():
        async with AsyncFoulClient(target, **settings) as client:
            return await client.classify([b"clip"], **question)

    return asyncio.run(ask())


@pytest.mark.parametrize("kind", [FoulClient, AsyncFoulClient])
@pytest.mark.parametrize(
    ("status", "error"),
    [(grpc.StatusCode.UNAVAILABLE, UnavailableError), (grpc.StatusCode.RESOURCE_EXHAUSTED, OverloadedError)],
)
def test_what_is_worth_it_is_sent_again_with_growing_pauses(grudging, kind, status, error):
    servicer, target = grudging(status)
    with pytest.raises(error, match="no room"):
        ask_with(kind, target, retries=3)
    requests, moments, _, _ = zip(*servicer.requests, strict=True)
    assert len({request.id for request in requests}) == 1
    assert [request.inputs[0].name for request in requests] == ["CLIPS"] * 4
    pauses = np.diff(moments)
    assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2), strict=True))


@pytest.mark.parametrize("kind", [FoulClient, AsyncFoulClient])
def test_what_no_repetition_cures_is_sent_once(grudging, kind):
    servicer, target = grudging(grpc.StatusCode.INVALID_ARGUMENT)
    with pytest.raises(RequestError):
        ask_with(kind, target, retries=3)
    assert len(servicer.requests) == 1


@pytest.mark.parametrize("kind", [FoulClient, AsyncFoulClient])
@pytest.mark.parametrize(
    ("status", "dropped", "times"),
    [
        (grpc.StatusCode.UNAVAILABLE, (0,), 1),
        (grpc.StatusCode.CANCELLED, (0,), 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, (0,), 3),
        (grpc.StatusCode.UNAVAILABLE, (), 3),
    ],
)
def test_what_may_have_dropped_a_view_is_not_sent_again(grudging, kind, status, dropped, times):
    servicer, target = grudging(status)
    with pytest.raises((UnavailableError, OverloadedError), match="no room"):
        ask_with(kind, target, {"action_id": "a", "drop_views": dropped}, retries=2)
    assert len(servicer.requests) == times


def test_a_lost_answer_drops_no_second_view(client, server, clips):
    client.classify(clips[:3], action_id="lost drop")
    with losing(server.grpc) as target, FoulClient(target, retries=3) as other:  # noqa: SIM117
        with pytest.raises(UnavailableError, match="connection lost"):
            other.classify([], action_id="lost drop", drop_views=[0])
    left = client.classify([], action_id="lost drop")
    assert left.view_weights == pytest.approx(client.classify(clips[1:3]).view_weights, abs=1e-5)


def test_a_lost_answer_to_a_new_view_is_asked_for_again_and_the_view_is_there_once(client, server, clips):
    client.classify(clips[:1], action_id="lost view")
    with losing(server.grpc) as target, FoulClient(target, retries=3) as other:
        assert other.classify(clips[1:2], action_id="lost view").session.views == 2


def test_however_often_it_is_asked_the_pause_stays_the_longest():
    """A server that is away for an hour is asked over a thousand times."""
    connection = Connection(target="127.0.0.1:1", model_name="mvfoul", timeout_s=3600, retries=1_000_000)
    question = Question(connection, [b"clip"], request_id="", parameters={}, priority="bulk", timeout_s=None)
    pauses = [question.pause_after("StatusCode.UNAVAILABLE", "away") for _ in range(1500)]
    assert pauses[0] <= 0.1
    assert all(1 <= pause <= 2 for pause in pauses[10:])


def test_repetitions_end_with_the_time_to_answer(grudging):
    servicer, target = grudging(grpc.StatusCode.UNAVAILABLE)
    start = time.monotonic()
    with pytest.raises(UnavailableError, match=r"no room \(request [0-9a-f]{32}\)"):
        ask_with(FoulClient, target, retries=100, timeout_s=0.6)
    assert time.monotonic() - start < 1
    assert 2 <= len(servicer.requests) < 6


def test_deadline_token_and_priority_go_along(grudging):
    servicer, target = grudging(grpc.StatusCode.INVALID_ARGUMENT)
    with pytest.raises(RequestError):
        ask_with(FoulClient, target, timeout_s=5, token="secret")  # noqa: S106
    ((request, _, left_s, metadata),) = servicer.requests
    assert 4 < request.parameters["timeout"].int64_param / 1e6 <= 5
    assert 4 < left_s <= 5
    assert request.parameters["priority"].uint64_param == 1
    assert metadata["authorization"] == "Bearer secret"


def test_a_token_is_in_no_text_of_the_client():
    client = FoulClient("127.0.0.1:1", token="secret")  # noqa: S106
    assert "secret" not in repr(client) + repr(vars(client))


class Waiting(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A server that answers nobody and notes who hangs up."""

    def __init__(self):
        self.asked, self.hung_up = threading.Event(), threading.Event()

    def ModelInfer(self, request, context):  # noqa: N802, ARG002
        context.add_callback(self.hung_up.set)
        self.asked.set()
        self.hung_up.wait(20)


def test_a_cancelled_question_is_cancelled_on_the_server():
    server, servicer = grpc.server(futures.ThreadPoolExecutor(2)), Waiting()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()

    async def ask():
        async with AsyncFoulClient(target) as client:
            task = asyncio.create_task(client.classify([b"clip"]))
            assert await asyncio.to_thread(servicer.asked.wait, 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(servicer.hung_up.wait, 20)

    asyncio.run(ask())
    server.stop(None).wait()
