from __future__ import annotations

import hashlib
import json
import resource
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from export.__main__ import main
from export.batches import generated_batches, golden_views
from export.config import ExportConfig, Tolerance
from export.parity import check_parity
from export.pipeline import export_checkpoint, make_manifest
from export.runners import OnnxRunner
from export.torch_runner import TorchRunner
from mvfoul.artifact import ENCODER, FEATURES, GOLDEN, HEAD, MANIFEST, MODEL_CARD, VIEWS, load_artifact, sha256_of
from mvfoul.errors import ArtifactError
from mvfoul.labels import VOCABULARIES

PARITY = {"parity.json", "parity.md", "parity.png"}
FILES = {ENCODER, HEAD, GOLDEN, *PARITY, "config.json", MODEL_CARD, MANIFEST}


def _contents(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def _without_time(directory: Path) -> dict:
    return {**json.loads((directory / MANIFEST).read_text()), "created_at": None}


@pytest.fixture(scope="session")
def second_export(tiny_checkpoint, tiny_artifact, run_export, tmp_path_factory):
    """The same checkpoint exported by the command line, over an artifact that is already there."""
    folder = tmp_path_factory.mktemp("second_export")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(tiny_artifact, folder / "artifact")
    done = run_export("--ckpt", tiny_checkpoint, "--output", "../artifact", cwd=elsewhere)
    return done, folder


def test_the_manifest_says_what_serving_relies_on(tiny_artifact, tiny_checkpoint, source):
    manifest = load_artifact(tiny_artifact).manifest
    assert manifest.labels == dict(VOCABULARIES)
    assert manifest.clip == source.checkpoint.clip
    assert manifest.clip.frame_indices == (53, 59, 65, 71, 78, 84, 90, 96)
    assert manifest.origin.checkpoint_sha256 == sha256_of(tiny_checkpoint)
    assert (manifest.origin.backbone, manifest.origin.aggregation, manifest.origin.epoch) == ("mc3_18", "attention", 3)
    assert manifest.precision == "fp32"
    assert manifest.temperatures == {"action": 1.5, "offence_severity": 0.8}
    assert manifest.evaluation == {"score": 0.25}
    assert manifest.parity["passed"] is True
    assert manifest.parity["logits_max_abs_error"] < 1e-4
    assert manifest.versions["onnxruntime"] == version("onnxruntime")
    assert set(manifest.files) == FILES - {MANIFEST}
    assert manifest.plan is None


def test_golden_npz_holds_what_pytorch_answers_and_onnx_runtime_repeats_it(tiny_artifact, source):
    golden = load_artifact(tiny_artifact).golden()
    np.testing.assert_array_equal(golden[VIEWS], golden_views(source.network.clip))
    with torch.inference_mode():
        features = source.network.encode(torch.from_numpy(golden[VIEWS]))
    np.testing.assert_allclose(golden[FEATURES], features, atol=1e-5)
    runner = OnnxRunner(tiny_artifact)
    answers = runner.classify(runner.encode(golden[VIEWS])[FEATURES])
    assert len(answers) == 5
    for name, answer in answers.items():
        np.testing.assert_allclose(answer, golden[name], atol=1e-5, err_msg=name)


def test_the_command_publishes_and_says_what_to_do_next(second_export):
    done, folder = second_export
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "torch.onnx" not in done.stdout
    assert f"Published {folder / 'artifact'}" in done.stdout
    assert f"  python -m serving --artifact {folder / 'artifact'}\n" in done.stdout
    assert "  python -m serving.client clip_0.mp4 clip_1.mp4\n" in done.stdout
    for said in ("encoder.onnx", "head.onnx", "45.9 MB", "peak memory", "5 of 5 agree"):
        assert said in done.stdout


def test_nothing_is_left_but_the_artifact_and_the_one_that_was_there(second_export):
    _, folder = second_export
    assert {path.name for path in folder.iterdir()} == {"artifact", "artifact.previous", "elsewhere"}
    assert list((folder / "elsewhere").iterdir()) == [], "stray files in the working directory"
    assert {path.name for path in (folder / "artifact").iterdir()} == FILES


def test_the_artifact_that_was_there_is_kept(second_export, tiny_artifact):
    _, folder = second_export
    assert _contents(folder / "artifact.previous") == _contents(tiny_artifact)


def test_the_same_checkpoint_gives_the_same_bytes_in_another_process(second_export, tiny_artifact):
    """config.json differs here, because --output does, and so does the card, which has its hash."""
    ours, theirs = _contents(second_export[1] / "artifact"), _contents(tiny_artifact)
    assert {name for name in FILES if ours[name] != theirs[name]} <= {MANIFEST, MODEL_CARD, "config.json"}
    ours, theirs = _without_time(second_export[1] / "artifact"), _without_time(tiny_artifact)
    assert {key for key in ours if ours[key] != theirs[key]} <= {"files"}


def test_no_file_names_a_path_of_this_machine(tiny_artifact, repo_root, tiny_checkpoint):
    traces = [str(repo_root), str(tiny_checkpoint.parent), str(Path.home()), "site-packages"]
    for path in tiny_artifact.iterdir():
        data = path.read_bytes()
        assert not [trace for trace in traces if trace.encode() in data], path.name


def test_published_files_can_be_read_by_another_user(tiny_artifact):
    assert tiny_artifact.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o444 for path in tiny_artifact.iterdir()} == {0o444}


def test_failed_parity_publishes_nothing_and_keeps_the_evidence(
    tiny_checkpoint, tiny_artifact, tmp_path, monkeypatch, capsys
):
    shutil.copytree(tiny_artifact, tmp_path / "artifact")
    flags = ["--ckpt", str(tiny_checkpoint), "--output", str(tmp_path / "artifact"), "--tolerance.logits", "1e-12"]
    monkeypatch.setattr("sys.argv", ["export", *flags])
    assert main() == 3
    assert _contents(tmp_path / "artifact") == _contents(tiny_artifact), "the old artifact is as it was"
    (work,) = (path for path in tmp_path.iterdir() if path.name != "artifact")
    assert {path.name for path in work.iterdir()} == FILES - {MANIFEST, MODEL_CARD}
    parity = json.loads((work / "parity.json").read_text())
    failed = {check["name"] for check in parity["checks"] if not check["passed"]}
    assert {"ACTION_LOGITS", "OFFENCE_SEVERITY_LOGITS"} <= failed
    said = capsys.readouterr().out
    assert "nothing is published" in said
    assert str(work) in said
    assert f"python -m export {' '.join(flags)}" in said
    assert "FAILED ACTION_LOGITS: max_abs is" in said


def test_a_full_disk_leaves_the_old_artifact_and_nothing_half_written(tiny_checkpoint, tiny_artifact, tmp_path):
    shutil.copytree(tiny_artifact, tmp_path / "artifact")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow over 1 MB: to the writer this looks like a disk that fills up.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(ArtifactError, match=r"cannot write the artifact .*choose another --output"):
            export_checkpoint(ExportConfig(ckpt=tiny_checkpoint, output=tmp_path / "artifact"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert _contents(tmp_path / "artifact") == _contents(tiny_artifact)


@pytest.mark.parametrize("output", ["file/artifact", "/proc/artifact"])
def test_an_output_that_cannot_be_written_is_refused(tiny_checkpoint, tmp_path, output):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot write the artifact"):
        export_checkpoint(ExportConfig(ckpt=tiny_checkpoint, output=tmp_path / output))


def _run_main(monkeypatch, capsys, *flags: object) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["export", *map(str, flags)])
    code = main()
    return code, capsys.readouterr().err


@pytest.mark.parametrize("name", ["artifact", "artifact.previous"])
def test_a_folder_that_is_no_artifact_is_never_replaced(tiny_checkpoint, tmp_path, monkeypatch, capsys, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("mine")
    code, said = _run_main(monkeypatch, capsys, "--ckpt", tiny_checkpoint, "--output", tmp_path / "artifact")
    assert code == 2
    assert f"{tmp_path / name} exists and is no artifact" in said
    assert (tmp_path / name / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_a_checkpoint_that_cannot_be_used_is_refused_in_one_sentence(
    tiny_checkpoint, tmp_path, monkeypatch, capsys, damage
):
    path = tmp_path / "best.pth.tar"
    if damage == "truncated":
        path.write_bytes(tiny_checkpoint.read_bytes()[:1000])
    if damage == "foreign":
        torch.save({"model": torch.zeros(3)}, path)
    code, said = _run_main(monkeypatch, capsys, "--ckpt", path)
    assert code == 2
    assert said.startswith("error: ")
    assert str(path) in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "artifact").exists()


def test_a_data_set_that_is_not_there_is_refused_before_anything_is_exported(
    tiny_checkpoint, tmp_path, monkeypatch, capsys
):
    code, said = _run_main(
        monkeypatch, capsys, "--ckpt", tiny_checkpoint, "--output", tmp_path / "a", "--data.root", tmp_path
    )
    assert code == 2
    assert "test" in said
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_that_json_cannot_say_is_published_as_null(source):
    reference = TorchRunner(source.network, source.checkpoint.temperatures)
    batches = generated_batches(source.network.clip)[:1]
    report = check_parity(reference, reference, batches, Tolerance(), max_views=1)
    evaluation = {"score": float("nan"), "recalls": [0.5, float("inf")], "actions": 3}
    evaluated = replace(source, checkpoint=replace(source.checkpoint, evaluation=evaluation))
    assert make_manifest(evaluated, report, "fp32").evaluation == {"score": None, "recalls": [0.5, None], "actions": 3}
