"""The console over HTTP: triggers, masked cameras, bad input, a full disk, kill -9. Real cameras and a real server."""

from __future__ import annotations

import io
import itertools
import json
import re
import resource
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.struct_pb2 import Struct

from mvfoul.clip import preset
from mvfoul.video import decode_clip
from serving.live.audit import verify
from serving.live.clips import clip_faults


def test_every_camera_is_cut_at_the_same_instant(console: Any, frame_numbers: Callable[..., list[int]]) -> None:
    name = console.trigger(1.5)
    incident = console.decided(name, views=3)
    spec = preset("two-second", num_frames=8, size_px=32)
    for view in incident["views"]:
        clip = httpx.get(f"{console.url}/api/clips/{view['sha256']}.mp4").content
        numbers = frame_numbers(decode_clip(clip, spec))
        steps = {(b - a) % 250 for a, b in itertools.pairwise(numbers)}
        assert steps <= {5, 6, 7, 8}, "consecutive pictures of one loop"


@pytest.fixture(scope="module")
def troubled(
    start_console: Any,
    scenes: dict[str, str],
    unsure_server: Any,
    numbered_clip: Any,
    until_ready: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """A console with bad cameras, a late one, a list of timecodes and the continuous mode."""
    timecodes = tmp_path_factory.mktemp("timecodes") / "contacts.txt"
    timecodes.write_text("# contacts\n+8 corner\n")
    odd = numbered_clip(frames=60, container="mkv", codec="ffv1", pix_fmt="yuv420p")
    cameras = {**scenes, "roof": "tcp://127.0.0.1:9", "odd": str(odd)}
    flags = [word for name, url in cameras.items() for word in ("--camera", f"{name}={url}")]
    # Its clock is behind, so its pictures of an instant arrive two seconds late.
    flags += ["--camera-offset", "right=-2", "--server", unsure_server.grpc, "--timecodes", str(timecodes)]
    flags += ["--continuous.every-s", "0.5", "--continuous.threshold", "0.6", "--continuous.smoothing", "0.4"]
    with start_console(*flags) as console:
        until_ready(console, cameras=2)
        yield console
    assert verify(console.audit).faults == ()
    assert clip_faults(console.audit)[0] == []


def test_the_first_answer_comes_before_the_last_camera_and_each_is_recorded(troubled: Any) -> None:
    name = troubled.trigger(1.5)
    troubled.until(lambda _: troubled.incident(name)["rulings"], "a first answer")
    states = {view["name"]: view["state"] for view in troubled.incident(name)["views"]}
    assert states["right"] == "waiting"
    incident = troubled.decided(name, views=3)
    lines = [ruling["line"] for ruling in incident["rulings"]]
    assert lines == sorted(set(lines))
    assert lines[0] > 0
    assert incident["rulings"][-1]["stages_s"]["total"] > incident["rulings"][0]["stages_s"]["total"] + 0.5


def test_cameras_without_a_picture_are_masked_told_of_and_stop_nothing(troubled: Any) -> None:
    incident = troubled.decided(troubled.trigger(1.5), views=3)
    masked = {view["name"]: view["reason"] for view in incident["views"] if view["state"] == "masked"}
    assert set(masked) == {"roof", "odd"}
    told = " ".join(notice["text"] for notice in troubled.state()["notices"])
    assert "camera roof is gone" in told
    assert "camera odd is wrong_codec" in told
    assert "camera roof is gone" in troubled.text()
    metrics = httpx.get(f"{troubled.url}/metrics").text
    assert 'mvfoul_live_camera_up{camera="main"} 1.0' in metrics
    assert 'mvfoul_live_camera_up{camera="roof"} 0.0' in metrics


def test_timecodes_and_the_continuous_mode_trigger_by_themselves(troubled: Any) -> None:
    def decided_by(trigger: str) -> list[dict[str, Any]]:
        return [i for i in troubled.state()["incidents"] if i["trigger"] == trigger and i["rulings"]]

    troubled.until(lambda _: decided_by("timecode"), "the list")
    assert decided_by("timecode")[0]["note"] == "corner"
    # The tiny model sees an offence everywhere: the level stays up, and that is one candidate, not many.
    troubled.until(lambda s: s["watching"]["level"] > 0.75, "the level rises")
    troubled.until(lambda _: decided_by("continuous"), "a candidate")
    assert len(decided_by("continuous")) == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/api/trigger", {"seconds_ago": 500}, 422, "the buffers hold 20 s"),
        ("/api/trigger", {"seconds_ago": -1}, 422, "greater than or equal to 0"),
        ("/api/trigger", {"contact_s": 12.0}, 422, "s ago"),
        ("/api/incidents/none/ask", {}, 409, "there is no incident 'none'"),
        ("/api/incidents/none/shift", {"frames": 9999}, 422, "less than or equal to 250"),
        ("/api/incidents/none/replay?name=x", None, 422, "empty"),
    ],
)
def test_requests_that_make_no_sense_are_refused_in_words(
    console: Any, path: str, body: Any, status: int, says: str
) -> None:
    response = console.post(path, body)
    assert (response.status_code, says in response.text) == (status, True), response.text


def test_a_trigger_over_grpc_opens_an_incident_and_nonsense_is_refused(console: Any) -> None:
    def trigger(**fields: Any) -> Any:
        with grpc.insecure_channel(console.grpc) as channel:
            call = channel.unary_unary(
                "/mvfoul.live.Console/Trigger",
                request_serializer=Struct.SerializeToString,
                response_deserializer=Struct.FromString,
            )
            request = Struct()
            request.update(fields)
            return call(request, timeout=20)

    name = trigger(seconds_ago=1.5, note="by gRPC")["id"]
    assert console.decided(name, views=3)["note"] == "by gRPC"
    for fields in ({"seconds_ago": 500}, {"seconds_ago": "soon"}):
        with pytest.raises(grpc.RpcError) as refused:
            trigger(**fields)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_pages_of_other_origins_can_do_nothing(console: Any) -> None:
    count = len(console.state()["incidents"])
    assert console.post("/api/trigger", {}, headers={"Origin": "http://evil.example"}).status_code == 403
    assert len(console.state()["incidents"]) == count


def _ask_as(console: Any, host: str, path: str, *, method: str = "GET") -> httpx.Response:
    origin = {"Origin": f"http://{host}"} if method == "POST" else {}
    content = b"{}" if method == "POST" else None
    headers = {"Host": host, "Content-Type": "application/json", **origin}
    with httpx.stream(method, f"{console.url}{path}", headers=headers, content=content, timeout=20) as response:
        if response.status_code != 200:
            response.read()
        return response


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/api/state"),
        ("GET", "/api/events"),
        ("GET", f"/api/clips/{'0' * 64}.mp4"),
        ("POST", "/api/trigger"),
    ],
)
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8090", "127.0.0.1.evil.example", "localhost@evil", ""])
def test_a_name_that_somebody_let_resolve_to_this_machine_is_refused(
    console: Any, host: str, method: str, path: str
) -> None:
    count = len(console.state()["incidents"])
    response = _ask_as(console, host, path, method=method)
    assert response.status_code == 421
    assert "--allowed-host" in response.text
    assert len(console.state()["incidents"]) == count


def test_a_console_answers_to_localhost_any_address_and_allowed_names(console: Any) -> None:
    for host in ("localhost:1", "LOCALHOST.", "127.0.0.1", "10.1.2.3:8090", "[::1]:8090", "console.stadium"):
        assert _ask_as(console, host, "/api/state").status_code == 200, host


def test_a_replay_that_is_no_video_is_refused_by_name_and_the_decision_stays(console: Any) -> None:
    name = console.trigger(1.5)
    console.decided(name, views=3)
    console.post(f"/api/incidents/{name}/replay?name=bad.mp4", content=b"no video at all")
    console.until(lambda _: console.incident(name)["views"][-1]["state"] == "refused", "the replay is refused")
    incident = console.incident(name)
    assert "CLIPS[" in incident["views"][-1]["reason"] or "clip" in incident["views"][-1]["reason"]
    assert len(incident["rulings"][-1]["views"]) == 3


def test_a_double_press_is_one_incident(console: Any) -> None:
    assert console.trigger(1.5, source="operator") == console.trigger(1.5, source="operator")


def test_a_case_is_exported_with_clips_decision_and_a_report_that_needs_nothing_else(console: Any) -> None:
    name = console.trigger(2.5, note="<b>penalty?</b>")
    incident = console.decided(name, views=3)
    archive = zipfile.ZipFile(io.BytesIO(httpx.get(f"{console.url}/api/incidents/{name}/case.zip").content))
    assert sorted(archive.namelist()) == [
        *("clips/left.mp4", "clips/main.mp4", "clips/right.mp4"),
        *("decision.json", "report.html"),
    ]
    document = json.loads(archive.read("decision.json"))
    assert document["rulings"][-1]["document"] == incident["rulings"][-1]["document"]
    report = archive.read("report.html").decode()
    assert "The referee decides" in report
    assert "&lt;b&gt;penalty?" in report
    assert report.count("data:image/jpeg;base64,/9j/") == 9
    assert not re.search(r'(src|href)="(?!data:)', report)


def test_a_page_that_goes_away_disturbs_nobody(console: Any) -> None:
    with httpx.stream("GET", f"{console.url}/api/events", timeout=10) as stream:
        assert next(stream.iter_lines()) == "event: snapshot"
    for _ in range(3):
        console.decided(console.trigger(1.5), views=3)
        time.sleep(0.6)
    assert "Traceback" not in console.text()
    console.until(lambda _: "a page at 127.0.0.1 went away" in console.text(), "the log has it")


def test_a_full_disk_is_told_decisions_go_on_and_recording_resumes(console: Any) -> None:
    console.decided(console.trigger(1.5), views=3)
    before = verify(console.audit)
    resource.prlimit(console.process.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    incident = console.decided(console.trigger(2.5), views=3)
    assert [ruling["line"] for ruling in incident["rulings"]] == [0] * len(incident["rulings"])
    told = " ".join(notice["text"] for notice in console.state()["notices"])
    assert "decisions are NOT recorded" in told
    assert "clips are NOT kept" in told
    assert "NOT recorded" in console.text()
    # The clips are shown from memory all the same.
    clip = httpx.get(f"{console.url}/api/clips/{incident['views'][0]['sha256']}.mp4")
    assert clip.status_code == 200
    assert verify(console.audit) == before
    assert "mvfoul_live_audit_failures_total 0.0" not in httpx.get(f"{console.url}/metrics").text
    resource.prlimit(console.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    incident = console.decided(console.trigger(1.5), views=3)
    assert incident["rulings"][-1]["line"] > before.lines
    assert "NOT recorded" not in str(console.state()["notices"])
    assert verify(console.audit).faults == ()
