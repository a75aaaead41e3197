"""What is refused, and what is left behind: nothing half-written, and the old artifact as it was."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from export.__main__ import main
from export.batches import generated_batches, golden_views
from export.config import ExportConfig, Tolerance
from export.golden import write_golden
from export.model_card import write_model_card
from export.parity import check_parity
from export.parity_files import write_parity
from export.pipeline import export_checkpoint, work_folder
from export.torch_runner import TorchRunner
from mvfoul.artifact import load_artifact, read_manifest
from mvfoul.errors import ArtifactError


def _run(monkeypatch, capsys, *flags):
    monkeypatch.setattr("sys.argv", ["export", *map(str, flags)])
    return main(), capsys.readouterr().err


def _changed(tiny_checkpoint, path, change):
    document = torch.load(tiny_checkpoint, weights_only=True)
    change(document)
    torch.save(document, path)
    return path


def _tool(name):
    """The absolute path of a command of the system."""
    path = shutil.which(name)
    assert path is not None, name
    return path


@contextmanager
def _files_of_at_most(size_bytes):
    """To a writer this looks like a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("state_dict"), "is not a complete checkpoint"),
        (lambda d: d["labels"]["action"].reverse(), "was trained on labels"),
        (lambda d: d.update(schema_version=99), "has schema version 99"),
        (lambda d: d.update(backbone="r3d_18"), "does not fit r3d_18"),
        (lambda d: d.update(backbone="resnet"), "cannot be rebuilt"),
        (lambda d: d["state_dict"].popitem(), "does not fit mc3_18"),
        (lambda d: d["clip"].update(frame_indices=[1, 2]), "is not a complete checkpoint"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_in_one_line_with_exit_code_2(
    tiny_checkpoint, tmp_path, monkeypatch, capsys, change, said
):
    path = _changed(tiny_checkpoint, tmp_path / "best.pth.tar", change)
    code, shown = _run(monkeypatch, capsys, "--ckpt", path)
    assert code == 2
    assert said in shown
    assert str(path) in shown
    assert len(shown.splitlines()) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["best.pth.tar"], "nothing else is written"


@pytest.mark.parametrize("step", ["golden", "parity", "card"])
def test_a_disk_that_is_full_at_a_later_step_is_an_error_too(source, tiny_artifact, tmp_path, step):
    reference = TorchRunner(source.network, source.checkpoint.temperatures)
    batches = generated_batches(source.network.clip)[:1]
    report = check_parity(reference, reference, batches, Tolerance(), max_views=1)
    manifest = read_manifest(tiny_artifact)
    steps = {
        "golden": lambda work: write_golden(
            work / "golden.npz", reference, reference, golden_views(source.network.clip), limit=1
        ),
        "parity": lambda work: write_parity(work, report),
        "card": lambda work: write_model_card(work, manifest),
    }
    with (
        pytest.raises(ArtifactError, match=r"cannot write the artifact .*nothing was changed"),
        work_folder(tmp_path / "artifact") as work,
        _files_of_at_most(1000),
    ):
        steps[step](work)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_small_disk_that_fills_up_leaves_the_old_artifact_valid(tiny_checkpoint, tiny_artifact, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in tiny_artifact.iterdir())
    mounted = subprocess.run(
        [_tool("mount"), "-t", "tmpfs", "-o", f"size={size + 20_000_000}", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        shutil.copytree(tiny_artifact, disk / "artifact")
        with pytest.raises(ArtifactError, match="No space left on device"):
            export_checkpoint(ExportConfig(ckpt=tiny_checkpoint, output=disk / "artifact"))
        assert [entry.name for entry in disk.iterdir()] == ["artifact"]
        load_artifact(disk / "artifact")
        subprocess.run([_tool("mount"), "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(ArtifactError, match="Read-only file system"):
            export_checkpoint(ExportConfig(ckpt=tiny_checkpoint, output=disk / "artifact"))
        load_artifact(disk / "artifact")
    finally:
        subprocess.run([_tool("umount"), str(disk)], check=True)


def test_the_printed_command_does_the_same_when_it_is_pasted(tiny_checkpoint, repo_root, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    (folder / "best.pth.tar").symlink_to(tiny_checkpoint)
    monkeypatch.chdir(tmp_path)
    flags = ["--ckpt", "it's a folder/best.pth.tar", "--tolerance.logits", "1e-12"]
    monkeypatch.setattr("sys.argv", ["export", *flags])
    assert main() == 3
    (command,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("The same again: "))
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "PATH": f"{Path(sys.executable).parent}:{os.defpath}"}
    pasted = subprocess.run(
        [_tool("bash"), "-c", command.removeprefix("The same again: ")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert pasted.returncode == 3, pasted.stderr
    assert "nothing is published" in pasted.stdout
    left = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    assert len(left) == 2
    assert all(name.startswith("artifact.work-") for name in left)


def test_the_next_commands_can_be_pasted_where_the_folder_has_a_space(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    target = tmp_path / "my artifact"
    monkeypatch.setattr("sys.argv", ["export", "--ckpt", str(tiny_checkpoint), "--output", str(target)])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    words = [shlex.split(line) for line in lines if line.startswith("  python -m ")]
    assert ["python", "-m", "export.inspect", str(target)] in words
    assert ["python", "-m", "serving", "--artifact", str(target)] in words


ANSWERS = {"action": {"labels": [251, *[0] * 7], "confidences": [*[0] * 9, 251], "temperature": 1.0}}


@pytest.fixture
def metrics(tmp_path):
    """A metrics.json of the tiny checkpoint, with what must not enter an artifact."""
    document = {
        "split": "test",
        "checkpoint": "/home/someone/best.pth.tar",
        "backbone": "mc3_18",
        "aggregation": "attention",
        "epoch": 3,
        "actions": 251,
        "answers": ANSWERS,
        "skipped_clips": ["/home/someone/clip_0.mp4: damaged"],
        "score": 0.5,
    }
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(document))
    return path


def test_an_evaluation_given_as_a_file_goes_into_manifest_and_card_without_its_paths(
    tiny_checkpoint, tmp_path, metrics
):
    target = tmp_path / "artifact"
    export_checkpoint(ExportConfig(ckpt=tiny_checkpoint, output=target, evaluation=metrics))
    published = {"split": "test", "actions": 251, "score": 0.5, "answers": ANSWERS}
    assert load_artifact(target).manifest.evaluation == published
    card = (target / "MODEL_CARD.md").read_text()
    assert "In percent; test, 251 actions." in card
    assert "/home/someone" not in card


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(epoch=4), "is of ('mc3_18', 'attention', 4), and"),
        (lambda d: d.pop("backbone"), "is no metrics.json (KeyError('backbone'))"),
    ],
)
def test_an_evaluation_of_another_checkpoint_is_refused(
    tiny_checkpoint, tmp_path, monkeypatch, capsys, metrics, change, said
):
    document = json.loads(metrics.read_text())
    change(document)
    metrics.write_text(json.dumps(document))
    flags = ("--ckpt", tiny_checkpoint, "--output", tmp_path / "artifact", "--evaluation", metrics)
    code, shown = _run(monkeypatch, capsys, *flags)
    assert code == 2
    assert said in shown
    assert not (tmp_path / "artifact").exists()
