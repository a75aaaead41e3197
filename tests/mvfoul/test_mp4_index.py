"""Forged indexes are refused before FFmpeg builds them, and true ones are counted right."""

from __future__ import annotations

import subprocess
import sys

import av
import pytest

from mvfoul.clip import ClipSpec
from mvfoul.errors import InvalidClipError
from mvfoul.mp4_index import index_entries
from mvfoul.video import decode_clip

SPEC = ClipSpec(window=(0, 4), frame_indices=(0, 3), size_px=32)


def patched(data, box, offset, *numbers):
    """Write 32-bit numbers at `offset` after the name of the first box of this kind."""
    place = data.index(box) + 4 + offset
    return data[:place] + b"".join(n.to_bytes(4, "big") for n in numbers) + data[place + 4 * len(numbers) :]


def with_long_head(data, box):
    """The same box with its size in 64 bits; what follows is not right any more."""
    place = data.index(box) - 4
    return data[:place] + b"\0\0\0\1" + box + (1 << 20).to_bytes(8, "big") + data[place + 8 :]


def of_one_size(data, count):
    """A claim of `count` samples of one byte, all in the first chunk."""
    return patched(patched(data, b"stsz", 4, 1, count), b"stsc", 12, count)


def test_the_entries_of_a_true_clip_are_its_samples(numbered_clip):
    assert index_entries(numbered_clip(frames=30).read_bytes()) == 30
    path = numbered_clip(frames=30, audio=True)
    with av.open(str(path)) as container:
        samples = sum(1 for packet in container.demux() if packet.size)
    assert index_entries(path.read_bytes()) == pytest.approx(samples, abs=2)
    fragmented = numbered_clip(frames=30, muxer_options={"movflags": "frag_keyframe+empty_moov"})
    assert index_entries(fragmented.read_bytes()) == 30


@pytest.mark.parametrize("container", ["mkv", "ts", "avi"])
def test_other_containers_have_no_such_index(container, numbered_clip):
    how = {"codec": "mjpeg", "pix_fmt": "yuvj420p"} if container == "avi" else {}
    data = numbered_clip(container=container, **how).read_bytes()
    assert index_entries(data + b"stsz" + b"\xff" * 12) == 0


FORGED = {
    "samples of one size": lambda data: of_one_size(data, 50_000_000),
    "samples in a box with a long head": lambda data: with_long_head(of_one_size(data, 50_000_000), b"stsz"),
    "many edits": lambda data: patched(data, b"elst", 4, 1_000_000),
    "a compressed index": lambda data: data + b"\0\0\0\x10moov\0\0\0\x08cmvd",
    "an index of another name": lambda data: data + b"\0\0\0\x18freestsz" + b"\xff" * 12,
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_a_forged_index_is_refused(forge, numbered_clip):
    with pytest.raises(InvalidClipError, match=r"index claims \d+ samples; the limit is 2097152"):
        decode_clip(forge(numbered_clip(frames=30).read_bytes()), SPEC)


def test_a_forged_fragment_is_refused(numbered_clip):
    data = numbered_clip(frames=30, muxer_options={"movflags": "frag_keyframe+empty_moov"}).read_bytes()
    with pytest.raises(InvalidClipError, match="index claims"):
        decode_clip(patched(data, b"trun", 0, 1, 20_000_000), SPEC)


def test_names_of_boxes_within_the_pictures_are_no_index(numbered_clip):
    data = numbered_clip(frames=30).read_bytes()
    place = data.index(b"mdat") + 40
    assert index_entries(data[:place] + b"stsz" + b"\xff" * 12 + data[place + 16 :]) == 30


def test_the_largest_index_that_is_taken_costs_bounded_memory(numbered_clip, tmp_path):
    """In a process of its own, so that its peak is that of one clip."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(of_one_size(numbered_clip(frames=30).read_bytes(), 2_000_000))
    code = (
        "import sys; from pathlib import Path\n"
        "from mvfoul.clip import ClipSpec; from mvfoul.command import peak_memory_bytes\n"
        "from mvfoul.errors import InvalidClipError; from mvfoul.video import decode_clip\n"
        "before = peak_memory_bytes()\n"
        "try: decode_clip(Path(sys.argv[1]), ClipSpec(window=(0, 4), frame_indices=(0, 3), size_px=32))\n"
        "except InvalidClipError: pass\n"
        "print(peak_memory_bytes() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 250 << 20
