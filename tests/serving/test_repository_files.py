"""The repository on disk: whole or not there, whatever happens to the process that writes it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from mvfoul.artifact import ENCODER, GOLDEN, HEAD, load_artifact, write_manifest
from mvfoul.errors import ArtifactError, ConfigError
from serving.repository.model_config import artifact_version

MODELS = ("mvfoul_encoder", "mvfoul_head", "mvfoul")
FILES = {
    "mvfoul_encoder": {"model.py", "engines.py", ENCODER, "__pycache__", "artifact.json"},
    "mvfoul_head": {"model.py", "engines.py", HEAD, "__pycache__", "artifact.json"},
    "mvfoul": {"artifact.json"},
}


@pytest.fixture
def models(tmp_path):
    return tmp_path / "models"


@pytest.fixture
def write(write_repository, models):
    """`write(artifact=..., ...)` into `models`, without the self-test."""
    return lambda **fields: write_repository(models, **{"no_self_test": True, **fields})


def versions(models, name):
    return {artifact_version(int(path.name)) for path in (models / name).iterdir() if path.is_dir()}


def read_config(models, name):
    return text_format.Parse((models / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def answering(models):
    return artifact_version(read_config(models, "mvfoul").version_policy.specific.versions[0])


def faults(models, sizes):
    """Everything that a Triton which looks now could not load; `sizes` in bytes of both graphs."""
    found = []
    for folder in models.iterdir():
        if folder.name not in MODELS:
            found.append(f"{folder} would be taken for a model")
            continue
        config = read_config(models, folder.name)
        for version in (path for path in folder.iterdir() if path.is_dir()):
            present = {path.name: path.stat().st_size for path in version.iterdir()}
            wrong = [name for name in (ENCODER, HEAD) if name in present and present[name] != sizes[name]]
            if set(present) != FILES[folder.name] or wrong:
                found.append(f"{version} holds {present}")
        steps = [models / step.model_name / str(step.model_version) for step in config.ensemble_scheduling.step]
        found += [f"the ensemble names {step}" for step in steps if not step.is_dir()]
    return found


def sizes_of(artifact):
    return {name: (artifact / name).stat().st_size for name in (ENCODER, HEAD)}


def test_a_watcher_never_sees_half_a_model(write, models, tiny_artifact, second_artifact):
    sizes, seen, looks, done = sizes_of(tiny_artifact), [], 0, threading.Event()
    assert sizes == sizes_of(second_artifact)
    models.mkdir()

    def watch():
        nonlocal looks
        while not done.is_set():
            seen.extend(faults(models, sizes))
            looks += 1

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for artifact in (tiny_artifact, second_artifact, tiny_artifact, second_artifact):
            write(artifact=artifact)
    finally:
        done.set()
        watcher.join()
    assert not seen
    assert looks > 20
    assert [path.name for path in models.parent.iterdir() if "staging" in path.name] == []


def test_a_writer_that_is_killed_leaves_what_was_there_and_the_next_one_cleans_up(
    write, models, tiny_artifact, second_artifact
):
    """Killed as soon as it has begun to copy; again until one kill came in time."""
    write()
    command = [sys.executable, "-m", "serving.repository", "--artifact", str(second_artifact), "--encoder", "python"]
    for _ in range(5):
        process = subprocess.Popen([*command, "--no-self-test", "--output", str(models)], stdout=subprocess.DEVNULL)
        while process.poll() is None and not list(models.parent.glob(".models.staging-*/*/*/encoder.onnx")):
            time.sleep(0.001)
        process.kill()
        if process.wait() != 0:
            break
    assert list(models.parent.glob(".models.staging-*"))
    assert not faults(models, sizes_of(tiny_artifact))
    assert answering(models) == load_artifact(tiny_artifact).version
    write(artifact=second_artifact)
    assert not list(models.parent.glob(".models.staging-*"))
    assert not faults(models, sizes_of(tiny_artifact))
    assert answering(models) == load_artifact(second_artifact).version


def test_a_second_artifact_comes_beside_the_first_and_an_old_one_can_come_back(
    write, models, tiny_artifact, second_artifact
):
    first, second = (load_artifact(path).version for path in (tiny_artifact, second_artifact))
    write(max_batch=6)
    lines = write(artifact=second_artifact)
    assert f"  mvfoul: answers with {second}, in place of {first}" in lines
    assert "  mvfoul_encoder: added, configuration changed" in lines
    assert read_config(models, "mvfoul_encoder").max_batch_size == 8
    assert all(versions(models, name) == {first, second} for name in MODELS)
    back = write()
    assert "  mvfoul_encoder: was there" in back
    assert answering(models) == first
    assert f"  mvfoul: answers with {first}" in write()


def test_each_version_says_which_artifact_it_is(write, models, artifact):
    write()
    record = json.loads((models / "mvfoul_encoder" / str(artifact.model_version) / "artifact.json").read_text())
    assert record["artifact"] == artifact.version
    assert record["checkpoint_sha256"] == artifact.manifest.origin.checkpoint_sha256


def test_versions_under_one_name_share_their_tensors_and_their_backend(write, second_artifact):
    write()
    with pytest.raises(ConfigError, match=r"backend python; this one would have backend onnxruntime.*--name"):
        write(artifact=second_artifact, encoder="onnxruntime", threads=0)
    assert "  other: answers with" in "\n".join(
        write(artifact=second_artifact, encoder="onnxruntime", threads=0, name="other")
    )


def test_the_same_artifact_for_another_backend_is_refused_with_its_cure(write):
    write()
    with pytest.raises(ArtifactError, match=r"another --encoder wrote it.*--name.*--prune"):
        write(encoder="onnxruntime", threads=0)


def test_a_file_that_was_changed_in_the_repository_is_found(write, models, artifact):
    write()
    (models / "mvfoul_head" / str(artifact.model_version) / HEAD).write_bytes(b"other")
    with pytest.raises(ArtifactError, match=rf"is not the {HEAD} of artifact {artifact.version}"):
        write()


def test_an_artifact_that_computes_something_else_is_refused_and_nothing_is_written(
    write, models, tiny_artifact, tmp_path
):
    bad = shutil.copytree(tiny_artifact, tmp_path / "artifact")
    shutil.copy(bad / HEAD, bad / ENCODER)
    write_manifest(bad, load_artifact(tiny_artifact).manifest)
    with pytest.raises(ArtifactError, match="Export again"):
        write(artifact=bad, no_self_test=False)
    (bad / GOLDEN).write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"golden\.npz has SHA-256"):
        write(artifact=bad)
    assert not models.exists()


def test_pruning_removes_a_version_everywhere_but_never_the_one_that_answers(
    write, models, tiny_artifact, second_artifact
):
    first, second = (load_artifact(path).version for path in (tiny_artifact, second_artifact))
    write()
    write(artifact=second_artifact)
    with pytest.raises(ConfigError, match=f"--prune names {second}, with which the ensemble answers"):
        write(artifact=None, prune=(second,))
    with pytest.raises(ConfigError, match=f"--prune names {'0' * 12}; .* has .*{first}"):
        write(artifact=None, prune=("0" * 12,))
    assert write(artifact=None, prune=(first,), dry_run=True) == [f"would remove {first}"]
    assert write(artifact=None, prune=(first,))[:2] == [f"removed {first}", f"{models} has {second}"]
    assert all(versions(models, name) == {second} for name in MODELS)


def test_keep_removes_the_oldest_and_counts_the_one_that_answers(write, models, tiny_artifact, second_artifact):
    first, second = (load_artifact(path).version for path in (tiny_artifact, second_artifact))
    write()
    write(artifact=second_artifact)
    assert write(artifact=None, keep=2) == [f"{models} has {', '.join(sorted((first, second)))}"]
    assert f"removed {first}" in write(artifact=second_artifact, keep=1)
    assert versions(models, "mvfoul_head") == {second}


def test_pruning_what_is_no_repository_is_refused_and_makes_none(write, models):
    with pytest.raises(ConfigError, match="no versions of mvfoul_encoder"):
        write(artifact=None, keep=1)
    assert not models.exists()


def test_two_writers_do_not_meet(write, models):
    write()
    with (models.parent / ".models.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process writes to"):
            write()


def test_a_mount_point_is_refused_because_nothing_can_be_renamed_into_it(write_repository):
    mount = next((Path(p) for p in ("/dev/shm", "/sys", "/proc") if os.path.ismount(p)), None)  # noqa: S108
    if mount is None:
        pytest.skip("no mount point here")
    with pytest.raises(ConfigError, match=rf"is a mount point.*--output {mount}/models"):
        write_repository(mount, no_self_test=True)


def test_a_dry_run_shows_the_configurations_and_writes_nothing(write, models, artifact):
    text = "\n".join(write(dry_run=True))
    assert f"would write artifact {artifact.version}" in text
    assert text.count("/config.pbtxt") == 3
    assert 'name: "mvfoul_encoder"' in text
    assert not models.exists()
    assert not list(models.parent.iterdir())


def test_what_to_do_next_is_printed_in_the_order_that_triton_needs(run_module, tiny_artifact, models):
    done = run_module(
        "serving.repository", "--artifact", str(tiny_artifact), "--output", str(models), "--encoder", "python"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"tritonserver --model-repository={models}" in done.stdout
    assert "--model-control-mode=explicit --load-model=mvfoul_encoder --load-model=mvfoul_head" in done.stdout
    loads = [done.stdout.index(f"/models/{name}/load") for name in MODELS]
    assert loads == sorted(loads)


def test_a_refusal_is_a_sentence_and_exit_code_2(run_module, tiny_artifact, models):
    done = run_module("serving.repository", "--artifact", str(tiny_artifact), "--output", str(models))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "has no TensorRT plan" in done.stderr
