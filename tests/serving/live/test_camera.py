"""Cameras against real streams on loopback: the right pictures, and every way in which a camera fails."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest

from mvfoul.clip import ClipSpec
from mvfoul.errors import ConfigError
from mvfoul.video import decode_clip
from serving.live import srt
from serving.live.camera import Camera, CameraHealth, CameraSpec, CutError, check_names
from serving.live.clock import now_s
from serving.live.source import Source, has_protocol, open_source
from serving.live.streaming.channel import OnAir
from serving.live.streaming.programme import Repeated, Take
from serving.live.streaming.server import Address, StreamProtocol, StreamServer, free_udp_port

FRAMES = 60
SPEC = ClipSpec(window=(0, 30), frame_indices=tuple(range(30)), size_px=32)


@pytest.fixture(scope="module")
def clip(numbered_clip: Callable[..., Path]) -> Path:
    return numbered_clip(frames=FRAMES, gop=10, options={"bf": "2", "preset": "ultrafast"})


@pytest.fixture(scope="module")
def programme(clip: Path) -> Repeated:
    return Repeated([Take(name="numbers", clips=[clip] * 7)])


@pytest.fixture(scope="module")
def studio(programme: Repeated) -> Iterator[StreamServer]:
    with StreamServer(("a", "b", "c", "d", "e", "f", "g"), programme) as server:
        yield server


@pytest.fixture
def camera() -> Iterator[Callable[..., Camera]]:
    started: list[Camera] = []

    def start(url: str, **how: float) -> Camera:
        offset_s = how.pop("offset_s", 0.0)
        started.append(Camera(CameraSpec("main", url, offset_s=offset_s), **how))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.stop()
    assert not [t for t in threading.enumerate() if t.name == "camera-main"]


def _until(camera: Camera, seen: Callable[[CameraHealth], bool], timeout_s: float = 15.0) -> CameraHealth:
    end_s = time.monotonic() + timeout_s
    while not seen(health := camera.health()):
        assert time.monotonic() < end_s, health
        time.sleep(0.02)
    return health


def _numbers_on_display(server: StreamServer, start_s: float) -> list[int]:
    """What the cut from `start_s` on must show, 1.2 s of it."""
    return [int((start_s - server.starts_s) * 25 + i) % FRAMES for i in SPEC.frame_indices]


def _middle_of_a_picture(server: StreamServer, at_s: float) -> float:
    return server.starts_s + (int((at_s - server.starts_s) * 25) + 0.5) / 25


def _cut(camera: Camera, server: StreamServer, frame_numbers: Callable[[np.ndarray], list[int]]) -> None:
    """Cut 1.2 s, from now on, and see that they are the right ones."""
    contact_s = _middle_of_a_picture(server, now_s() + 0.4)
    assert camera.wait_for(contact_s + 0.9, 10)
    cut = camera.cut(contact_s, before_s=0.4, after_s=0.9)
    assert frame_numbers(decode_clip(cut.data, SPEC)) == _numbers_on_display(server, contact_s - 0.4)
    assert cut.first_frame_s == pytest.approx(contact_s - 0.42, abs=0.02)


def test_a_live_cut_shows_the_right_pictures(
    programme: Repeated, camera: Callable[..., Camera], frame_numbers: Callable[[np.ndarray], list[int]]
) -> None:
    protocols: tuple[StreamProtocol, ...] = ("http", "rtsp", "udp")
    with ExitStack() as servers:
        playing = {p: servers.enter_context(StreamServer(["main"], programme, address=Address(p))) for p in protocols}
        cameras = {p: camera(server.urls["main"]) for p, server in playing.items()}
        for protocol, main in cameras.items():
            _until(main, lambda health: health.state == "ok")
            _cut(main, playing[protocol], frame_numbers)
            health = main.health()

            assert health.clock == ("rtcp" if protocol == "rtsp" else "arrival")
            assert (health.fps, health.width_px, health.height_px, health.codec) == (25, 64, 48, "h264")
            assert (health.dropped, health.reconnects, health.clock_jumps) == (0, 0, 0)
            assert 0 <= health.jitter_s < 0.2
            assert 0 <= health.delay_s < 0.5


class _Playlist:
    """A sink that writes HLS: segments and a live playlist, in a folder."""

    def __init__(self, folder: Path) -> None:
        options = {"hls_time": "0.4", "hls_list_size": "6", "hls_flags": "delete_segments"}
        self._output = av.open(str(folder / "live.m3u8"), "w", format="hls", options=options)
        self._stream = self._output.add_mux_stream("h264", width=64, height=48)

    def send(self, picture: OnAir) -> None:
        packet = av.Packet(picture.data)
        packet.pts, packet.dts, packet.time_base = picture.ticks, picture.dts_ticks, Fraction(1, 90_000)
        packet.is_keyframe, packet.stream = picture.is_keyframe, self._stream
        self._output.mux(packet)

    def close(self) -> None:
        self._output.close()


def test_a_camera_over_hls(
    programme: Repeated,
    camera: Callable[..., Camera],
    frame_numbers: Callable[[np.ndarray], list[int]],
    tmp_path: Path,
) -> None:
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=tmp_path)) as web,
        StreamServer(["main"], programme) as server,
    ):
        threading.Thread(target=web.serve_forever, daemon=True).start()
        server.channels["main"].add(_Playlist(tmp_path))
        main = camera(f"http://127.0.0.1:{web.server_port}/live.m3u8")
        _until(main, lambda health: health.buffer_s > 2)
        # A segment at a time: when a picture was taken, nobody tells.
        numbers = frame_numbers(decode_clip(main.cut(main.now_s() - 1, before_s=0.4, after_s=0.9).data, SPEC))
        web.shutdown()

    assert numbers == [(numbers[0] + i) % FRAMES for i in range(30)]
    assert (main.health().dropped, main.health().clock_jumps) == (0, 0)


def test_an_offset_moves_the_pictures(
    studio: StreamServer, camera: Callable[..., Camera], frame_numbers: Callable[[np.ndarray], list[int]]
) -> None:
    main = camera(studio.urls["a"], offset_s=-0.6)
    _until(main, lambda health: health.state == "ok")

    contact_s = _middle_of_a_picture(studio, now_s())
    assert main.wait_for(contact_s + 0.9, 10)
    data = main.cut(contact_s, before_s=0.4, after_s=0.9).data
    assert frame_numbers(decode_clip(data, SPEC)) == _numbers_on_display(studio, contact_s - 0.4 + 0.6)


def test_a_jump_of_the_timestamps_is_counted_and_survived(
    studio: StreamServer, camera: Callable[..., Camera], frame_numbers: Callable[[np.ndarray], list[int]]
) -> None:
    jumps = {"a": 5.0, "b": -5.0}
    cameras = {name: camera(studio.urls[name]) for name in jumps}
    for one in cameras.values():
        _until(one, lambda health: health.state == "ok" and health.frames > 40)
    for name, seconds in jumps.items():
        studio.fail(name, "jump", seconds)
    for one in cameras.values():
        _until(one, lambda health: health.clock_jumps == 1)
        # The cut has pictures from before and after the jump.
        _cut(one, studio, frame_numbers)

        assert (one.health().reconnects, one.health().state) == (0, "ok")
        assert abs(now_s() - one.now_s()) < 1


def test_a_stalled_camera_is_late_and_then_well_again(studio: StreamServer, camera: Callable[..., Camera]) -> None:
    main = camera(studio.urls["c"])
    _until(main, lambda health: health.state == "ok")
    studio.fail("c", "stall", 1.3)

    assert _until(main, lambda health: health.state == "late").reason == "its pictures are more than 1 s behind"
    assert "no picture for more than 1 s" in _until(main, lambda health: "no picture" in health.reason).reason
    health = _until(main, lambda health: health.state == "ok")
    assert (health.dropped, health.reconnects) == (0, 0)
    assert health.jitter_s > 0.01


def test_lost_pictures_are_counted_and_not_cut(studio: StreamServer, camera: Callable[..., Camera]) -> None:
    main = camera(studio.urls["c"])
    _until(main, lambda health: health.state == "ok")
    studio.fail("c", "drop", 0.8)
    at_s = now_s() + 0.2

    health = _until(main, lambda health: health.dropped > 0)
    assert 16 <= health.dropped <= 24
    assert main.wait_for(at_s + 1, 5)
    with pytest.raises(CutError, match=r"camera main: 0\.[6-9]\d s without a picture"):
        main.cut(at_s, before_s=0.3, after_s=0.9)


def test_a_black_or_frozen_picture_is_seen_and_its_end_too(studio: StreamServer, camera: Callable[..., Camera]) -> None:
    cameras = {"black": camera(studio.urls["d"]), "frozen": camera(studio.urls["f"])}
    for one in cameras.values():
        _until(one, lambda health: health.state == "ok")
    studio.fail("d", "black", 3.5)
    studio.fail("f", "frozen", 3.5)

    for fault, one in cameras.items():
        assert "the picture" in _until(one, lambda health, fault=fault: health.state == fault).reason
    for one in cameras.values():
        _until(one, lambda health: health.state == "ok")


def test_a_camera_that_restarts_is_gone_and_comes_back(
    studio: StreamServer, camera: Callable[..., Camera], frame_numbers: Callable[[np.ndarray], list[int]]
) -> None:
    main = camera(studio.urls["e"])
    _until(main, lambda health: health.state == "ok")
    studio.fail("e", "restart", 1.0)
    at_s = now_s()

    assert _until(main, lambda health: health.state == "gone").reason
    assert _until(main, lambda health: health.state == "ok").reconnects == 1
    _cut(main, studio, frame_numbers)
    with pytest.raises(CutError, match=r"without a picture|reconnected"):
        main.cut(at_s, before_s=0.2, after_s=1.0)


def test_nobody_there_is_said_and_tried_again(programme: Repeated, camera: Callable[..., Camera]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    main = camera(f"http://127.0.0.1:{port}/main.ts")

    assert "Connection refused" in _until(main, lambda health: health.state == "gone").reason
    assert main.now_s() == float("-inf")
    assert not main.wait_for(now_s(), 0.1)
    with StreamServer(["main"], programme, address=Address(port=port)):
        assert _until(main, lambda health: health.state == "ok").reconnects == 0


@pytest.mark.parametrize("codec", ["libvpx-vp9", "audio"])
def test_a_codec_that_cannot_be_cut_is_named(
    codec: str, numbered_clip: Callable[..., Path], camera: Callable[..., Camera], tmp_path: Path
) -> None:
    path = tmp_path / "sound.wav"
    if codec == "audio":
        path.write_bytes(
            b"RIFF\x64\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0data\x40\0\0\0" + bytes(64)
        )
    else:
        path = numbered_clip(frames=10, codec=codec, container="mkv", options={"deadline": "realtime"})
    health = _until(camera(str(path)), lambda health: health.state == "wrong_codec")
    assert health.reason in (
        "its codec is vp9; known: h264, hevc, mpeg4, mpeg2video, mjpeg",
        "it sends no video, only audio",
    )


def test_what_is_no_video_is_gone_not_a_failure(camera: Callable[..., Camera], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("<html>no camera here</html>")
    assert "Invalid data" in _until(camera(str(path)), lambda health: health.state == "gone").reason


def test_a_fault_that_nobody_thought_of_is_told_and_the_camera_tried_again(
    clip: Path, camera: Callable[..., Camera], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [RuntimeError("a bug")]

    def open_once_in_vain(url: str) -> AbstractContextManager[Source]:
        if faults:
            raise faults.pop()
        return open_source(url)

    monkeypatch.setattr("serving.live.camera.open_source", open_once_in_vain)
    main = camera(str(clip))
    assert "RuntimeError: a bug" in _until(main, lambda health: health.state == "gone").reason
    _until(main, lambda health: health.state == "ok")


def test_a_server_that_accepts_and_says_nothing_holds_nobody_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        cameras = [
            Camera(CameraSpec(scheme, f"{scheme}://127.0.0.1:{port}/x"))
            for scheme in ("http", "rtsp", "tcp", "rtmp", "udp")
        ]
        for one in cameras:
            one.start()
        time.sleep(0.5)
        begun_s = time.monotonic()
        stoppers = [threading.Thread(target=one.stop) for one in cameras]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join()
        assert time.monotonic() - begun_s < 2
    # What waits for the network ends with its time-out.
    end_s = time.monotonic() + 12
    while any(t.name.startswith("camera-") for t in threading.enumerate()):
        assert time.monotonic() < end_s
        time.sleep(0.1)


def test_a_file_plays_as_a_camera_over_and_over(
    clip: Path, camera: Callable[..., Camera], frame_numbers: Callable[[np.ndarray], list[int]]
) -> None:
    main = camera(str(clip))
    assert main.wait_for(now_s() + 3.6, 10)
    numbers = frame_numbers(decode_clip(main.cut(now_s() - 1.1, before_s=0.4, after_s=0.9).data, SPEC))

    assert numbers == [(numbers[0] + i) % FRAMES for i in range(30)]
    health = main.health()
    assert (health.clock, health.dropped, health.reconnects) == ("file", 0, 0)


def test_a_file_has_no_seam_where_it_begins_again_also_with_a_pyramid_of_b_frames(
    numbered_clip: Callable[..., Path], camera: Callable[..., Camera], frame_numbers: Callable[[np.ndarray], list[int]]
) -> None:
    pyramid = {"bf": "3", "b-pyramid": "normal", "b_strategy": "0", "preset": "medium"}
    main = camera(str(numbered_clip(frames=25, gop=25, options=pyramid)))
    assert main.wait_for(now_s() + 3.6, 10)
    # A cut of 1.3 s of a clip of 1 s holds a seam, wherever it begins.
    numbers = frame_numbers(decode_clip(main.cut(now_s() - 1.1, before_s=0.4, after_s=0.9).data, SPEC))
    assert numbers == [(numbers[0] + i) % 25 for i in range(30)]
    health = main.health()
    assert (health.dropped, health.reconnects) == (0, 0)


def test_a_test_pattern_is_a_camera(camera: Callable[..., Camera]) -> None:
    main = camera("lavfi:testsrc2=size=128x96:rate=25")
    assert main.wait_for(now_s() + 1.6, 10)
    assert decode_clip(main.cut(now_s() - 1.1, before_s=0.4, after_s=0.9).data, SPEC).std() > 10
    assert main.health().width_px == 128


def test_the_buffer_of_a_camera_is_bounded_by_bytes(clip: Path, camera: Callable[..., Camera]) -> None:
    main = camera(str(clip), buffer_bytes=30_000)
    health = _until(main, lambda health: health.frames > 50)
    assert 0 < health.buffer_bytes <= 30_000
    assert health.reason == "the buffer's bytes hold less than its seconds; give it more"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nowhere.mp4", r"camera main: there is no file 'nowhere.mp4'"),
        ("gopher://host/x", r"camera main: 'gopher://host/x' has the unknown protocol gopher"),
        ("http:///x.ts", r"names no host"),
        ("rtsp://host:99999/x", r"is no URL"),
        ("udp://127.0.0.1", r"names no port"),
        ("lavfi:nonsense=1", r"is no test pattern"),
    ],
)
def test_a_url_that_can_never_work_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CameraSpec("main", url)


@pytest.mark.skipif(has_protocol("srt"), reason="this FFmpeg has SRT")
def test_a_protocol_that_is_missing_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        ConfigError, match=r"needs the protocol srt, which this build of FFmpeg lacks .* Install srt-live"
    ):
        CameraSpec("main", "srt://127.0.0.1:9000")


@pytest.mark.skipif(not srt.is_available(), reason="srt-live-transmit is not installed (Debian: srt-tools)")
def test_a_camera_over_srt(
    programme: Repeated, camera: Callable[..., Camera], frame_numbers: Callable[[np.ndarray], list[int]]
) -> None:
    port = free_udp_port("127.0.0.1")
    with StreamServer(["main"], programme, address=Address(protocol="udp")) as server:
        source = server.urls["main"].replace("udp://127.0.0.1:", "udp://:")
        sender = subprocess.Popen([srt.PROGRAM, "-q", source, f"srt://127.0.0.1:{port}?mode=listener"])
        try:
            main = camera(f"srt://127.0.0.1:{port}?latency=20")
            _until(main, lambda health: health.state == "ok")
            contact_s = _middle_of_a_picture(server, now_s() + 0.4)
            assert main.wait_for(contact_s + 0.9, 10)
            cut = main.cut(contact_s, before_s=0.4, after_s=0.9)
        finally:
            sender.kill()
            sender.wait()
        assert _until(main, lambda health: health.state == "gone").reason

    numbers = frame_numbers(decode_clip(cut.data, SPEC))
    assert numbers == [(numbers[0] + i) % FRAMES for i in range(30)]
    # SRT holds every packet back for its latency, which arrival does not tell.
    assert (_numbers_on_display(server, contact_s - 0.4)[0] - numbers[0]) % FRAMES <= 3


def test_a_password_is_in_no_message() -> None:
    with pytest.raises(ConfigError) as refused:
        CameraSpec("main", "udp://operator:secret@127.0.0.1/x?key=secret")
    spec = CameraSpec("main", "rtsp://operator:secret@127.0.0.1/x")
    with pytest.raises(ConfigError) as doubled:
        check_names([spec, spec])
    assert "secret" not in f"{refused.value} {doubled.value} {spec!r}"
    assert "rtsp://127.0.0.1/x" in str(doubled.value)


def test_names_are_checked(clip: Path) -> None:
    with pytest.raises(ConfigError, match="two cameras are named 'main'"):
        check_names([CameraSpec("main", str(clip)), CameraSpec("main", str(clip))])
    with pytest.raises(ConfigError, match="a camera is named ''"):
        CameraSpec("", str(clip))
    with pytest.raises(ConfigError, match="the offset is nan s"):
        CameraSpec("main", str(clip), offset_s=float("nan"))
