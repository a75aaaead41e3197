"""The data set that `python -m training.synthetic` writes: layout, annotations, files, and what happens to `--out`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import pytest
from rich.console import Console

from mvfoul.clip import preset
from mvfoul.errors import ConfigError
from mvfoul.labels import ACTION_CLASSES, soccernet_fields
from mvfoul.video import decode_clip
from training.annotations import load_annotations
from training.official import official_count
from training.synthetic.config import SplitShares, SyntheticConfig, parse_config
from training.synthetic.generate import RECORD, generate
from training.synthetic.plan import FILTER_CASES, plan_actions

GOLDEN = Path(__file__).parent / "golden" / "synthetic_help.txt"

# As in the annotations.json of SoccerNet-MVFoul, in its order.
FIELDS = [
    "UrlLocal",
    "Offence",
    "Contact",
    "Bodypart",
    "Upper body part",
    "Action class",
    "Severity",
    "Multiple fouls",
    "Try to play",
    "Touch ball",
    "Handball",
    "Handball offence",
    "Clips",
]
CLIP_FIELDS = ["Url", "Camera type", "Timestamp", "Replay speed"]


def settings(out: Path, **changes: object) -> SyntheticConfig:
    """40 actions, half of them odd, so that the 28 of train have every filter case."""
    small = SyntheticConfig(out=out, actions=40, width=64, height=36, filtered_fraction=0.5, workers=1, seed=3)
    return replace(small, **changes)


def make(config: SyntheticConfig) -> tuple[bool, str]:
    """Generate; return whether the data set was kept, and what was printed."""
    printed = io.StringIO()
    outcome = generate(config, console=Console(file=printed, width=200))
    return outcome.kept, printed.getvalue()


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "data"
    kept, _ = make(settings(out, workers=2))
    assert not kept
    return out


@pytest.fixture(scope="module")
def annotations(dataset):
    return {
        split: json.loads((dataset / split / "annotations.json").read_text()) for split in ("train", "valid", "test")
    }


def all_actions(annotations):
    return [fields for document in annotations.values() for fields in document["Actions"].values()]


# --- layout and annotations


def test_the_annotations_have_the_official_fields_in_the_official_order(annotations):
    for split, document in annotations.items():
        assert list(document) == ["Set", "Number of actions", "Actions"]
        assert document["Set"] == split
        assert document["Number of actions"] == len(document["Actions"])
        assert list(document["Actions"]) == [str(i) for i in range(len(document["Actions"]))]
    for fields in all_actions(annotations):
        assert list(fields) == FIELDS
        assert all(list(clip) == CLIP_FIELDS for clip in fields["Clips"])


def test_fields_and_types_are_those_of_the_real_annotations(annotations, sample_root):
    real = json.loads((sample_root / "test" / "annotations.json").read_text())
    action = real["Actions"]["0"]
    assert (list(real), list(action), list(action["Clips"][0])) == (list(annotations["test"]), FIELDS, CLIP_FIELDS)
    types = {key: type(value) for key, value in action["Clips"][0].items()}
    for fields in all_actions(annotations):
        for clip in fields["Clips"]:
            assert {key: type(value) for key, value in clip.items()} == types


def test_every_annotated_clip_is_on_disk_and_no_other(dataset, annotations):
    named = {
        f"{split}/{clip['Url'].removeprefix('Dataset/')}.mp4"
        for split, document in annotations.items()
        for fields in document["Actions"].values()
        for clip in fields["Clips"]
    }
    assert named == {str(path.relative_to(dataset)) for path in dataset.rglob("*.mp4")}


def test_actions_have_2_to_4_views_and_a_replay_speed_each(annotations):
    views = Counter(len(fields["Clips"]) for fields in all_actions(annotations))
    assert set(views) == {2, 3, 4}
    speeds = [clip["Replay speed"] for fields in all_actions(annotations) for clip in fields["Clips"]]
    assert min(speeds) == 1.0 < max(speeds) <= 10.0


def test_the_shares_of_the_splits_are_kept(annotations):
    assert {split: len(document["Actions"]) for split, document in annotations.items()} == {
        "train": 28,
        "valid": 4,
        "test": 8,
    }


# --- the official filter


def test_every_filter_case_occurs(annotations):
    def found(*, dive, **wanted):
        return any(
            (fields["Action class"] == "Dive") == dive and all(fields[key] == value for key, value in wanted.items())
            for fields in (
                {**fields, "Class": fields["Action class"]} for fields in annotations["train"]["Actions"].values()
            )
        )

    for name in ("", "Dont know"):
        assert found(dive=False, Class=name), name
    for offence in ("", "Between"):
        assert found(dive=False, Offence=offence), offence
        assert found(dive=True, Offence=offence), offence
    for severity in ("", "2.0", "4.0"):
        assert found(dive=False, Offence="Offence", Severity=severity), severity
    assert found(dive=False, Offence="No Offence")
    assert found(dive=False, Offence="No offence", Severity="2.0")
    assert any(isinstance(fields["Severity"], float) for fields in all_actions(annotations))
    numbers = [[int(clip["Url"][-1]) for clip in fields["Clips"]] for fields in all_actions(annotations)]
    assert any(row != list(range(len(row))) for row in numbers)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_the_loader_drops_what_was_planned_to_be_dropped_and_reads_the_planned_labels(dataset, split):
    planned = [action for action in plan_actions(settings(dataset)) if action.split == split]
    loaded = load_annotations(dataset, split)
    kept = {str(action.action_id): action.labels for action in planned if not action.dropped}
    assert {record.action_id: record.labels for record in loaded.records} == kept
    assert len(loaded.dropped) == sum(action.dropped for action in planned)
    assert {issue.reason for issue in loaded.clip_issues} <= {"gap in the clip numbers"}


def test_without_odd_annotations_the_labels_are_balanced(tmp_path):
    config = settings(tmp_path, actions=300, filtered_fraction=0.0)
    for split, count in config.splits.counts(300).items():
        labels = [action.labels for action in plan_actions(config) if action.split == split]
        assert len(labels) == count
        for head, names in (("action", 8), ("offence_severity", 4)):
            counts = Counter(getattr(label, head) for label in labels)
            assert len(counts) == names
            # The last eight actions of a split may be cut short.
            assert max(counts.values()) - min(counts.values()) <= 2, (split, head, counts)


def test_the_right_answers_are_right_for_the_official_evaluator_too(dataset):
    # It never counts a Dive with a card, nor an odd spelling of the offence.
    odd_spellings = {case.name for case in FILTER_CASES if "Offence" in case.fields and not case.dropped}
    for split in ("train", "valid", "test"):
        planned = [action for action in plan_actions(settings(dataset)) if action.split == split]
        document = json.loads((dataset / split / "annotations.json").read_text())
        right = {str(action.action_id): soccernet_fields(action.labels) for action in planned}
        count = official_count(document, {"Actions": right})
        odd = {str(action.action_id) for action in planned if action.case and action.case.name in odd_spellings}
        assert set(count.never_right) == odd


def test_half_of_the_filter_cases_are_dropped_as_the_help_says():
    assert len(FILTER_CASES) == 13
    assert sum(case.dropped for case in FILTER_CASES) == 7


# --- files


def test_clips_are_126_frames_of_h264_at_25_fps(dataset):
    paths = sorted(dataset.rglob("*.mp4"))
    for path in paths[:: len(paths) // 12]:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            shown = (stream.codec_context.name, stream.codec_context.pix_fmt, stream.width, stream.height)
            assert shown == ("h264", "yuv420p", 64, 36)
            assert (stream.average_rate, len(container.streams)) == (25, 1)
            packets = [packet for packet in container.demux(stream) if packet.size]
            assert len(packets) == 126
            shown_frames = sorted(packet.pts * packet.time_base * 25 for packet in packets)
            assert shown_frames == list(range(126))
            keyframes = [packet.pts * packet.time_base * 25 for packet in packets if packet.is_keyframe]
            assert keyframes == [0, 50, 100]


def test_the_projects_decoder_reads_the_clips(dataset):
    view = decode_clip(dataset / "train" / "action_0" / "clip_0.mp4", preset(num_frames=8, size_px=16))
    assert view.shape == (3, 8, 16, 16)
    assert view.std() > 5


def test_the_same_flags_give_the_same_bytes_whatever_the_number_of_processes(dataset, tmp_path):
    make(settings(tmp_path / "again", workers=1))
    assert digest(tmp_path / "again") == digest(dataset)


def test_another_seed_gives_other_clips_of_other_actions(dataset, tmp_path):
    make(settings(tmp_path / "other", seed=4, actions=4, splits=SplitShares(train=0.5, valid=0.25, test=0.25)))
    theirs = {digest for name, digest in digest(tmp_path / "other").items() if name.endswith(".mp4")}
    assert not theirs & set(digest(dataset).values())


# --- what happens to --out


def test_an_interrupted_run_leaves_no_data_set_and_can_be_started_again(dataset, repo_root, tmp_path):
    out = tmp_path / "data"
    flags = ["--actions", "40", "--width", "64", "--height", "36", "--filtered-fraction", "0.5", "--seed", "3"]
    command = [sys.executable, "-m", "training.synthetic", "--out", str(out), "--workers", "2", *flags]
    environment = {**os.environ, "PYTHONPATH": str(repo_root)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while process.poll() is None and not list(tmp_path.glob(".data.partial/*/*/clip_*.mp4")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.endswith("interrupted; start the same command again\n")
    assert "Traceback" not in errors
    assert not out.exists()

    kept, printed = make(settings(out))
    assert not kept
    assert "an earlier run was interrupted; starting anew" in printed
    assert digest(out) == digest(dataset)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_complete_data_set_of_the_same_flags_is_kept(dataset):
    before = digest(dataset)
    kept, printed = make(settings(dataset))
    assert kept
    assert "complete already, kept" in printed
    assert digest(dataset) == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 4}, "seed 3 there, 4 asked for"),
        ({"width": 66}, "width 64 there, 66 asked for"),
        ({"actions": 41}, "actions 40 there, 41 asked for"),
        ({"splits": SplitShares(train=0.5, valid=0.25, test=0.25)}, "splits {'train': 0.7"),
    ],
)
def test_a_data_set_of_other_flags_is_refused_with_the_cure(dataset, changes, told):
    before = digest(dataset)
    with pytest.raises(ConfigError) as raised:
        make(settings(dataset, **changes))
    assert told in str(raised.value)
    assert "--overwrite" in str(raised.value)
    assert digest(dataset) == before


def tiny(out: Path, **changes: object) -> SyntheticConfig:
    return settings(out, actions=3, splits=SplitShares(train=1, valid=0, test=0), **changes)


def test_overwrite_replaces_a_synthetic_data_set(tmp_path):
    out = tmp_path / "data"
    make(tiny(out))
    before = digest(out)
    make(tiny(out, seed=8, overwrite=True))
    after = digest(out)
    assert not set(before.values()) & set(after.values())
    assert json.loads((out / RECORD).read_text())["seed"] == 8
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_that_is_no_synthetic_data_set_is_never_replaced(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "annotations.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"never replaced\. Name another folder"):
        make(tiny(tmp_path, overwrite=True))
    assert (tmp_path / "train" / "annotations.json").read_text() == "{}"


def test_an_empty_folder_is_filled(tmp_path):
    make(tiny(tmp_path))
    assert (tmp_path / "train" / "annotations.json").is_file()
    assert not (tmp_path / "valid").exists()  # no action, so no split that the loader would find empty


def test_a_data_set_that_lost_clips_is_refused_with_the_cure(tmp_path):
    make(tiny(tmp_path))
    next(tmp_path.rglob("*.mp4")).unlink()
    with pytest.raises(ConfigError, match=r"has \d of its \d+ clips. Write it anew with --overwrite"):
        make(tiny(tmp_path))


# --- what is printed, and the flags


def test_the_summary_counts_every_class_of_every_split_and_names_the_next_command(dataset):
    _, printed = make(settings(dataset))
    rows = {line[:25].strip(): line[25:].split() for line in printed.splitlines() if line.startswith(" ")}
    for name in ACTION_CLASSES:
        kept = [action for action in plan_actions(settings(dataset)) if not action.dropped]
        expected = Counter(action.split for action in kept if action.labels.action_class == name)
        assert rows[name] == [str(expected[split]) for split in ("train", "valid", "test")], name
    assert f"python -m training --data.root {dataset}" in printed


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"width": 63}, "--width is 63. Use an even number"),
        ({"height": 16}, "--height is 16. Use an even number from 32"),
        ({"actions": 2}, "--actions is 2. Use 3 or more"),
        ({"workers": 0}, "--workers is 0. Use 1 or more"),
        ({"filtered_fraction": 1.5}, "--filtered-fraction is 1.5. Use 0 to 1"),
        ({"seed": -1}, "--seed is -1. Use a whole number"),
    ],
)
def test_nonsense_is_refused_with_the_flag_and_the_cure(tmp_path, changes, told):
    with pytest.raises(ConfigError) as raised:
        SyntheticConfig(out=tmp_path, **changes)
    assert told in str(raised.value)


def test_shares_that_do_not_add_up_to_1_are_refused():
    with pytest.raises(ConfigError, match="Use three shares that add up to 1"):
        SplitShares(train=0.9)


def test_the_command_line_refuses_in_one_sentence_and_exits_with_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_config(["--out", str(tmp_path), "--width", "63"])
    assert stopped.value.code == 2
    assert "--width is 63. Use an even number" in capsys.readouterr().err


def test_flags_override_the_recipe(tmp_path):
    config = parse_config(["--out", str(tmp_path), "--recipe", "demo", "--actions", "12"])
    assert (config.recipe, config.actions, config.width, config.height) == ("demo", 12, 160, 90)


def test_the_default_picture_is_as_large_as_soccernets(tmp_path):
    config = parse_config(["--out", str(tmp_path)])
    assert (config.width, config.height) == (398, 224)


def test_the_help_is_the_golden_one(repo_root):
    # After a change on purpose: COLUMNS=110 python -m training.synthetic --help > golden/synthetic_help.txt
    environment = {**os.environ, "COLUMNS": "110", "PYTHONPATH": str(repo_root), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "training.synthetic", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines() == GOLDEN.read_text().splitlines()
