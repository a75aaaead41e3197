"""The job that rolls back and promotes: its own command, on folders, killed anywhere; and what the next export does."""

from __future__ import annotations

import subprocess

import pytest

from mvfoul.artifact import publish
from tests.k8s import manifests

TEXT = (manifests.K8S / "artifact-job.yaml").read_text()
(CONTAINER,) = manifests.document("artifact-job.yaml", "Job")["spec"]["template"]["spec"]["containers"]


@pytest.fixture
def claim(tmp_path):
    for name, content in (("mvfoul", "bad"), ("mvfoul.previous", "good"), ("candidate", "tried")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(content)
    return tmp_path


def _run(claim, script=CONTAINER["args"][0], *, lines=None):
    """Run the container's command in the claim; with `lines`, killed after so many commands that change something."""
    if lines is not None:
        steps = 'mv() { [ $n -lt MAX ] || exit 9; n=$((n+1)); command mv "$@"; }; n=0\n'.replace("MAX", str(lines))
        script = steps + script
    assert CONTAINER["workingDir"] == "/artifacts"
    command = [*CONTAINER["command"], script]
    return subprocess.run(command, cwd=claim, capture_output=True, text=True, check=False).returncode


def _content(claim):
    return {path.name: (path / "manifest.json").read_text() for path in claim.iterdir()}


def test_a_roll_back_changes_places_and_undoes_itself(claim):
    before = _content(claim)
    assert _run(claim) == 0
    assert _content(claim) == {**before, "mvfoul": "good", "mvfoul.previous": "bad"}
    assert _run(claim) == 0
    assert _content(claim) == before


def test_the_export_after_a_roll_back_keeps_the_good_one(claim):
    assert _run(claim) == 0
    (claim / "work").mkdir()
    (claim / "work" / "manifest.json").write_text("new")
    publish(claim / "work", claim / "mvfoul")
    assert _content(claim) == {"mvfoul": "new", "mvfoul.previous": "good", "candidate": "tried"}


def test_a_canary_is_promoted_by_the_command_that_the_head_shows(claim):
    old, new = "TAKEN=mvfoul.previous", "TAKEN=candidate"
    assert f"sed 's|{old}|{new}|' k8s/artifact-job.yaml" in TEXT
    assert _run(claim, CONTAINER["args"][0].replace(old, new)) == 0
    assert _content(claim) == {"mvfoul": "tried", "mvfoul.previous": "bad"}


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_killed_anywhere_it_is_finished_by_the_next_one(claim, lines):
    before = _content(claim)
    assert _run(claim, lines=lines) == 9
    assert sorted(_content(claim).values()) == sorted(before.values())
    assert _run(claim) == 0
    assert _content(claim) == {**before, "mvfoul": "good", "mvfoul.previous": "bad"}


def test_without_an_artifact_before_nothing_is_changed(claim):
    _run(claim, "rm -r mvfoul.previous")
    before = _content(claim)
    assert _run(claim) != 0
    assert _content(claim) == before
    assert manifests.document("artifact-job.yaml", "Job")["spec"]["backoffLimit"] == 0
