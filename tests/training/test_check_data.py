import json
import subprocess
import sys

import pytest

from training.annotations import load_annotations
from training.check_data import main


@pytest.fixture
def write(write_split, action, grey_clip):
    """`write({"0": [good, None, b"broken"]})`, `good` standing for a clip that is fine."""

    def write_actions(actions, folder="train", **fields):
        written = {}
        for action_id, contents in actions.items():
            clips = {f"clip_{k}": grey_clip(90) if c == "good" else c for k, c in enumerate(contents)}
            written[action_id] = action(action_id, clips, **fields)
        return write_split(written, folder)

    return write_actions


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_a_clean_data_set_gives_0(write, capsys):
    write({"0": ["good", "good"]}, "train")
    root = write({"0": ["good"], "1": ["good"]}, "test")
    assert run("--root", root, "--deep") == 0
    printed = capsys.readouterr().out
    assert "1 actions used, 0 dropped; 2 clips" in printed
    assert "2 actions used, 0 dropped; 2 clips" in printed
    assert printed.count("every clip is usable") == 2


def test_every_kind_of_fault_is_found_and_gives_1(write, grey_clip, tmp_path, capsys):
    root = write({"0": ["good", None, b"no video", grey_clip(90)[:900], grey_clip(90, frames=80)], "1": [b""]})
    report = tmp_path / "report.json"
    assert run("--root", root, "--json", report) == 1

    printed = capsys.readouterr().out
    assert "5 clips will be left out (1 missing, 3 unreadable, 1 too short); 1 actions have no view left" in " ".join(
        printed.split()
    )
    split = json.loads(report.read_text())["splits"]["train"]
    found = {(fault["action_id"], fault["path"][-10:], fault["kind"]) for fault in split["faults"]}
    assert found == {
        ("0", "clip_1.mp4", "missing"),
        ("0", "clip_2.mp4", "unreadable"),
        ("0", "clip_3.mp4", "unreadable"),
        ("0", "clip_4.mp4", "too short"),
        ("1", "clip_0.mp4", "unreadable"),
    }
    assert split["actions_without_view"] == ["1"]
    reasons = " ".join(fault["reason"] for fault in split["faults"])
    assert "80 frames, 3.20 s; a frame at 3.92 s is needed" in reasons
    assert "moov atom not found" in reasons


def test_damaged_pictures_are_found_by_the_deep_scan_only(write, grey_clip):
    clip = bytearray(grey_clip(90))
    start = clip.index(b"mdat") + 4
    size = int.from_bytes(clip[start - 8 : start - 4], "big") - 8
    clip[start + size // 2 : start + size] = b"\xff" * (size - size // 2)
    root = write({"0": ["good", bytes(clip)]})
    assert run("--root", root) == 0
    assert run("--root", root, "--deep") == 1


def test_a_clip_is_too_short_for_a_preset_only_where_the_preset_needs_more(write, grey_clip):
    root = write({"0": [grey_clip(90, frames=90)]})
    assert run("--root", root) == 1
    assert run("--root", root, "--preset", "vars-2023") == 0


def test_an_action_that_lost_all_its_clips_gives_1(write, tmp_path):
    root = write({"0": ["good"], "1": [None]})
    report = tmp_path / "report.json"
    assert run("--root", root, "--json", report) == 1
    assert json.loads(report.read_text())["splits"]["train"]["actions_without_view"] == ["1"]


def test_what_the_filter_drops_is_counted_and_is_no_fault(write_split, action, grey_clip, capsys, tmp_path):
    root = write_split(
        {
            "0": action("0", {"clip_0": grey_clip(90)}),
            "1": action("1", {"clip_0": b"broken, and nobody needs it"}, **{"Action class": "Dont know"}),
        }
    )
    report = tmp_path / "report.json"
    assert run("--root", root, "--json", report) == 0
    document = json.loads(report.read_text())
    assert document["clean"] is True
    split = document["splits"]["train"]
    assert split["dropped"] == [{"action_id": "1", "reason": 'action class is "" or "Dont know"'}]
    assert split["class_counts"]["action"]["Tackling"] == 1
    assert split["class_counts"]["offence_severity"]["Offence + Yellow card"] == 1
    assert split["actions_by_views"] == {"1": 1}
    assert 'action class is "" or "Dont know"' in capsys.readouterr().out


def test_the_scan_agrees_with_the_annotations_reader(write):
    root = write({"0": ["good"], "1": ["good", "good"]})
    assert load_annotations(root, "train").view_counts() == {1: 1, 2: 1}
    assert run("--root", root, "--split", "Train") == 0


def test_only_the_splits_that_are_named_are_checked(write, capsys):
    write({"0": [b"broken"]}, "train")
    root = write({"0": ["good"]}, "chall")
    assert run("--root", root, "--split", "challenge") == 0
    assert "train" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--root", "nowhere"), "data root nowhere is not a folder"),
        (("--root", ".", "--split", "dev"), "unknown split 'dev'"),
    ],
)
def test_what_cannot_be_read_gives_2_and_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_a_flag_out_of_range_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--root", ".", "--threads", "0")
    assert stop.value.code == 2
    assert "--threads is 0; use 1 or more" in capsys.readouterr().err


def test_a_folder_without_splits_gives_2(tmp_path, capsys):
    assert run("--root", tmp_path) == 2
    assert "has no split 'train'" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["training.check_data", "training.check-data"])
def test_help_explains_every_flag_under_both_names_and_needs_neither_torch_nor_av(module, repo_root):
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{module!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code\n"
        "assert not {'torch', 'av'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for flag in ("--root", "--split", "--deep", "--preset", "--threads", "--json"):
        assert flag in done.stdout


def test_the_real_sample_is_clean(sample_root):
    assert run("--root", sample_root, "--deep") == 0
