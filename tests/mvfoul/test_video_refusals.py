"""What the decoder refuses: clips that are too short, damaged, forged, no video, or over a limit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.frame import PictureType

from mvfoul.clip import ClipSpec, preset
from mvfoul.errors import InvalidClipError
from mvfoul.video import DecodeLimits, decode_clip, probe_clip


def spec(*frames):
    return ClipSpec(window=(0, max(frames) + 1), frame_indices=frames, size_px=32)


def test_a_clip_that_is_too_short_says_how_long_it_is_and_which_frame_is_needed(numbered_clip):
    path = numbered_clip(frames=60)
    with pytest.raises(InvalidClipError, match=r"60 readable frames \(2\.40 s\); frame 98 \(at 3\.92 s\) is needed"):
        decode_clip(path, preset())


def test_a_clip_cut_off_within_the_window_is_refused_and_one_cut_off_after_it_is_not(numbered_clip, frame_numbers):
    data = numbered_clip(frames=30, gop=10, muxer_options={"movflags": "faststart"}).read_bytes()
    cut = data[: len(data) * 2 // 3]
    assert frame_numbers(decode_clip(cut, spec(0, 9))) == [0, 9]
    with pytest.raises(InvalidClipError, match=r"frame 29|damaged"):
        decode_clip(cut, spec(0, 29))


def test_a_picture_cut_in_half_is_refused_even_where_its_decoder_shows_the_half(numbered_clip, frame_numbers):
    path = numbered_clip(frames=10, container="avi", codec="mjpeg", pix_fmt="yuvj420p")
    offset, size, _ = packet_places(path)[8]
    cut = path.read_bytes()[: offset + size // 2]
    assert frame_numbers(decode_clip(cut, spec(3, 7))) == [3, 7]
    with pytest.raises(InvalidClipError, match=r"damaged at 0\.32 s: a part of its data is missing"):
        decode_clip(cut, spec(3, 8))


def test_a_clip_cut_off_before_its_index_says_so(numbered_clip):
    data = numbered_clip(frames=30).read_bytes()
    with pytest.raises(InvalidClipError, match="moov atom not found"):
        decode_clip(data[: len(data) // 2], spec(0))


def packet_places(path):
    """Where each picture's data lies in the file: {frame: (offset, size, is_keyframe)}, at 25 fps."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    start = min(p.pts for p in packets)
    return {round((p.pts - start) * p.time_base * 25): (p.pos, p.size, p.is_keyframe) for p in packets}


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("damage", ["noise", "hole"])
def test_damage_is_refused_in_what_is_decoded_and_ignored_elsewhere(damage, container, numbered_clip, frame_numbers):
    path = numbered_clip(frames=36, gop=12, size=(128, 96), container=container, options={"bf": "0"})
    offset, size, _ = packet_places(path)[17]
    data = bytearray(path.read_bytes())
    noise = np.random.default_rng(1).integers(1, 256, size // 2, np.uint8).tobytes()
    data[offset + size // 3 : offset + size // 3 + size // 2] = noise if damage == "noise" else bytes(size // 2)
    damaged = bytes(data)
    for frames in ((17,), (18,), (3, 23)):
        with pytest.raises(InvalidClipError, match=r"damaged at 0\.68 s"):
            decode_clip(damaged, spec(*frames))
    for frames in ((3, 16), (24, 35)):
        assert frame_numbers(decode_clip(damaged, spec(*frames))) == list(frames)


@pytest.mark.parametrize("size", [0x7FFFFFF0, 0x3FFFFFFF], ids=["ends the file", "cannot be allocated"])
def test_a_forged_size_of_one_picture_is_refused_only_where_it_matters(size, numbered_clip, frame_numbers):
    data = bytearray(numbered_clip(frames=20, options={"bf": "0"}).read_bytes())
    sizes = data.index(b"stsz") + 16  # Version, one size for all, count; then the sizes in decoding order.
    data[sizes + 4 * 12 : sizes + 4 * 13] = size.to_bytes(4, "big")
    assert frame_numbers(decode_clip(bytes(data), spec(2, 8))) == [2, 8]
    with pytest.raises(InvalidClipError, match=r"has 12 readable frames .* frame 15"):
        decode_clip(bytes(data), spec(2, 15))


def test_pictures_that_nobody_refers_to_are_not_decoded_unless_wanted(numbered_clip, frame_numbers):
    path = numbered_clip(frames=12, options={"x264-params": "bframes=1:b-adapt=0:b-pyramid=none:scenecut=0"})
    b_frame = next(k for k, picture_type in enumerate(picture_types(path)) if picture_type == PictureType.B)
    offset, size, _ = packet_places(path)[b_frame]
    data = bytearray(path.read_bytes())
    data[offset + 20 : offset + size] = bytes(size - 20)
    around = (b_frame - 1, b_frame + 1, 11)
    assert frame_numbers(decode_clip(bytes(data), spec(*around))) == list(around)
    with pytest.raises(InvalidClipError, match=rf"damaged at {b_frame / 25:.2f} s"):
        decode_clip(bytes(data), spec(b_frame, 11))


def test_a_picture_whose_header_was_never_written_is_not_taken_for_one_that_nobody_refers_to(numbered_clip):
    path = numbered_clip(frames=36, gop=36, size=(128, 96), options={"bf": "0"})
    places = packet_places(path)
    for frame in range(4, 16):
        data = bytearray(path.read_bytes())
        offset, size, _ = places[frame]
        data[offset : offset + min(size, 40)] = bytes(min(size, 40))
        with pytest.raises(InvalidClipError, match="damaged"):
            decode_clip(bytes(data), spec(20))


def picture_types(path):
    with av.open(str(path)) as container:
        return [frame.pict_type for frame in container.decode(video=0)]


def test_b_frames_in_avi_have_no_timestamps_and_are_refused_rather_than_guessed(numbered_clip):
    with pytest.raises(InvalidClipError, match=r"without timestamps .* as mp4"):
        decode_clip(numbered_clip(container="avi", codec="libx264"), spec(3))


@pytest.mark.parametrize("cover", [False, True], ids=["sound", "sound with a cover picture"])
def test_sound_without_a_video_is_refused(cover, tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16_000)
        if cover:
            still = container.add_stream("mjpeg", rate=1)
            still.width, still.height, still.pix_fmt, still.disposition = 64, 48, "yuvj420p", Disposition.attached_pic
            container.mux([*still.encode(av.VideoFrame(64, 48, "yuvj420p")), *still.encode(None)])
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux([*sound.encode(frame), *sound.encode(None)])
    for check in (lambda: decode_clip(path, spec(0)), lambda: probe_clip(path)):
        with pytest.raises(InvalidClipError, match="no video, only audio"):
            check()


def test_codecs_off_the_list_are_refused_by_name(numbered_clip):
    with pytest.raises(InvalidClipError, match="codec is ffv1; known: h264"):
        decode_clip(numbered_clip(frames=2, container="mkv", codec="ffv1", pix_fmt="bgr0"), spec(0))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no video at all\n" * 500, "no video in mp4"),
        (np.random.default_rng(0).bytes(100_000), "no video in mp4"),
        (b"\x89PNG\r\n\x1a\n" + bytes(1000), "no video in mp4"),
        (b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom", "moov atom not found"),
        (b"\x1aE\xdf\xa3" + bytes(1000), "no video"),
        (b"G" + bytes(187), "no video"),
    ],
    ids=["empty", "text", "noise", "picture", "mp4 header", "mkv header", "ts header"],
)
def test_bytes_that_are_no_video_are_refused_with_the_reason(data, reason):
    for check in (lambda: decode_clip(data, spec(0)), lambda: probe_clip(data)):
        with pytest.raises(InvalidClipError, match=reason):
            check()


def test_paths_that_are_no_file_are_refused(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    cases = {"none.mp4": "file does not exist", "folder.mp4": "not that of a file", "pipe.mp4": "not that of a file"}
    for name, reason in cases.items():
        with pytest.raises(InvalidClipError, match=reason):
            decode_clip(tmp_path / name, spec(0))


def test_neither_urls_nor_playlists_are_followed(numbered_clip):
    clip = numbered_clip(frames=3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/clip.mp4"
        inputs = [
            Path(url),
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n".encode(),
            f"ffconcat version 1.0\nfile '{clip}'\n".encode(),
            f"ffconcat version 1.0\nfile '{url}'\n".encode(),
            f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video {url[17:22]} RTP/AVP 96\n".encode(),
            url.encode(),
            str(clip).encode(),
        ]
        for source in inputs:
            with pytest.raises(InvalidClipError):
                decode_clip(source, spec(0))
        with pytest.raises(BlockingIOError):
            server.accept()


LIMITS = {
    "max_bytes": (1000, "more than 1000 bytes"),
    "max_frame_pixels": (64 * 48 - 1, "64x48; the limit is 3071 pixels"),
    "max_frames": (7, "more than 7 frames"),
    "max_decode_s": (0.0, "too long to decode"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_clip_over_a_limit_is_refused(name, numbered_clip):
    path = numbered_clip(frames=20)
    limit, reason = LIMITS[name]
    with pytest.raises(InvalidClipError, match=reason):
        decode_clip(path, spec(9), limits=replace(DecodeLimits(), **{name: limit}))


def test_a_long_clip_can_be_probed(numbered_clip):
    assert probe_clip(numbered_clip(frames=20), limits=DecodeLimits(max_frames=7)).frames == 20


def test_limits_that_a_clip_just_meets_do_not_refuse_it(numbered_clip, frame_numbers):
    path = numbered_clip(frames=60, options={"bf": "0"})
    limits = DecodeLimits(max_bytes=path.stat().st_size, max_frame_pixels=64 * 48, max_frames=11 + 25)
    assert frame_numbers(decode_clip(path, spec(9), limits=limits)) == [9]


def test_damaged_clips_leave_no_file_open_and_print_nothing(numbered_clip, tmp_path):
    data = bytearray(numbered_clip(frames=20, size=(128, 96), gop=20, options={"bf": "0"}).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    (tmp_path / "damaged.mp4").write_bytes(data)
    script = """if True:
        import os, sys
        from pathlib import Path
        from mvfoul.clip import ClipSpec
        from mvfoul.errors import InvalidClipError
        from mvfoul.video import decode_clip
        def attempt():
            try:
                decode_clip(Path(sys.argv[1]), ClipSpec(window=(0, 20), frame_indices=(19,), size_px=32))
            except InvalidClipError:
                return len(os.listdir("/proc/self/fd"))
        attempt()
        first = attempt()
        assert first and {attempt() for _ in range(5)} == {first}
    """
    command = [sys.executable, "-c", script, str(tmp_path / "damaged.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
