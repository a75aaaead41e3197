"""The decoder on small real clips whose pictures carry their number."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest

from mvfoul.clip import ClipSpec, preset
from mvfoul.errors import InvalidClipError
from mvfoul.resize import Resizer
from mvfoul.video import decode_clip, probe_clip

OPEN_GOP = {"x264-params": "open-gop=1:bframes=4:b-pyramid=normal:ref=4:scenecut=0:min-keyint=6"}
REALTIME = {"deadline": "realtime", "cpu-used": "8"}


def spec(*frames, **overrides):
    return ClipSpec(**{"window": (0, max(frames) + 1), "frame_indices": frames, "size_px": 32, **overrides})


def all_pictures(path):
    """Every picture of a file as RGB, in the order in which they are shown."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def resized(pictures, clip):
    out = np.empty(clip.view_shape, np.uint8)
    for place, index in enumerate(clip.frame_indices):
        Resizer(*pictures[index].shape[:2], clip).into(pictures[index], out[:, place])
    return out


FORMATS = {
    "mp4": {},
    "mp4 without B-frames": {"options": {"bf": "0"}},
    "mp4 with open groups": {"options": OPEN_GOP},
    "mp4 of one group": {"gop": 1000},
    "mp4 of keyframes": {"gop": 1},
    "mp4 refreshed column by column": {"options": {"x264-params": "intra-refresh=1:ref=1"}},
    "mp4 in fragments": {"muxer_options": {"movflags": "frag_keyframe+empty_moov"}},
    "mp4 with its index in front": {"muxer_options": {"movflags": "faststart"}},
    "mp4 with sound": {"audio": True},
    "mp4 interlaced": {"options": {"x264-params": "interlaced=1"}, "size": (64, 64)},
    "mp4 of odd size": {"pix_fmt": "yuv444p", "size": (67, 45)},
    "mp4 upright": {"size": (46, 70)},
    "mp4 of h265": {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=1:bframes=4"}},
    "mp4 of mpeg4": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mov": {"container": "mov"},
    "mkv": {"container": "mkv", "options": OPEN_GOP},
    "webm of vp8": {"container": "webm", "codec": "libvpx", "options": REALTIME},
    "webm of vp9 with hidden pictures": {
        "container": "webm",
        "codec": "libvpx-vp9",
        "options": {"auto-alt-ref": "1", "lag-in-frames": "12", "deadline": "good", "cpu-used": "5"},
    },
    "ts": {"container": "ts"},
    "ts with open groups": {"container": "ts", "options": OPEN_GOP},
    "ts refreshed column by column": {"container": "ts", "options": {"x264-params": "intra-refresh=1:ref=1"}},
    "ts of mpeg2": {"container": "ts", "codec": "mpeg2video", "options": {"bf": "2"}},
    "avi of mpeg4": {"container": "avi", "codec": "mpeg4"},
    "avi of mjpeg": {"container": "avi", "codec": "mjpeg", "pix_fmt": "yuvj420p"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_frame_of_a_25_fps_clip_is_the_one_of_a_full_decode(name, numbered_clip, frame_numbers):
    path = numbered_clip(frames=30, **FORMATS[name])
    pictures = all_pictures(path)
    assert len(pictures) == probe_clip(path).frames == 30
    for first in range(30):
        clip = spec(*sorted({first, min(first + 1, 29), min(first + 5, 29)}))
        view = decode_clip(path, clip)
        assert frame_numbers(view) == list(clip.frame_indices)
        assert (view == resized(pictures, clip)).all()


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("fps", [50, 60, 30, Fraction(30_000, 1001), Fraction(25, 2)])
def test_at_another_frame_rate_a_frame_is_the_picture_shown_at_its_time(fps, container, numbered_clip, frame_numbers):
    path = numbered_clip(frames=60, fps=fps, container=container)
    times_ms = [1000 * k / Fraction(fps) for k in range(60)]
    if container == "mkv":
        times_ms = [round(t) for t in times_ms]
    frames = range(int(times_ms[-1]) // 40)
    shown = [max(k for k, t in enumerate(times_ms) if t <= 40 * i + 1) for i in frames]
    assert frame_numbers(decode_clip(path, spec(*frames))) == shown


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
def test_at_changing_frame_rates_a_frame_is_the_picture_shown_at_its_time(container, numbered_clip, frame_numbers):
    times_s = np.cumsum([0, *np.random.default_rng(3).choice([0.01, 0.02, 0.04, 0.1, 0.3], 40)])
    path = numbered_clip(times_s=[Fraction(round(1000 * t), 1000) for t in times_s], container=container)
    frames = range(int(times_s[-1] * 25))
    shown = [int(np.searchsorted(times_s, i / 25 + 0.001, side="right")) - 1 for i in frames]
    assert frame_numbers(decode_clip(path, spec(*frames))) == shown


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
def test_time_counts_from_the_first_picture_wherever_the_stream_starts(container, numbered_clip, frame_numbers):
    path = numbered_clip(times_s=[Fraction(7, 3) + Fraction(k, 25) for k in range(30)], container=container)
    assert frame_numbers(decode_clip(path, spec(0, 1, 13, 29))) == [0, 1, 13, 29]


def remuxed(source, target, *, change=lambda packet: packet, options=None):
    """Copy the packets of a video, each changed, and left out where `change` returns None."""
    with av.open(str(source)) as read, av.open(str(target), "w", options=options or {}) as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.size and (packet := change(packet)) is not None:
                packet.stream = stream
                write.mux(packet)
    return target


def test_what_an_edit_list_cuts_away_is_not_counted(numbered_clip, frame_numbers, tmp_path):
    def seven_frames_earlier(packet):
        shift = int(7 / 25 / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        return packet

    source = numbered_clip(frames=30)
    cut = remuxed(source, tmp_path / "cut.mp4", change=seven_frames_earlier, options={"avoid_negative_ts": "disabled"})
    assert len(all_pictures(cut)) == probe_clip(cut).frames == 23
    assert frame_numbers(decode_clip(cut, spec(0, 1, 9, 22))) == [7, 8, 16, 29]


OPEN_GROUPS = {
    "h264": {"options": OPEN_GOP},
    "h265": {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=1:bframes=4:keyint=12"}},
    "mpeg2": {"codec": "mpeg2video", "options": {"bf": "2"}},
}


@pytest.mark.parametrize("codec", OPEN_GROUPS)
def test_a_stream_cut_into_starts_at_its_first_keyframe(codec, numbered_clip, frame_numbers, tmp_path):
    source = numbered_clip(frames=48, gop=12, container="ts", **OPEN_GROUPS[codec])
    dropped = iter(range(18))
    cut = remuxed(source, tmp_path / "cut.ts", change=lambda packet: packet if next(dropped, None) is None else None)
    pictures = all_pictures(cut)
    first = frame_numbers(np.stack(pictures[:1]).transpose(3, 0, 1, 2))[0]
    assert first >= 18
    for later in (1, 5, len(pictures) - 1):
        assert frame_numbers(decode_clip(cut, spec(0, later))) == [first, first + later]


def test_keyframe_flags_that_lie_only_cost_time(numbered_clip, frame_numbers, tmp_path):
    def flagged(packet):
        packet.is_keyframe = True
        return packet

    liar = remuxed(numbered_clip(frames=30, gop=30), tmp_path / "liar.mkv", change=flagged)
    assert frame_numbers(decode_clip(liar, spec(14, 15, 20))) == [14, 15, 20]


def test_timestamps_that_contradict_the_order_of_the_pictures_are_refused(numbered_clip, frame_numbers, tmp_path):
    def swapped(packet):
        frame = round(packet.pts * packet.time_base * 25)
        packet.pts += (1 + {5: 1, 6: -1}.get(frame, 0)) * int(1 / 25 / packet.time_base)
        return packet

    source = numbered_clip(frames=12, options={"bf": "0"}, container="mkv")
    path = remuxed(source, tmp_path / "swapped.mkv", change=swapped)
    assert frame_numbers(decode_clip(path, spec(1, 4))) == [1, 4]
    with pytest.raises(InvalidClipError, match=r"damaged at 0\.24 s: after it, timestamps contradict the order"):
        decode_clip(path, spec(1, 5))


def test_a_sound_that_joins_a_transport_stream_late_does_no_harm(numbered_clip):
    silent, sounding = (numbered_clip(frames=30, container="ts", audio=audio).read_bytes() for audio in (False, True))
    assert probe_clip(3 * silent + sounding + 16 * silent).codec == "h264"


ROTATIONS = {
    (0, False, False): lambda picture: picture,
    (90, False, False): lambda picture: np.rot90(picture, 1),
    (180, False, False): lambda picture: np.rot90(picture, 2),
    (270, False, False): lambda picture: np.rot90(picture, 3),
    (0, True, False): lambda picture: picture[:, ::-1],
    (0, False, True): lambda picture: picture[::-1],
    (90, True, False): lambda picture: np.rot90(picture, 1)[:, ::-1],
}


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("resize", ["squash", "center_crop"])
def test_pictures_are_turned_as_the_display_matrix_says(rotation, resize, numbered_clip):
    path = numbered_clip(frames=3, rotation=rotation)
    clip = spec(0, 2, resize=resize, short_side_px=40)
    assert (decode_clip(path, clip) == resized([ROTATIONS[rotation](p) for p in all_pictures(path)], clip)).all()


def test_a_picture_turned_by_less_than_a_quarter_is_refused(numbered_clip):
    with pytest.raises(InvalidClipError, match="turned by 30 degrees"):
        decode_clip(numbered_clip(frames=2, rotation=(30, False, False)), spec(0))


def test_720p_is_decoded_like_any_other_size(numbered_clip, frame_numbers):
    path = numbered_clip(frames=4, size=(1280, 720), options={"preset": "ultrafast"})
    view = decode_clip(path, spec(0, 3, size_px=224))
    assert frame_numbers(view) == [0, 3]
    assert (view == resized(all_pictures(path), spec(0, 3, size_px=224))).all()


def test_repeated_frames_are_repeated(numbered_clip, frame_numbers):
    clip = ClipSpec(window=(0, 9), frame_indices=(2, 2, 5, 5, 5, 8), size_px=32)
    assert frame_numbers(decode_clip(numbered_clip(frames=10), clip)) == [2, 2, 5, 5, 5, 8]


def test_a_path_and_its_bytes_give_the_same_view(numbered_clip):
    path = numbered_clip(frames=6)
    view = decode_clip(path, spec(1, 4))
    assert view.shape == (3, 2, 32, 32)
    assert view.dtype == np.uint8
    assert view.flags.c_contiguous
    assert (view == decode_clip(path.read_bytes(), spec(1, 4))).all()


def test_threads_do_not_disturb_each_other(numbered_clip, frame_numbers):
    paths = [numbered_clip(frames=20, gop=gop) for gop in (5, 20)]
    with ThreadPoolExecutor(4) as pool:
        views = list(pool.map(lambda k: decode_clip(paths[k % 2], spec(k % 20)), range(40)))
    assert [frame_numbers(view) for view in views] == [[k % 20] for k in range(40)]


def test_probe_says_what_the_container_declares(numbered_clip):
    info = probe_clip(numbered_clip(frames=30, fps=50, size=(64, 48)))
    assert (info.frames, info.width_px, info.height_px, info.codec) == (30, 64, 48, "h264")
    assert info.duration_s == pytest.approx(0.6)
    assert info.fps == pytest.approx(50)


def test_a_stream_may_change_its_size_on_the_way(numbered_clip, frame_numbers, tmp_path):
    sources = [
        numbered_clip(frames=10, size=size, container="ts", options={"bf": "0"}) for size in ((64, 48), (96, 64))
    ]
    with av.open(str(sources[0])) as first, av.open(str(tmp_path / "both.ts"), "w") as write:
        stream = write.add_stream_from_template(first.streams.video[0])
        for place, source in enumerate(sources):
            with av.open(str(source)) as read:
                for packet in read.demux(video=0):
                    if packet.size:
                        packet.pts, packet.dts = packet.pts + 36_000 * place, packet.dts + 36_000 * place
                        packet.stream = stream
                        write.mux(packet)
    assert [picture.shape[:2] for picture in all_pictures(tmp_path / "both.ts")] == [(48, 64)] * 10 + [(64, 96)] * 10
    assert frame_numbers(decode_clip(tmp_path / "both.ts", spec(2, 9, 10, 17))) == [2, 9, 0, 7]


# The real sample


def sample_clips(root):
    return sorted(root.glob("test/action_*/clip_*.mp4"))


@pytest.mark.parametrize("name", ["two-second", "vars-2023"])
def test_real_clips_equal_a_full_decode_resized_by_torchvision(name, sample_root):
    import torch
    from torchvision.transforms.v2 import functional

    clip = preset(name)
    for path in sample_clips(sample_root):
        pictures, view = all_pictures(path), decode_clip(path, clip)
        assert (view == resized(pictures, clip)).all(), path
        chosen = torch.from_numpy(np.stack([pictures[i] for i in clip.frame_indices])).permute(0, 3, 1, 2)
        if clip.resize == "squash":
            expected = functional.resize(chosen, [224, 224], antialias=False)
        else:
            expected = functional.center_crop(functional.resize(chosen, [256], antialias=False), [224, 224])
        assert np.abs(view.astype(int) - expected.permute(1, 0, 2, 3).numpy()).max() <= 1, path


def test_real_clips_are_what_the_data_set_says(sample_root):
    for path in sample_clips(sample_root):
        info = probe_clip(path)
        assert (info.width_px, info.height_px, info.codec) == (398, 224, "h264")
        assert info.frames in (126, 127)
        assert info.fps == pytest.approx(25)
