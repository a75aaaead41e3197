"""The cache of decoded clips: the same pixels as decoding, for any number of processes, and never half an entry."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mvfoul.clip import preset
from mvfoul.errors import ConfigError
from mvfoul.video import decode_clip
from training.cache import build as build_module
from training.cache.build import EXIT_FULL, build, run, tasks_of
from training.cache.config import CacheConfig, CacheDataConfig, parse_config
from training.cache.store import CacheFullError, ClipStore, DamagedEntryError, Source
from training.clips import ClipReader
from training.config import ClipConfig
from training.dataset import MultiViewDataset, collate_actions
from training.frames import FrameRule

SPEC = preset(num_frames=4, size_px=16)
ENTRY_BYTES = 4096 + 3 * 4 * 16 * 16
MIB = 1 << 20


@pytest.fixture
def clip(numbered_clip, tmp_path):
    """A copy of a numbered clip at `train/action_0/clip_0.mp4`."""
    path = tmp_path / "data" / "train" / "action_0" / "clip_0.mp4"
    path.parent.mkdir(parents=True)
    shutil.copy(numbered_clip(frames=126, size=(64, 64)), path)
    return path


def open_store(tmp_path, *, limit_bytes=MIB):
    return ClipStore(tmp_path / "cache", limit_bytes=limit_bytes)


def entry_files(store):
    return sorted(store.folder.glob("??/*"))


def test_what_was_put_comes_back(clip, tmp_path):
    store, source = open_store(tmp_path), Source.of(clip)
    assert store.get(source, SPEC) is None
    view = decode_clip(clip, SPEC)
    store.put(source, SPEC, view)
    assert np.array_equal(store.get(source, SPEC), view)
    assert np.array_equal(open_store(tmp_path).get(source, SPEC), view)
    assert store.used_bytes() == ENTRY_BYTES == entry_files(store)[0].stat().st_size


def test_writing_into_what_came_back_does_not_reach_the_file(clip, tmp_path):
    store, source = open_store(tmp_path), Source.of(clip)
    store.put(source, SPEC, decode_clip(clip, SPEC))
    before = store.get(source, SPEC).copy()
    store.get(source, SPEC)[:] = 0
    assert np.array_equal(store.get(source, SPEC), before)


def test_another_file_time_frame_or_size_is_another_entry(clip, tmp_path):
    store, source = open_store(tmp_path), Source.of(clip)
    store.put(source, SPEC, decode_clip(clip, SPEC))
    for other in (preset(num_frames=8, size_px=16), preset(num_frames=4, size_px=24)):
        assert store.get(source, other) is None
    assert store.get(source, preset(num_frames=4, size_px=16, resize="center_crop")) is None
    assert store.get(source, preset(num_frames=4, size_px=16, mean=(0.5, 0.5, 0.5))) is not None, "the same pixels"
    os.utime(clip, ns=(0, source.mtime_ns + 1))
    assert store.get(Source.of(clip), SPEC) is None


def test_a_data_set_that_is_mounted_elsewhere_finds_its_entries(clip, tmp_path):
    store = open_store(tmp_path)
    store.put(Source.of(clip), SPEC, decode_clip(clip, SPEC))
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / "train" / "action_0" / "clip_0.mp4"
    assert store.get(Source.of(moved), SPEC) is not None


def test_the_reason_of_an_unreadable_clip_is_remembered_until_the_file_changes(clip, tmp_path):
    clip.write_bytes(b"no video")
    reader = ClipReader(FrameRule(SPEC), store=open_store(tmp_path))
    record = MultiViewDataset(_annotated(clip), "train", clip=SPEC).records[0].clips[0]
    first = reader.read(record)
    assert "no video" in first
    assert reader.read(record) == first
    (entry,) = reader.store.entries()
    assert entry.reason in first
    clip.write_bytes(b"no video either")
    reader.read(record)
    assert len(list(reader.store.entries())) == 2


def _annotated(clip):
    """The root of `clip`, with annotations of it."""
    fields = {"Offence": "Offence", "Action class": "Tackling", "Severity": "3.0"}
    action = {**fields, "Clips": [{"Url": "Dataset/Train/action_0/clip_0", "Replay speed": 1.0}]}
    (clip.parent.parent / "annotations.json").write_text(json.dumps({"Set": "train", "Actions": {"0": action}}))
    return clip.parents[2]


@pytest.mark.parametrize("harm", ["pixel", "cut", "header", "empty"])
def test_a_damaged_entry_is_noticed_and_decoded_again(clip, tmp_path, capsys, harm):
    reader = ClipReader(FrameRule(SPEC), store=open_store(tmp_path))
    record = MultiViewDataset(_annotated(clip), "train", clip=SPEC).records[0].clips[0]
    view = reader.read(record).clone()
    (file,) = entry_files(reader.store)
    content = bytearray(file.read_bytes())
    content[{"pixel": 5000, "header": 0}.get(harm, 0)] ^= 1
    file.write_bytes({"cut": content[:-1], "empty": b""}.get(harm, bytes(content)))
    fresh = ClipReader(FrameRule(SPEC), store=open_store(tmp_path))
    with pytest.raises(DamagedEntryError, match="is damaged"):
        open_store(tmp_path, limit_bytes=0).get(Source.of(clip), SPEC)
    assert torch.equal(fresh.read(record), view)
    assert "is damaged" in capsys.readouterr().err
    assert torch.equal(ClipReader(FrameRule(SPEC), store=open_store(tmp_path)).read(record), view)
    assert capsys.readouterr().err == ""


def test_at_the_limit_nothing_is_added_nor_thrown_out_and_it_is_said_once(
    write_split, action, grey_clip, tmp_path, capfd
):
    root = write_split({str(k): action(str(k), {"clip_0": grey_clip(40 + k)}) for k in range(5)})
    data = MultiViewDataset(root, "train", clip=SPEC)
    plain = [sample.views for sample in data]
    data.clips = ClipReader(FrameRule(SPEC), store=open_store(tmp_path, limit_bytes=2 * ENTRY_BYTES + 1))
    loader = DataLoader(data, batch_size=1, num_workers=2, collate_fn=collate_actions)
    for _ in range(2):
        assert all(torch.equal(batch.views, views) for batch, views in zip(loader, plain, strict=True))
    assert len(entry_files(data.clips.store)) == 2
    told = capfd.readouterr().err
    assert told.count("has reached its limit of 0.00 GiB") == 1
    assert "Raise --data.cache-gib" in told


def test_a_disk_without_space_leaves_no_half_entry(clip, tmp_path):
    store, soft_hard = open_store(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, soft_hard[1]))
    try:
        with pytest.raises(CacheFullError, match=r"File too large.*Free space or choose another --data\.cache-dir"):
            store.put(Source.of(clip), SPEC, decode_clip(clip, SPEC))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft_hard)
    assert entry_files(store) == []
    assert store.get(Source.of(clip), SPEC) is None


def test_a_half_written_file_is_never_read_and_goes_when_it_is_old(clip, tmp_path):
    store = open_store(tmp_path)
    store.put(Source.of(clip), SPEC, decode_clip(clip, SPEC))
    (file,) = entry_files(store)
    half = file.rename(file.with_name("half.1.2.tmp"))
    assert store.get(Source.of(clip), SPEC) is None
    assert open_store(tmp_path).used_bytes() == 0
    assert half.exists(), "another process may be writing it"
    os.utime(half, (0, time.time() - 7200))
    open_store(tmp_path)
    assert not half.exists()


_PUT_ALL = """
import sys
from pathlib import Path
from mvfoul.clip import preset
from mvfoul.video import decode_clip
from training.cache.store import CacheFullError, ClipStore, Source
folder, limit, *paths = sys.argv[1:]
store, spec = ClipStore(Path(folder), limit_bytes=int(limit)), preset(num_frames=4, size_px=16)
for path in map(Path, paths):
    try:
        store.put(Source.of(path), spec, decode_clip(path, spec))
    except CacheFullError:
        break
"""


def test_several_processes_fill_it_together_and_keep_the_limit(clip, tmp_path, repo_root):
    paths = [clip]
    for number in range(1, 12):
        paths.append(clip.with_name(f"clip_{number}.mp4"))
        shutil.copy(clip, paths[-1])
    limit = 8 * ENTRY_BYTES
    command = [sys.executable, "-W", "error", "-c", _PUT_ALL, str(tmp_path / "cache"), str(limit)]
    environment = {**os.environ, "PYTHONPATH": str(repo_root)}
    orders = (paths, paths[::-1], paths[4:])
    processes = [subprocess.Popen([*command, *map(str, order)], env=environment) for order in orders]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    store = open_store(tmp_path, limit_bytes=limit)
    assert len(entry_files(store)) == 8
    assert store.used_bytes() == limit
    view = decode_clip(clip, SPEC)
    found = [store.get(Source.of(path), SPEC) for path in paths]
    assert sum(pixels is not None and np.array_equal(pixels, view) for pixels in found) == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"kind": "decoded clips of mvfoul", "version": 2}', r"another version \(format 2, this one reads 1\)"),
        ("no json", "another version"),
    ],
)
def test_a_cache_of_another_version_is_refused(tmp_path, content, message):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "format.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        open_store(tmp_path)


def test_a_folder_with_other_files_or_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.txt").write_text("do not prune me")
    with pytest.raises(ConfigError, match=r"holds other files \(thesis\.txt\)"):
        open_store(tmp_path)
    with pytest.raises(ConfigError, match=r"--data\.cache-dir /proc/nowhere cannot be used.*--data\.cache-gib 0"):
        ClipStore(Path("/proc/nowhere"), limit_bytes=MIB)


def test_with_a_limit_of_0_a_filled_cache_is_used_as_it_is(clip, tmp_path):
    with pytest.raises(ConfigError, match="holds no cache"):
        open_store(tmp_path, limit_bytes=0)
    open_store(tmp_path).put(Source.of(clip), SPEC, decode_clip(clip, SPEC))
    usage = (tmp_path / "cache" / "usage").stat().st_mtime_ns
    reader = ClipReader(FrameRule(SPEC), store=open_store(tmp_path, limit_bytes=0))
    other = clip.with_name("clip_1.mp4")
    shutil.copy(clip, other)
    data = MultiViewDataset(_annotated(clip), "train", clip=SPEC)
    data.clips = reader
    assert torch.equal(data[0].views[0], torch.from_numpy(decode_clip(clip, SPEC)))
    assert (tmp_path / "cache" / "usage").stat().st_mtime_ns == usage


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_gives_the_same_samples_from_the_cache_without_the_pixels_being_decoded(
    tiny_dataset, tmp_path, workers
):
    plain = list(MultiViewDataset(tiny_dataset, "train", clip=SPEC))
    data = MultiViewDataset(tiny_dataset, "train", clip=SPEC)
    data.clips = ClipReader(FrameRule(SPEC), store=open_store(tmp_path))
    loader = DataLoader(data, batch_size=4, num_workers=workers, collate_fn=collate_actions)
    for _ in range(2):
        assert torch.equal(torch.cat([batch.views for batch in loader]), torch.cat([s.views for s in plain]))
    assert len(entry_files(data.clips.store)) == 31


def config_of(root, tmp_path, **settings):
    data = CacheDataConfig(root=root, cache_dir=tmp_path / "cache", cache_gib=settings.pop("cache_gib", 1.0))
    return CacheConfig(**{"data": data, "clip": ClipConfig(num_frames=4, size_px=16), "workers": 1, **settings})


def test_building_fills_all_splits_and_a_second_time_decodes_nothing(tiny_dataset, tmp_path, capsys):
    config = config_of(tiny_dataset, tmp_path)
    assert run(config) == 0
    assert "68 of 68 clips: 68 decoded, 0 were there, 0 cannot be decoded" in capsys.readouterr().out
    assert run(config) == 0
    assert "68 of 68 clips: 0 decoded, 68 were there" in capsys.readouterr().out
    store = open_store(tmp_path, limit_bytes=0)
    for record in MultiViewDataset(tiny_dataset, "valid", clip=SPEC).records:
        assert all(store.has(Source.of(clip.path), SPEC) for clip in record.clips)


def test_an_interrupted_build_goes_on(tiny_dataset, tmp_path, capsys):
    config = config_of(tiny_dataset, tmp_path, split=("valid",))
    some = build(tasks_of(config), config)
    for _ in range(5):
        next(some)
    some.close()
    assert run(config) == 0
    line = next(text for text in capsys.readouterr().out.splitlines() if "of 15 clips" in text)
    there = int(line.split("decoded, ")[1].split()[0])
    assert 5 <= there < 15


def test_a_full_cache_ends_the_build_with_the_cure(tiny_dataset, tmp_path, capsys):
    assert run(config_of(tiny_dataset, tmp_path, cache_gib=3.5 * ENTRY_BYTES / 2**30)) == EXIT_FULL
    printed = capsys.readouterr().out
    assert "4 of 68 clips: 3 decoded" in printed
    assert "Raise --data.cache-gib" in printed


def test_unreadable_clips_are_named_and_remembered(write_split, action, grey_clip, tmp_path, capsys):
    root = write_split({"0": action("0", {"clip_0": grey_clip(40), "clip_1": b"no video"})})
    for _ in range(2):
        assert run(config_of(root, tmp_path)) == 0
        printed = capsys.readouterr().out
        assert "1 cannot be decoded" in printed
        assert "action_0/clip_1.mp4: the clip is no video" in printed


def test_pruning_removes_what_changed_and_what_is_gone_and_keeps_the_rest(
    write_split, action, grey_clip, tmp_path, capsys
):
    root = write_split({"0": action("0", {f"clip_{k}": grey_clip(40) for k in range(4)})})
    config = config_of(root, tmp_path)
    run(config)
    clips = [root / "train" / "action_0" / f"clip_{k}.mp4" for k in range(4)]
    clips[0].unlink()
    clips[1].write_bytes(grey_clip(90))
    store = open_store(tmp_path)
    damaged = next(entry.file for entry in store.entries() if entry.header["name"].endswith("clip_2.mp4"))
    damaged.write_bytes(b"x" * ENTRY_BYTES)
    capsys.readouterr()
    assert run(config_of(root, tmp_path, prune=True)) == 0
    printed = capsys.readouterr().out
    assert "2 entries removed: of a clip that changed or is gone" in printed
    assert "1 entries removed: damaged" in printed
    assert [Path(entry.header["name"]).name for entry in store.entries()] == ["clip_3.mp4"]
    assert store.used_bytes() == ENTRY_BYTES


def test_entries_of_another_decoder_are_stale_and_not_found(clip, tmp_path, monkeypatch):
    store, source = open_store(tmp_path), Source.of(clip)
    store.put(source, SPEC, decode_clip(clip, SPEC))
    monkeypatch.setattr("training.cache.store.PIXELS", 99)
    assert open_store(tmp_path).get(source, SPEC) is None
    (entry,) = store.entries()
    assert build_module.stale(entry, clip.parents[2]) == "of another decoder version"


def test_the_flags_are_those_of_training(tmp_path):
    args = ["--recipe", "mvit-2024", "--data.root", "data", "--data.cache-dir", "cache"]
    config = parse_config(args)
    assert config.clip.preset == "custom"
    assert parse_config([*args, "--clip.size-px", "112"]).clip.size_px == 112
    with pytest.raises(ConfigError, match=r"--data\.cache-gib is 0\.0"):
        CacheDataConfig(root=tmp_path, cache_dir=tmp_path, cache_gib=0.0)
    with pytest.raises(ConfigError, match=r"--augment\.temporal-jitter is 26"):
        config_of(tmp_path, tmp_path, temporal_jitter=26)
