"""The artifact: written last, checked first."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mvfoul.artifact import (
    ENCODER,
    GOLDEN,
    GOLDEN_TENSORS,
    HEAD,
    MANIFEST,
    GraphSpec,
    Manifest,
    Origin,
    TensorSpec,
    load_artifact,
    publish,
    sha256_of,
    write_json,
    write_manifest,
)
from mvfoul.clip import preset
from mvfoul.errors import ArtifactError
from mvfoul.plan import PlanSpec

FILES = (ENCODER, HEAD, GOLDEN, "parity.json", "config.json")
PLAN = PlanSpec("encoder.plan", "sm_90", "10.16.0")


def manifest(**overrides):
    tensor = TensorSpec("VIEWS", "uint8", ("N", 3, 16, 224, 224))
    return Manifest(
        **{
            "clip": preset(),
            "encoder": GraphSpec(ENCODER, (tensor,), (TensorSpec("FEATURES", "float32", ("N", 400)),)),
            "head": GraphSpec(HEAD, (TensorSpec("FEATURES", "float32", ("V", 400)),), ()),
            "origin": Origin("0" * 64, "mvit_v2_s", "attention", 7),
            "precision": "fp32",
            "parity": {"passed": True, "max_abs_error": 2e-6},
            **overrides,
        }
    )


def fill(directory, *, content="x"):
    """Write the files of an artifact but its manifest."""
    directory.mkdir(parents=True)
    for name in FILES:
        (directory / name).write_text(f"{content} {name}")
    np.savez(directory / GOLDEN, **{name: np.full(2, i, np.float32) for i, name in enumerate(GOLDEN_TENSORS)})
    return directory


@pytest.fixture
def artifact(tmp_path):
    return write_manifest(fill(tmp_path / "artifact"), manifest())


def edit(directory, change):
    """Change the manifest on disk."""
    document = json.loads((directory / MANIFEST).read_text())
    change(document)
    (directory / MANIFEST).write_text(json.dumps(document))


# Writing


def test_what_is_written_is_what_is_loaded(tmp_path):
    directory = fill(tmp_path / "artifact")
    (directory / PLAN.file).write_bytes(b"plan")
    written = write_manifest(
        directory,
        manifest(plan=PLAN, evaluation={"score": 43.7}, versions={"torch": "2.15"}, created_at="2026-01-01T00:00:00Z"),
    )
    loaded = load_artifact(directory)
    assert loaded == written
    assert loaded.manifest.plan == PLAN
    assert loaded.manifest.clip == preset()
    assert loaded.manifest.encoder.inputs[0].shape == ("N", 3, 16, 224, 224)
    assert loaded.manifest == replace(
        manifest(plan=PLAN, evaluation={"score": 43.7}, versions={"torch": "2.15"}, created_at="2026-01-01T00:00:00Z"),
        files={name: sha256_of(directory / name) for name in (*FILES, PLAN.file)},
    )


def test_every_file_but_the_manifest_is_hashed(artifact):
    hashes = {name: hashlib.sha256((artifact.directory / name).read_bytes()).hexdigest() for name in FILES}
    assert artifact.manifest.files == hashes


def test_the_labels_are_in_the_manifest_in_order(artifact):
    document = json.loads((artifact.directory / MANIFEST).read_text())
    assert document["labels"]["action"][0] == "Tackling"
    assert document["labels"]["offence_severity"][-1] == "Offence + Red card"
    assert document["clip"]["frame_indices"] == list(preset().frame_indices)


def test_the_version_changes_with_any_file(tmp_path):
    versions = {write_manifest(fill(tmp_path / "0"), manifest()).version}
    for name in FILES:
        directory = fill(tmp_path / name)
        np.savez(directory / GOLDEN, other=np.zeros(1)) if name == GOLDEN else (directory / name).write_text("other")
        versions.add(write_manifest(directory, manifest()).version)
    assert len(versions) == 1 + len(FILES)
    assert write_manifest(fill(tmp_path / "same"), manifest()).version in versions


@pytest.mark.parametrize("parity", [{}, {"passed": False}, {"passed": None}, {"passed": "true"}, {"passed": 1}])
def test_nothing_is_published_unless_parity_has_passed(parity, tmp_path):
    directory = fill(tmp_path / "artifact")
    with pytest.raises(ArtifactError, match="parity has not passed; nothing is published"):
        write_manifest(directory, manifest(parity=parity))
    assert not (directory / MANIFEST).exists()


@pytest.mark.parametrize("name", [*FILES, PLAN.file])
def test_nothing_is_published_with_a_file_missing(name, tmp_path):
    directory = fill(tmp_path / "artifact")
    (directory / PLAN.file).write_bytes(b"plan")
    (directory / name).unlink()
    with pytest.raises(ArtifactError, match=rf"lacks \['{name}'\]"):
        write_manifest(directory, manifest(plan=PLAN))
    assert not (directory / MANIFEST).exists()


def test_json_that_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"new": float("nan")})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


# Loading


def test_a_directory_without_a_manifest_is_no_artifact(tmp_path):
    for directory in (tmp_path / "nowhere", fill(tmp_path / "unfinished")):
        with pytest.raises(ArtifactError, match=r"not an artifact: no manifest.json .* python -m export --ckpt"):
            load_artifact(directory)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_or_missing_file_is_refused_by_name(name, artifact):
    path = artifact.directory / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"{name} has SHA-256 .* damaged .* copy the directory again"):
        load_artifact(artifact.directory)
    path.unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing, though the manifest lists it"):
        load_artifact(artifact.directory)


def test_a_file_that_the_manifest_does_not_list_cannot_be_opened_through_it(artifact):
    (artifact.directory / "encoder.plan").write_bytes(b"of another machine")
    with pytest.raises(ArtifactError, match=r"has no encoder.plan; it has config.json, encoder.onnx"):
        load_artifact(artifact.directory).path("encoder.plan")
    assert artifact.path(ENCODER) == artifact.directory / ENCODER


@pytest.mark.parametrize("schema", [0, 2, None, "1"])
def test_another_schema_is_refused_with_both_versions(schema, artifact):
    edit(artifact.directory, lambda document: document.update(schema_version=schema))
    with pytest.raises(ArtifactError, match=f"has schema version {schema!r}; this version reads 1. Export again"):
        load_artifact(artifact.directory)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"manifest"', "\xff"])
def test_a_manifest_that_is_no_json_object_is_refused(text, artifact):
    (artifact.directory / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match=r"is not JSON|has schema version None"):
        load_artifact(artifact.directory)


def test_other_labels_or_another_order_are_refused(artifact):
    for change in (list.reverse, list.pop, lambda names: names.append("Simulation")):
        shutil.copytree(artifact.directory, copy := artifact.directory.parent / f"{change}")
        edit(copy, lambda document, change=change: change(document["labels"]["action"]))
        with pytest.raises(ArtifactError, match=r"has labels .* this version knows"):
            load_artifact(copy)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/encoder.onnx", "./encoder.onnx", "..", "."])
def test_files_outside_the_directory_are_refused(name, artifact):
    (artifact.directory.parent / "secret").write_text("secret")
    edit(artifact.directory, lambda document: document["files"].update({name: hashlib.sha256(b"secret").hexdigest()}))
    with pytest.raises(ArtifactError, match="outside its directory"):
        load_artifact(artifact.directory)


@pytest.mark.parametrize("graph", ["encoder", "head"])
def test_graphs_that_are_not_among_the_files_are_refused(graph, artifact):
    edit(artifact.directory, lambda document: document[graph].update(file="../other.onnx"))
    with pytest.raises(ArtifactError, match=r"does not list \['../other.onnx'\]"):
        load_artifact(artifact.directory)


def test_unknown_fields_are_refused(artifact):
    edit(artifact.directory, lambda document: document.update(quantised=True))
    with pytest.raises(ArtifactError, match=r"unknown fields \['quantised'\]; use the version that wrote it"):
        load_artifact(artifact.directory)


@pytest.mark.parametrize("name", ["labels", "files", "clip", "encoder", "head", "origin", "precision", "parity"])
def test_missing_and_mistyped_fields_are_refused(name, artifact):
    shutil.copytree(artifact.directory, other := artifact.directory.parent / "other")
    edit(other, lambda document: document.pop(name))
    with pytest.raises(ArtifactError, match=f"not a manifest of schema 1.*{name}"):
        load_artifact(other)
    if name in ("precision", "parity"):
        return
    for nonsense in (None, 3, "text", ["text"], {"file": None}):
        edit(artifact.directory, lambda document, nonsense=nonsense: document.update({name: nonsense}))
        with pytest.raises(ArtifactError):
            load_artifact(artifact.directory)


def test_a_clip_specification_that_contradicts_itself_is_refused(artifact):
    edit(artifact.directory, lambda document: document["clip"].update(window=[0, 10]))
    with pytest.raises(ArtifactError, match=r"lie outside window \(0, 10\)"):
        load_artifact(artifact.directory)


def test_the_self_test_has_every_tensor_or_is_refused(artifact):
    golden = artifact.golden()
    assert list(golden) == list(GOLDEN_TENSORS)
    assert all((array == i).all() for i, array in enumerate(golden.values()))
    np.savez(artifact.directory / GOLDEN, VIEWS=np.zeros(1))
    with pytest.raises(ArtifactError, match=r"golden.npz lacks \['FEATURES', .*; export again"):
        artifact.golden()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_a_self_test_that_is_no_archive_is_refused(content, artifact):
    (artifact.directory / GOLDEN).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"golden.npz is no archive of arrays"):
        artifact.golden()


def test_a_self_test_never_unpickles(artifact):
    np.savez(artifact.directory / GOLDEN, **{name: np.array([{}], object) for name in GOLDEN_TENSORS})
    with pytest.raises(ArtifactError, match=r"golden.npz is no archive of arrays"):
        artifact.golden()


# Replacing


def test_publishing_keeps_the_artifact_before_as_previous(tmp_path):
    target = tmp_path / "published" / "artifact"
    versions = []
    for content in ("first", "second", "third"):
        work = write_manifest(fill(tmp_path / "work", content=content), manifest())
        versions.append(work.version)
        assert publish(work.directory, target) == target
    assert load_artifact(target).version == versions[2]
    assert load_artifact(target.with_name("artifact.previous")).version == versions[1]
    assert sorted(path.name for path in target.parent.iterdir()) == ["artifact", "artifact.previous"]
    assert not (tmp_path / "work").exists()


KILLED = """
import os, sys
from pathlib import Path
from mvfoul import artifact
steps = {"os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
left = int(sys.argv[1])
def kill(event, _):
    global left
    if event in steps:
        if left == 0:
            os._exit(9)
        left -= 1
sys.addaudithook(kill)
artifact.publish(Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_a_process_killed_at_any_step_leaves_a_valid_artifact(tmp_path):
    for steps in range(40):
        root = tmp_path / str(steps)
        target, work = root / "artifact", root / "work"
        for content in ("older", "old"):
            publish(write_manifest(fill(root / content, content=content), manifest()).directory, target)
        write_manifest(fill(work, content="new"), manifest())
        command = [sys.executable, "-c", KILLED, str(steps), str(work), str(target)]
        code = subprocess.run(command, check=False, cwd=Path(__file__).parents[2]).returncode
        survivor = target if target.exists() else target.with_name("artifact.previous")
        assert load_artifact(survivor).directory == survivor
        if code == 0:
            break
        assert code == 9
    assert steps > 4
    assert (target / ENCODER).read_text().startswith("new")
