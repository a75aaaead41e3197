"""Moving the contact, dropping, a server that is away, and faults: moments that only a desk without a page can choose.

The cameras are shelves with clips that lie ready; the server is a real one.
"""

from __future__ import annotations

import io
import json
import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from mvfoul.errors import UnavailableError
from serving.client import FoulClient
from serving.live import judge as judging
from serving.live.audit import LINES, AuditLog, verify
from serving.live.board import Board
from serving.live.camera import CameraCut, CameraHealth, CameraSpec
from serving.live.case import case_zip
from serving.live.clips import clip_faults
from serving.live.clock import now_s
from serving.live.config import LiveConfig
from serving.live.cutting import DeskSettings
from serving.live.desk import Desk, DeskError
from serving.live.incident import Incident
from serving.live.library import Case
from serving.live.metrics import LiveMetrics
from serving.live.recorder import Recorder
from serving.live.review import Review
from serving.live.routines import Routines
from serving.live.timecodes import Timecode

CONTACT_S = 1000.0


class Shelf:
    """A camera whose clip around each contact lies ready; `gate` holds its cuts back."""

    def __init__(self, name: str, clips: dict[float, bytes], *, latest_s: float = CONTACT_S + 5) -> None:
        self.spec, self.clips, self.latest_s = CameraSpec(name, "lavfi:testsrc2"), clips, latest_s
        self.clock_jumps = 0
        self.gate = threading.Event()
        self.gate.set()

    def picture_at(self, _instant_s: float) -> str:
        return ""

    def health(self) -> CameraHealth:
        buffer_s = 20.0 if self.latest_s > -inf else 0.0
        return CameraHealth(
            name=self.spec.name,
            state="ok",
            reason="",
            fps=25.0,
            width_px=32,
            height_px=32,
            jitter_s=0.0,
            delay_s=0.0,
            frames=0,
            dropped=0,
            reconnects=0,
            buffer_s=buffer_s,
            buffer_bytes=0,
            codec="h264",
            clock="arrival",
            clock_jumps=self.clock_jumps,
        )

    def now_s(self) -> float:
        return self.latest_s

    def wait_for(self, _instant_s: float, _timeout_s: float) -> bool:
        return True

    def cut(self, contact_s: float, *, after_s: float) -> CameraCut:
        assert after_s > 0
        assert self.gate.wait(20)
        data = self.clips[round(contact_s, 2)]
        return CameraCut(self.spec.name, data, contact_s, contact_s - 3, 100, sha256(data).hexdigest())


class Line:
    """The way to the server: `gate` holds answers back, `is_down` takes it away."""

    def __init__(self, client: FoulClient) -> None:
        self._client = client
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        self.is_down = False
        self.questions = 0

    def classify(self, clips: Any, **how: Any) -> Any:
        self.questions += 1
        self.asked.set()
        if self.is_down:
            raise UnavailableError("the server is not available.")
        decision = self._client.classify(clips, **how)
        assert self.gate.wait(20)
        return decision


class Place:
    """A desk with what it needs."""

    def __init__(self, folder: Path, cameras: list[Any], client: FoulClient) -> None:
        self.line, self.board, self.folder = Line(client), Board(), folder
        self.registry = CollectorRegistry()
        self.audit = AuditLog(folder)
        self.recorder = Recorder(self.audit, self.board)
        metrics = LiveMetrics(self.registry)
        self.desk = Desk(cameras, self.line, self.recorder, self.board, metrics, DeskSettings())

    def trigger(self) -> Incident:
        return self.desk.trigger(CONTACT_S, "timecode", now_s=CONTACT_S + 1)

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}; {self.desk.incidents()}"
            time.sleep(0.01)

    def decided(self, incident: Incident, revision: int = 1) -> None:
        self.until(lambda: len(incident.rulings) >= revision and not incident.of_state("ready"), "a decision")

    def close(self) -> None:
        self.line.gate.set()
        self.desk.close()
        self.audit.close()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line)["data"] for line in (self.folder / LINES).read_bytes().splitlines()]

    def failures(self) -> float:
        labels = {"trigger": "timecode", "outcome": "failed"}
        return self.registry.get_sample_value("mvfoul_live_decisions_total", labels) or 0.0


StartPlace = Callable[..., Place]


@pytest.fixture
def start_place(tmp_path: Path, client: FoulClient) -> Iterator[StartPlace]:
    """`start_place(camera, ...)`; `after=` another one, in its folder, as after a restart."""
    places: list[Place] = []

    def start(*cameras: Any, after: Place | None = None) -> Place:
        if after:
            places.remove(after)
            after.close()
        folder = after.folder if after else tmp_path / str(len(places))
        places.append(Place(folder, list(cameras), client))
        return places[-1]

    yield start
    for place in places:
        place.close()


def test_a_contact_that_is_moved_while_it_is_asked_about_is_decided_on_the_new_clips(
    start_place: StartPlace, clips: tuple[bytes, ...], client: FoulClient
) -> None:
    left = Shelf("left", {CONTACT_S: clips[1], CONTACT_S + 0.04: clips[2]})
    left.gate.clear()
    place = start_place(Shelf("main", {CONTACT_S: clips[0], CONTACT_S + 0.04: clips[1]}), left)
    incident = place.trigger()
    place.decided(incident)
    place.line.gate.clear()
    place.line.asked.clear()
    left.gate.set()
    assert place.line.asked.wait(20)
    place.desk.shift(incident.id, 1)
    place.until(lambda: len(incident.of_state("ready")) == 2, "the new cuts")
    place.line.gate.set()
    place.until(lambda: len(incident.of_state("used")) == 2, "a decision on the new cuts")
    place.until(lambda: len(place.lines()) == len(incident.rulings) == 2, "both decisions, none on the old pair")
    line = place.lines()[-1]
    assert line["incident"]["contact_s"] == pytest.approx(CONTACT_S + 0.04)
    assert line["engine"] == f"ONNX Runtime {version('onnxruntime')}"
    hashes = {clip["view"]: clip["sha256"] for clip in line["clips"]}
    assert hashes == {"main": sha256(clips[1]).hexdigest(), "left": sha256(clips[2]).hexdigest()}
    expected = client.classify(clips[1:3])
    assert incident.rulings[-1].document["action"]["confidence"] == pytest.approx(expected.action.confidence, abs=1e-5)


def test_a_contact_that_is_moved_while_the_disk_is_slow_is_recorded_as_it_was_decided(
    start_place: StartPlace, clips: tuple[bytes, ...]
) -> None:
    place = start_place(Shelf("main", {CONTACT_S: clips[0], CONTACT_S + 0.04: clips[1]}))
    keep = place.recorder.keep_clips

    def keep_slowly(views: Any) -> bool:
        if len(place.desk.incidents()[0]["actions"]) == 0:
            place.desk.shift(incident_id(), 1)
        return keep(views)

    def incident_id() -> str:
        return place.desk.incidents()[0]["id"]

    place.recorder.keep_clips = keep_slowly
    incident = place.trigger()
    place.decided(incident)
    place.until(lambda: len(place.lines()) == len(incident.rulings), "the lines")
    for line in place.lines():
        number = round((line["incident"]["contact_s"] - CONTACT_S) / 0.04)
        assert [clip["sha256"] for clip in line["clips"]] == [sha256(clips[number]).hexdigest()]


def test_two_quick_shifts_move_by_two_frames(start_place: StartPlace, clips: tuple[bytes, ...]) -> None:
    camera = Shelf("main", {round(CONTACT_S + i / 25, 2): clips[0] for i in range(-10, 20)})
    place = start_place(camera)
    incident = place.trigger()
    place.decided(incident)
    together = threading.Barrier(8)

    def move() -> None:
        together.wait(10)
        place.desk.shift(incident.id, 1)

    movers = [threading.Thread(target=move) for _ in range(8)]
    for mover in movers:
        mover.start()
    for mover in movers:
        mover.join()
    assert incident.shift_frames == 8
    assert incident.contact_s == pytest.approx(CONTACT_S + 8 / 25)


def test_a_camera_without_a_picture_does_not_make_an_old_contact_movable(
    start_place: StartPlace, clips: tuple[bytes, ...]
) -> None:
    main = Shelf("main", {CONTACT_S: clips[0]})
    place = start_place(main, Shelf("dead", {CONTACT_S: clips[1]}, latest_s=-inf))
    incident = place.trigger()
    place.decided(incident)
    before = [view["sha256"] for view in incident.to_json()["views"]]
    main.latest_s = CONTACT_S + 500
    with pytest.raises(DeskError, match="no camera's buffer holds this contact"):
        place.desk.shift(incident.id, 1)
    assert [view["sha256"] for view in incident.to_json()["views"]] == before
    assert all(before)


def test_a_view_that_is_dropped_while_it_is_cut_anew_comes_back_with_the_new_clip(
    start_place: StartPlace, clips: tuple[bytes, ...]
) -> None:
    left = Shelf("left", {CONTACT_S: clips[1], CONTACT_S + 0.04: clips[2]})
    place = start_place(Shelf("main", {CONTACT_S: clips[0], CONTACT_S + 0.04: clips[0]}), left)
    incident = place.trigger()
    place.until(lambda: len(incident.of_state("used")) == 2, "both views")
    left.gate.clear()
    place.desk.shift(incident.id, 1)
    place.desk.drop(incident.id, "left")
    place.desk.drop(incident.id, "left", back=True)
    assert incident.views["left"].data == b"", "it is still being cut"
    place.desk.drop(incident.id, "left")
    left.gate.set()
    place.until(lambda: incident.views["left"].data, "the cut is kept for later")
    assert incident.views["left"].state == "dropped"
    place.desk.drop(incident.id, "left", back=True)
    place.until(lambda: len(incident.of_state("used")) == 2, "both views again")
    assert incident.views["left"].data == clips[2]


def test_while_the_server_is_away_cameras_are_cut_and_each_incident_fails_once(
    start_place: StartPlace, clips: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "RETRY_S", (3.0,))
    place = start_place(*(Shelf(name, {CONTACT_S: clip}) for name, clip in zip("abc", clips, strict=False)))
    place.line.is_down = True
    incidents = [place.trigger() for _ in range(15)]
    start_s = time.monotonic()
    place.until(lambda: all(len(i.of_state("ready")) == 3 for i in incidents), "all views of all incidents are cut")
    assert time.monotonic() - start_s < 2.5, "before the first question is repeated"
    place.until(lambda: all(i.state == "failed" for i in incidents), "they fail")
    time.sleep(0.3)
    assert place.failures() == 15
    assert place.line.questions == 30
    place.line.is_down = False
    place.desk.ask_again(incidents[3].id)
    place.until(lambda: len(incidents[3].of_state("used")) == 3, "asked again")


def test_asking_again_while_the_server_is_away_begins_the_waiting_anew(
    start_place: StartPlace, clips: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "RETRY_S", (0.2, 0.2))
    place = start_place(Shelf("main", {CONTACT_S: clips[0]}))
    place.line.is_down = True
    incident = place.trigger()
    place.until(lambda: incident.state == "failed", "it fails")
    place.line.is_down = False
    place.desk.ask_again(incident.id)
    place.decided(incident)
    assert place.board.notices() == []


def test_a_fault_in_cutting_masks_the_view_and_the_others_are_decided_on(
    start_place: StartPlace, clips: tuple[bytes, ...]
) -> None:
    broken = Shelf("broken", {})
    place = start_place(Shelf("main", {CONTACT_S: clips[0]}), broken)
    incident = place.trigger()
    place.until(lambda: incident.of_state("masked"), "a KeyError masks")
    place.decided(incident)
    assert "a fault of the console" in incident.views["broken"].reason
    assert "cutting broken" in str(place.board.notices())


def test_a_page_is_never_told_an_older_list_of_notices_last() -> None:
    board = Board()
    subscriber = board.subscribe(lambda: None)
    notices, slow = board.notices, threading.Event()

    def notices_slowly() -> list[dict[str, Any]]:
        shown = notices()
        if not slow.is_set():
            slow.set()
            time.sleep(0.3)
        return shown

    board.notices = notices_slowly
    first = threading.Thread(target=board.notice, args=("a", "info", "first"))
    first.start()
    slow.wait(0.2)
    board.notice("b", "info", "second")
    first.join()
    events, _ = board.take(subscriber)
    assert events[-1].data == notices()


def test_a_page_is_never_told_an_older_state_of_an_incident_last(
    start_place: StartPlace, clips: tuple[bytes, ...]
) -> None:
    place = start_place(Shelf("main", {CONTACT_S: clips[0]}))
    incident = place.trigger()
    place.decided(incident)
    publish, told, slow = place.board.publish, [], threading.Event()

    def publish_slowly(kind: str, data: Any) -> None:
        if not slow.is_set():
            slow.set()
            time.sleep(0.3)
        told.append(data)
        publish(kind, data)

    place.board.publish = publish_slowly
    asker = threading.Thread(target=place.desk.ask_again, args=(incident.id,))
    asker.start()
    assert slow.wait(10)
    place.desk.ask_again(incident.id)
    asker.join()
    counts = [len(document["actions"]) for document in told]
    assert counts == sorted(counts)


def _routines(place: Place, cameras: list[Any], contacts: Any = (), **flags: Any) -> Routines:
    config = LiveConfig(camera=("main=lavfi:testsrc2",), audit_dir=place.folder, **flags)
    return Routines(config, cameras, place.desk, place.board, place.recorder, place.line, contacts)


def test_a_timecode_that_fails_for_an_unknown_reason_is_told_and_the_next_one_is_decided(
    start_place: StartPlace, clips: tuple[bytes, ...]
) -> None:
    start_s = now_s()
    contacts = tuple(Timecode(start_s + 0.1 * i, is_relative=False, note=str(i)) for i in range(3))
    camera = Shelf("main", dict.fromkeys((round(code.at_s, 2) for code in contacts), clips[0]))
    place = start_place(camera)
    trigger = place.desk.trigger

    def trigger_badly(contact_s: float, *what: Any, **how: Any) -> Incident:
        if how["note"] == "1":
            raise RuntimeError("nobody thought of this")
        return trigger(contact_s, *what, **how)

    place.desk.trigger = trigger_badly
    routines = _routines(place, [camera], contacts)
    routines.start()
    try:
        place.until(lambda: [i["note"] for i in place.desk.incidents()] == ["0", "2"], "the first and the last")
    finally:
        routines.stop()
    assert "a fault of the console in timecodes" in str(place.board.notices())


def test_a_camera_whose_clock_jumps_is_told_of_each_time_for_a_while(
    start_place: StartPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.live.routines.JUMP_SHOWN_S", 1.0)
    camera = Shelf("main", {})
    place = start_place(camera)
    routines = _routines(place, [camera])
    routines._look()
    assert place.board.notices() == []
    for jumps in (1, 3):
        camera.clock_jumps = jumps
        routines._look()
        assert f"camera main: its clock jumped, {jumps} times" in str(place.board.notices())
    place.board.notice("disk", "error", "a state, not an event")
    time.sleep(1.1)
    routines._look()
    assert [notice["key"] for notice in place.board.notices()] == ["disk"]


def test_a_review_that_fails_for_an_unknown_reason_says_so_and_the_next_question_works(
    start_place: StartPlace, clips: tuple[bytes, ...]
) -> None:
    place = start_place()
    review = Review({"case": Case("case", {"a": clips[0]})}, place.desk, place.line, place.board)
    classify = place.line.classify

    def classify_badly(clips: Any, **how: Any) -> Any:
        if how["priority"] == "bulk":
            raise RuntimeError("nobody thought of this")
        return classify(clips, **how)

    place.line.classify = classify_badly
    review.open("case")
    place.until(lambda: "error" in review.examinations()[0]["job"], "the page is told")
    assert "a fault of the review itself" in str(place.board.notices())
    place.line.classify = classify
    review.open("case")
    place.until(lambda: review.examinations()[1]["alone"], "the next one works")
    review.cancel()


def test_a_replay_with_the_name_of_a_camera_loses_no_clip_in_the_case(
    start_place: StartPlace, clips: tuple[bytes, ...]
) -> None:
    place = start_place(Shelf("left", {CONTACT_S: clips[0]}))
    incident = place.trigger()
    place.decided(incident)
    for name, clip in (("left.mp4", clips[1]), ("LEFT-2", clips[2]), ("left.mp4", clips[3])):
        place.desk.add_replay(incident.id, name, clip)
    archive = zipfile.ZipFile(io.BytesIO(case_zip(place.desk.complete(incident.id))))
    stored = [name for name in archive.namelist() if name.startswith("clips/")]
    assert len({name.lower() for name in stored}) == 4
    files = json.loads(archive.read("decision.json"))["files"]
    assert [archive.read(file) for file in files.values()] == list(clips[:4])


def _aged(place: Place, clip: bytes) -> Path:
    path = place.folder / "clips" / f"{sha256(clip).hexdigest()}.mp4"
    os.utime(path, (1000, 1000))
    return path


def test_old_clips_leave_by_themselves_those_in_use_stay_and_the_log_says_which(
    start_place: StartPlace, clips: tuple[bytes, ...]
) -> None:
    first = start_place(Shelf("main", {CONTACT_S: clips[0]}))
    old = first.trigger()
    first.decided(old)
    camera = Shelf("main", {CONTACT_S: clips[1]})
    place = start_place(camera, after=first)
    new = place.trigger()
    place.decided(new)
    gone, used = _aged(place, clips[0]), _aged(place, clips[1])
    routines = _routines(place, [camera], keep_days=30.0)
    routines.start()
    place.until(lambda: not gone.exists(), "the policy is applied")
    routines.stop()
    assert used.exists(), "its incident can be asked about again"
    assert place.lines()[-1] == {"removed": [gone.stem]}
    assert clip_faults(place.folder) == ([], 1, 1)
    assert verify(place.folder).faults == ()
    with pytest.raises(DeskError, match="no longer kept"):
        place.desk.ask_again(old.id)
    place.desk.ask_again(new.id)
    place.decided(new, revision=2)


def test_no_clip_leaves_where_the_log_cannot_say_so(start_place: StartPlace, clips: tuple[bytes, ...]) -> None:
    camera = Shelf("main", {CONTACT_S: clips[0]})
    first = start_place(camera)
    first.decided(first.trigger())
    place = start_place(camera, after=first)
    path = _aged(place, clips[0])
    routines = _routines(place, [camera], keep_gib=0.0)
    head = place.folder / "head.json.tmp"
    head.mkdir()
    routines._tidy()
    assert path.exists()
    assert "old clips are not removed" in str(place.board.notices())
    head.rmdir()
    routines._tidy()
    assert not path.exists()
    assert place.board.notices() == []
