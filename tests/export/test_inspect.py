"""`python -m export.inspect`: a sound artifact, and each way to damage one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.inspect import main
from export.inspection import inspect_artifact
from mvfoul.artifact import ENCODER, GOLDEN, HEAD, MANIFEST, MERGED, load_artifact, read_manifest, write_manifest
from mvfoul.plan import PLAN, PlanSpec, TensorRTHost

GOLDEN_HELP = Path(__file__).parent / "golden" / "inspect_help.txt"


@pytest.fixture
def copy(tiny_artifact, tmp_path):
    return Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))


def _run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["inspect", *map(str, arguments)])
    return main(), capsys.readouterr().out


def _edit(directory, change):
    path = directory / MANIFEST
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_help_is_the_golden_text(repo_root):
    """Changed on purpose? `COLUMNS=100 NO_COLOR=1 python -m export.inspect --help > …/golden/inspect_help.txt`."""
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "export.inspect", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=repo_root)
    assert shown.stdout == GOLDEN_HELP.read_text()


def test_a_sound_artifact_is_shown_with_all_that_was_verified(merged_artifact, monkeypatch, capsys):
    code, said = _run(monkeypatch, capsys, merged_artifact)
    assert code == 0
    assert said.rstrip().endswith("sound")
    for expected in (
        f"version {load_artifact(merged_artifact).version}",
        "mc3_18, attention, epoch 3, fp32",
        "8 frames of 32 px, squash, up to 5 views",
        "score       25.0",
        "ok      self-test:",
        f"ok      {MERGED}: loads in ONNX Runtime",
        "45.935 MB  encoder.onnx",
    ):
        assert expected in said
    assert "FAULT" not in said


def test_json_holds_the_same(merged_artifact, monkeypatch, capsys):
    code, said = _run(monkeypatch, capsys, merged_artifact, "--json")
    document = json.loads(said)
    assert code == 0
    assert document["sound"] is True
    assert document["faults"] == []
    assert document["manifest"]["origin"]["backbone"] == "mc3_18"
    assert document["sizes_bytes"][MERGED] == (merged_artifact / MERGED).stat().st_size


def _remove_head(directory):
    (directory / HEAD).unlink()


def _change_a_byte(directory):
    data = bytearray((directory / ENCODER).read_bytes())
    data[len(data) // 2] ^= 1
    (directory / ENCODER).write_bytes(data)


def _change_weights(directory):
    """A graph that loads, and answers otherwise; the manifest is written anew, so only the self-test can tell."""
    model = onnx.load(directory / HEAD)
    bias = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [8])
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(1), bias.name))
    manifest = read_manifest(directory)
    onnx.save(model, directory / HEAD)
    write_manifest(directory, manifest)


def _swap_graphs(directory):
    manifest = read_manifest(directory)
    shutil.copy(directory / HEAD, directory / ENCODER)
    write_manifest(directory, manifest)


def _no_verdict(directory):
    manifest = read_manifest(directory)
    document = json.loads((directory / "parity.json").read_text())
    document["checks"][4]["passed"] = False
    (directory / "parity.json").write_text(json.dumps(document))
    write_manifest(directory, manifest)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: (d / MANIFEST).unlink(), "is not an artifact: no manifest.json"),
        (lambda d: (d / MANIFEST).write_text("{"), "is not JSON"),
        (lambda d: _edit(d, lambda m: m.update(schema_version=7)), "has schema version 7"),
        (lambda d: _edit(d, lambda m: m["labels"]["action"].reverse()), "has labels"),
        (lambda d: _edit(d, lambda m: m.update(precision="int3")), "precision 'int3' is not known here"),
        (_remove_head, "head.onnx is missing, though the manifest lists it"),
        (_change_a_byte, "encoder.onnx has SHA-256"),
        (_change_weights, "self-test against golden.npz: ACTION_LOGITS is 1 off"),
        (_swap_graphs, "encoder.onnx is not what the manifest promises"),
        (lambda d: (d / GOLDEN).write_bytes(b"x"), "golden.npz is no archive of arrays"),
        (_no_verdict, "parity has not passed (FEATURES)"),
    ],
)
def test_every_damage_is_a_line_and_exit_code_3(copy, monkeypatch, capsys, damage, said):
    damage(copy)
    code, shown = _run(monkeypatch, capsys, copy)
    assert code == 3
    faults = [line for line in shown.splitlines() if "FAULT" in line]
    assert said in "\n".join(faults)
    assert "do not serve it" in shown


def test_all_faults_are_found_at_once(copy):
    _remove_head(copy)
    (copy / GOLDEN).write_bytes(b"x")
    found = inspect_artifact(copy)
    assert any("head.onnx is missing" in fault for fault in found.faults)
    assert any("golden.npz has SHA-256" in fault for fault in found.faults)


def test_a_file_that_is_not_listed_is_noted(copy):
    (copy / "notes.txt").write_text("mine")
    found = inspect_artifact(copy)
    assert found.sound
    assert any("notes.txt" in note for note in found.notes)


def test_a_plan_is_shown_and_where_it_cannot_be_checked_that_is_said(copy):
    manifest = read_manifest(copy)
    (copy / PLAN).write_bytes(b"plan")
    write_manifest(copy, replace(manifest, plan=PlanSpec(PLAN, "sm_90", "11.1.0.106")))
    found = inspect_artifact(copy)
    said = [*found.notes, *found.faults]
    assert any(sentence.startswith("encoder.plan can") for sentence in said), said


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (TensorRTHost("NVIDIA H100", "sm_90", "11.1.0.106"), ""),
        (TensorRTHost("NVIDIA A10", "sm_86", "11.1.0.106"), "it was built for sm_90 and this GPU is sm_86"),
        (TensorRTHost("NVIDIA H100", "sm_90", "10.16.1.11"), "here is 10.16.1.11"),
    ],
)
def test_a_plan_for_another_gpu_or_tensorrt_version_is_a_fault(copy, host, said):
    manifest = read_manifest(copy)
    (copy / PLAN).write_bytes(b"plan")
    write_manifest(copy, replace(manifest, plan=PlanSpec(PLAN, "sm_90", "11.1.0.106")))
    found = inspect_artifact(copy, host=host)
    assert found.sound == (not said)
    assert said in "".join(found.faults)
    assert any("may run on this GPU" in line for line in found.passed) == found.sound
