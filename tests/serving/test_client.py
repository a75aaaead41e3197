"""The client as people and scripts use it."""

from __future__ import annotations

import json
import re
import socket

import pytest

from mvfoul.errors import RequestError, RequestTooLargeError, UnavailableError, UnknownModelError
from mvfoul.labels import ACTION_CLASSES, OFFENCE_SEVERITIES
from serving.client import FoulClient


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


def test_an_unreachable_server_exits_3(run_module, files):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(run_module("serving.client", files[0], "--target", target), 3, f"{target} is not available")


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
        pytest.raises(UnavailableError, match="did not answer within"),
    ):
        hasty.classify(clips)


def test_a_decision_carries_all_probabilities_of_both_heads(client: FoulClient, clips: tuple[bytes, ...]) -> None:
    decision = client.classify(clips[:1])
    assert [len(decision.probabilities[head]) for head in ("action", "offence_severity")] == [8, 4]
    assert max(decision.probabilities["action"]) == pytest.approx(decision.action.confidence, abs=1e-6)
