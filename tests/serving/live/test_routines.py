"""Timecodes, the continuous mode's filter, the clock's watch, the flags, sessions with the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mvfoul.errors import ConfigError, UnavailableError
from serving.client import FoulClient
from serving.live.clock import now_s
from serving.live.clock_watch import ClockWatch
from serving.live.config import ContinuousConfig, LiveConfig
from serving.live.continuous import CandidateFilter
from serving.live.session import ServerSession
from serving.live.timecodes import read_timecodes
from tests.serving.forgetful import losing


def test_timecodes_are_unix_seconds_iso_or_relative_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# all kinds\n+1.5 after the start\n1764099900.25\n2025-11-25T19:45:00Z  corner # left\n\n")
    codes = read_timecodes(path)
    assert [code.contact_s(100.0) for code in codes] == [101.5, 1764099900.25, 1764099900.0]
    assert [code.note for code in codes] == ["after the start", "", "corner"]


@pytest.mark.parametrize("line", ["soon", "2025-11-25T19:45:00", "-5", "nan", "inf"])
def test_a_timecode_that_is_none_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"+1\n{line}\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_timecodes(path)


def test_one_incident_is_one_candidate_and_a_single_high_answer_is_none() -> None:
    watch = CandidateFilter(ContinuousConfig(every_s=1, threshold=0.7, release=0.4, smoothing=0.5))
    answers = [0.1, 0.9, 0.1, 0.9, 0.9, 0.9, 0.6, 0.9, 0.1, 0.1, 0.9, 0.9, 0.9]
    assert [i for i, answer in enumerate(answers) if watch.update(answer)] == [4, 11]


def test_a_dip_between_the_two_thresholds_does_not_begin_a_second_candidate() -> None:
    watch = CandidateFilter(ContinuousConfig(every_s=1, threshold=0.7, release=0.4, smoothing=0.5))
    answers = [0.9, 0.9, 0.9, 0.3, 0.9, 0.9, 0.9]  # the level falls to 0.54 and rises to 0.81
    assert [i for i, answer in enumerate(answers) if watch.update(answer)] == [2]


def test_a_clock_that_is_set_is_told_of_once() -> None:
    off_s = 0.0
    watch = ClockWatch(lambda: now_s() + off_s)
    assert watch.jump() == ""
    off_s = -3600.0
    assert "jumped by -3600.0 s" in watch.jump()
    assert watch.jump() == ""
    off_s = -3599.9
    assert watch.jump() == "", "slewing is no jump"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"camera": ("main=a", "main=b")}, "There is a camera 'main' already"),
        ({"camera": ("rtsp://host/x?a=b",)}, "Use NAME=VALUE"),
        ({"camera": ("main=a",), "camera_offset": ("left=1",)}, "There is no camera 'left'"),
        ({"camera": ("main=a",), "camera_offset": ("main=late",)}, "NAME=SECONDS"),
        ({"camera": ("main=a",), "buffer_s": 5.0}, "Use 12 or more"),
        ({"camera": ("main=a",), "allowed_host": ("http://stadium",)}, "Use a name, without scheme and port"),
        ({"camera": ("main=a",), "contact_offset_s": -1.0}, "Use 0 or more, 3 less than the buffer at most"),
        ({}, "Pass cameras, or --review DIR"),
        ({"camera": ("main=a",), "review": Path()}, "Pass cameras, or --review DIR"),
    ],
)
def test_flags_that_make_no_sense_are_refused_with_the_cure(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        LiveConfig(**flags)


def test_cameras_keep_their_order_and_get_their_offsets() -> None:
    config = LiveConfig(camera=("main=rtsp://h/?a=b", "left=x.mp4"), camera_offset=("left=-0.08",))
    assert config.cameras() == {"main": ("rtsp://h/?a=b", 0.0), "left": ("x.mp4", -0.08)}


def test_a_session_sends_each_view_once_and_answers_as_all_at_once(
    client: FoulClient, clips: tuple[bytes, ...]
) -> None:
    session = ServerSession(client)
    one, order = session.ask({"a": clips[0]})
    assert order == ("a",)
    both, order = session.ask({"a": clips[0], "b": clips[1]})
    assert order == ("a", "b")
    assert both.session is not None
    assert both.session.views == 2
    assert both.action.confidence == pytest.approx(client.classify(clips[:2]).action.confidence, abs=1e-5)
    without, order = session.ask({"b": clips[1]})
    assert order == ("b",)
    assert without.action.confidence == pytest.approx(client.classify(clips[1:2]).action.confidence, abs=1e-5)
    assert one.view_weights == without.view_weights == (1.0,)


def test_a_session_that_the_server_forgot_is_sent_whole(client: FoulClient, clips: tuple[bytes, ...]) -> None:
    session = ServerSession(client)
    session.ask({"a": clips[0], "b": clips[1]})
    session._action_id = "another, as after a restart"
    decision, order = session.ask({"a": clips[0], "b": clips[1], "c": clips[2]})
    assert order == ("a", "b", "c")
    assert len(decision.view_weights) == 3
    session._action_id = "once more"
    decision, order = session.ask({"b": clips[1], "c": clips[2]})
    assert (order, len(decision.view_weights)) == (("b", "c"), 2)


def test_a_lost_answer_to_a_dropped_view_drops_no_other(server: Any, clips: tuple[bytes, ...]) -> None:
    """The console asks again by itself: in a new session, that is sent what is shown."""
    views = dict(zip("abc", clips, strict=False))
    with losing(server.grpc, answer=1) as target, FoulClient(target) as client:
        session = ServerSession(client)
        session.ask(views)
        del views["a"]
        with pytest.raises(UnavailableError, match="connection lost"):
            session.ask(views)
        decision, order = session.ask(views)
        assert (order, len(decision.view_weights)) == (("b", "c"), 2)
        assert decision.view_weights == pytest.approx(client.classify(clips[1:3]).view_weights, abs=1e-5)


def test_a_session_knows_a_view_by_its_content_too(client: FoulClient, clips: tuple[bytes, ...]) -> None:
    session = ServerSession(client)
    session.ask({"a": clips[0], "b": clips[1]})
    decision, order = session.ask({"a": clips[2], "b": clips[1]})
    assert sorted(order) == ["a", "b"]
    assert decision.session is not None
    assert decision.session.views == 2
    expected = client.classify((clips[1], clips[2]))
    assert decision.action.confidence == pytest.approx(expected.action.confidence, abs=1e-5)
