"""What made a run can be told later."""

from __future__ import annotations

import json
import shutil
import subprocess

import torch

from training.annotations import load_annotations
from training.provenance import data_identity, git_revision, versions


def _git(folder, *args):
    command = ["git", "-C", folder, "-c", "user.name=x", "-c", "user.email=x@example.org", *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_versions_that_decide_the_numbers_are_known():
    assert versions()["torch"].startswith(torch.__version__.split("+")[0])
    assert set(versions()) == {"python", "vars-platform", "torch", "torchvision", "av", "numpy"}


def test_the_revision_of_the_code_and_whether_it_was_changed_are_known(tmp_path):
    _git(tmp_path, "init", "-q")
    code = tmp_path / "provenance.py"
    code.write_text("one")
    assert git_revision(tmp_path) == {"revision": "unknown"}  # somebody else's repository: the file is not tracked
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "first")
    revision = _git(tmp_path, "rev-parse", "HEAD")
    assert git_revision(tmp_path) == {"revision": revision, "dirty": False}
    code.write_text("two")
    assert git_revision(tmp_path) == {"revision": revision, "dirty": True}


def test_without_a_repository_or_without_git_the_revision_is_unknown(tmp_path, monkeypatch):
    assert git_revision(tmp_path) == {"revision": "unknown"}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision() == {"revision": "unknown"}


def test_data_is_the_same_wherever_it_lies_and_another_label_makes_it_other_data(tiny_dataset, tmp_path):
    before = data_identity(load_annotations(tiny_dataset, "train"))
    assert (before["actions"], before["clips"]) == (16, 31)
    shutil.copytree(tiny_dataset, tmp_path / "moved")
    assert data_identity(load_annotations(tmp_path / "moved", "train")) == before
    path = tmp_path / "moved" / "train" / "annotations.json"
    document = json.loads(path.read_text())
    document["Actions"]["3"]["Action class"] = "Tackling"
    path.write_text(json.dumps(document))
    changed = data_identity(load_annotations(tmp_path / "moved", "train"))
    assert changed["sha256"] != before["sha256"]
    assert changed["actions"] == 16
