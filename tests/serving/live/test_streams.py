"""The stream server's command: clips go out as live cameras and come back, picture for picture."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mvfoul.clip import preset
from mvfoul.errors import AnnotationError, ConfigError, InvalidClipError
from mvfoul.video import decode_clip
from serving.live.camera import Camera, CameraSpec
from serving.live.streaming.channel import OnAir
from serving.live.streaming.programme import Repeated, Take, actions_of, read_clip
from serving.live.streaming.server import StreamServer
from serving.live.streams import StreamsConfig


@pytest.fixture
def dataset(numbered_clip: Callable[..., Path], tmp_path: Path) -> Path:
    """Two actions in the official layout; the second has one view only, so it is played last."""
    for action, clips in (("action_3", 1), ("action_12", 2)):
        folder = tmp_path / "test" / action
        folder.mkdir(parents=True)
        for k in range(clips):
            clip = numbered_clip(frames=126, gop=50 + k, options={"bf": "3"})
            (folder / f"clip_{k}.mp4").write_bytes(clip.read_bytes())
    return tmp_path


@contextmanager
def _streams(repo_root: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.live.streams", *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repo_root)},
    )
    try:
        yield process
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors


def _event(process: subprocess.Popen[str], kind: str) -> dict[str, Any]:
    assert process.stdout
    for line in process.stdout:
        event: dict[str, Any] = json.loads(line)
        if event["event"] == kind:
            return event
    raise AssertionError(f"the stream server ended before {kind!r}")


def test_a_triggered_cut_is_the_action_s_clip_picture_for_picture(dataset: Path, repo_root: Path) -> None:
    with _streams(repo_root, "--data", str(dataset), "--actions", "1") as process:
        urls = {event["camera"]: event["url"] for event in (_event(process, "stream") for _ in range(3))}
        cameras = {name: Camera(CameraSpec(name, url)) for name, url in urls.items()}
        for camera in cameras.values():
            camera.start()
        try:
            action = _event(process, "action")
            assert action["action"] == "action_12"
            assert list(action["clips"]) == ["main", "left"]
            for name, clip in action["clips"].items():
                assert cameras[name].wait_for(action["contact_s"] + 1.1, 20)
                cut = cameras[name].cut(action["contact_s"])
                expected = decode_clip(Path(clip), preset(size_px=32))
                np.testing.assert_array_equal(decode_clip(cut.data, preset(size_px=32)), expected)
            # There is no third view.
            assert cameras["right"].health().state == "black"
        finally:
            for camera in cameras.values():
                camera.stop()


def test_faults_are_read_from_stdin_and_a_wrong_one_is_explained(repo_root: Path) -> None:
    with _streams(repo_root, "--cameras", "main", "--size", "64", "48") as process:
        url = _event(process, "stream")["url"]
        camera = Camera(CameraSpec("main", url))
        camera.start()
        try:
            while camera.health().state != "ok":
                time.sleep(0.05)
            assert process.stdin
            assert process.stderr
            process.stdin.write("main burns 3\nmain restart 5\n")
            process.stdin.flush()
            assert "'main burns 3' is no fault" in process.stderr.readline()
            while camera.health().state != "gone":
                time.sleep(0.05)
        finally:
            camera.stop()


def test_actions_with_most_views_come_first(dataset: Path) -> None:
    programme = actions_of(dataset / "test", 3)

    assert [programme.take(n).name for n in range(4)] == ["action_12", "action_3"] * 2
    assert [clip and clip.name for clip in programme.take(1).clips] == ["clip_0.mp4", None, None]
    with pytest.raises(AnnotationError, match=r"has no action_<id>/clip_<k>\.mp4"):
        actions_of(dataset, 3)


def test_a_clip_that_cannot_go_on_the_air_is_refused(numbered_clip: Callable[..., Path]) -> None:
    with pytest.raises(InvalidClipError, match=r"is mpeg4\. Encode it as h264"):
        read_clip(numbered_clip(frames=5, codec="mpeg4"))


def test_every_clip_is_checked_before_the_first_goes_on_the_air(
    numbered_clip: Callable[..., Path], tmp_path: Path
) -> None:
    good = numbered_clip(frames=10)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    hevc = numbered_clip(frames=10, codec="libx265")
    larger = numbered_clip(frames=10, size=(160, 96))

    def programme(second: Path) -> Repeated:
        return Repeated([Take(name=str(number), clips=[clip]) for number, clip in enumerate((good, second))])

    for bad, says in ((broken, "broken.mp4 cannot be read"), (hevc, "is hevc, the clip before it")):
        with pytest.raises(InvalidClipError, match=says):
            StreamServer(("main",), programme(bad))
    assert StreamServer(("main",), programme(larger)).failure() == "", "real actions differ in size"


class _Listener:
    def __init__(self, fault: Exception | None) -> None:
        self.fault, self.is_closed = fault, False
        self.pictures: list[OnAir] = []

    def send(self, picture: OnAir) -> None:
        self.pictures.append(picture)
        if self.fault:
            raise self.fault

    def close(self) -> None:
        self.is_closed = True


def test_a_listener_that_fails_is_dropped_and_the_others_go_on(numbered_clip: Callable[..., Path]) -> None:
    bad, good = _Listener(av.error.ArgumentError(22, "no")), _Listener(None)
    with StreamServer(("main",), Repeated([Take(name="one", clips=[numbered_clip(frames=10)])])) as server:
        for listener in (bad, good):
            server.channels["main"].add(listener)
        time.sleep(1.0)
        assert server.failure() == ""
    assert (len(bad.pictures), bad.is_closed) == (1, True)
    assert len(good.pictures) > 10


def test_a_camera_whose_clip_vanishes_goes_off_the_air_and_the_server_says_so(
    numbered_clip: Callable[..., Path], tmp_path: Path
) -> None:
    clip = tmp_path / "one.mp4"
    shutil.copy(numbered_clip(frames=5), clip)
    server = StreamServer(("main",), Repeated([Take(name="one", clips=[clip])]))
    read_clip.cache_clear()
    clip.write_bytes(b"no video")
    with server:
        time.sleep(0.8)
        assert "camera main: " in server.failure()


def test_a_camera_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--cameras is \('main', 'main'\)\. Give each its own name"):
        StreamsConfig(cameras=("main", "main"))
