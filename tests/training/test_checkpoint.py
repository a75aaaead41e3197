"""Checkpoints: whole or not there, and refused with a reason."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch

from mvfoul.clip import preset
from mvfoul.errors import CheckpointError
from training.checkpoint import Checkpoint, build_network, load_checkpoint, load_network, save_checkpoint
from training.model.network import FoulNetwork

CLIP = preset(num_frames=2, size_px=16)


def _checkpoint(**changes):
    values = {
        "epoch": 3,
        "backbone": "mc3_18",
        "aggregation": "attention",
        "clip": CLIP,
        "state_dict": {"weight": torch.arange(4.0)},
        "histories": {"valid/score": [0.1, 0.3, 0.2]},
        "config": {"optim": {"lr": 1e-4}, "output": None},
        "evaluation": {"score": 0.3, "action": {"recalls": [None, 1.0]}},
    }
    return Checkpoint(**{**values, **changes})


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return FoulNetwork("mc3_18", "attention", clip=CLIP).eval()


@pytest.fixture(scope="module")
def network_file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "best.pth.tar"
    save_checkpoint(path, _checkpoint(state_dict=network.state_dict()))
    return path


def _document(path):
    return torch.load(path, weights_only=True)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    path = tmp_path / "runs" / "last.pth.tar"
    saved = _checkpoint(optimizer={"state": {}, "param_groups": [{"lr": 0.1}]}, versions={"torch": "2"})
    save_checkpoint(path, saved)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.state_dict["weight"], saved.state_dict["weight"])
    assert replace(loaded, state_dict={}) == replace(saved, state_dict={})
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pth.tar"]


def test_the_file_tells_what_it_is_to_whoever_opens_it(tmp_path):
    save_checkpoint(tmp_path / "c.pth.tar", _checkpoint())
    document = _document(tmp_path / "c.pth.tar")
    assert document["schema_version"] == 1
    assert document["labels"]["offence_severity"][3] == "Offence + Red card"
    assert document["clip"]["frame_indices"] == list(CLIP.frame_indices)
    assert document["temperatures"] == {"action": 1.0, "offence_severity": 1.0}


def test_the_network_comes_back_with_the_same_answers(network, network_file):
    loaded, checkpoint = load_network(network_file)
    views = torch.randint(0, 256, (3, *CLIP.view_shape), dtype=torch.uint8)
    counts = torch.tensor([1, 2])
    assert not loaded.training
    assert checkpoint.epoch == 3
    with torch.inference_mode():
        for expected, found in zip(network(views, counts), loaded(views, counts), strict=True):
            assert torch.equal(expected, found)


def test_a_view_embedding_comes_back_from_the_checkpoint_and_older_files_have_none(network_file, tmp_path):
    network = FoulNetwork("mc3_18", "mean", clip=CLIP, view_embedding=True)
    torch.nn.init.normal_(network.view_embedding.weight)
    path = tmp_path / "best.pth.tar"
    save_checkpoint(path, _checkpoint(state_dict=network.state_dict(), options=network.options, aggregation="mean"))
    assert torch.equal(load_network(path)[0].view_embedding.weight, network.view_embedding.weight)
    assert load_network(network_file)[0].view_embedding is None


@pytest.mark.parametrize("end", ["os._exit(9)", "raise OSError(28, 'No space left on device')"])
def test_a_process_that_ends_while_saving_leaves_the_old_checkpoint(tmp_path, end):
    path = tmp_path / "last.pth.tar"
    save_checkpoint(path, _checkpoint(epoch=3))
    code = f"""
        import os, sys
        from pathlib import Path
        from dataclasses import replace
        from training.checkpoint import load_checkpoint, save_checkpoint
        def no_disk(descriptor):
            {end}
        old = load_checkpoint(Path(sys.argv[1]))
        os.fsync = no_disk  # everything is written, nothing is renamed yet
        save_checkpoint(Path(sys.argv[1]), replace(old, epoch=4))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == (9 if "exit" in end else 1)
    assert "exit" in end or "No space left on device. Free space or choose another --output." in done.stderr
    assert load_checkpoint(path).epoch == 3
    save_checkpoint(path, _checkpoint(epoch=5))
    assert load_checkpoint(path).epoch == 5
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pth.tar"]


def test_a_missing_file_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*x\.pth\.tar.*python -m training"):
        load_checkpoint(tmp_path / "x.pth.tar")


@pytest.mark.parametrize("keep", [0, 10, 2000, -1])
def test_a_truncated_file_is_refused(network_file, tmp_path, keep):
    path = tmp_path / "cut.pth.tar"
    path.write_bytes(network_file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        load_checkpoint(path)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return print, ("harm",)

    path = tmp_path / "harm.pth.tar"
    torch.save({"schema_version": Harm()}, path)
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        load_checkpoint(path)


def test_a_foreign_file_is_refused_with_the_keys_it_has(tmp_path):
    path = tmp_path / "foreign.pth"
    torch.save({"model": {}, "args": {}}, path)
    with pytest.raises(CheckpointError, match=r"keys \['args', 'model'\], and no schema_version"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        load_checkpoint(path)


def test_a_published_vars_file_is_recognised(tmp_path):
    path = tmp_path / "14_model.pth.tar"
    state = {"mvnetwork.inter.0.weight": torch.zeros(2)}
    torch.save({"epoch": 14, "state_dict": state, "optimizer": {}, "scheduler": {}}, path)
    with pytest.raises(CheckpointError, match="is a published VARS checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99; this version reads 1"),
        ({"labels": {"action": ["Tackling"], "offence_severity": []}}, "was trained on labels"),
        ({"clip": {"window": [0, 2]}}, "not a complete checkpoint: clip spec lacks the fields"),
        ({"epoch": ...}, "not a complete checkpoint: 'epoch'"),
    ],
)
def test_another_version_other_labels_or_missing_parts_are_refused(tmp_path, change, message):
    path = tmp_path / "c.pth.tar"
    save_checkpoint(path, _checkpoint())
    document = {key: value for key, value in {**_document(path), **change}.items() if value is not ...}
    torch.save(document, path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_weights_of_another_architecture_are_refused_with_the_first_difference(network):
    state = dict(network.state_dict())
    state["neck.1.weight"] = torch.zeros(3, 3)
    with pytest.raises(CheckpointError, match=r"mc3_18 with attention: 1 tensors differ, first neck\.1\.weight"):
        build_network(_checkpoint(state_dict=state))
    with pytest.raises(CheckpointError, match=r"first aggregation\.attention_weights"):
        build_network(_checkpoint(state_dict=network.state_dict(), aggregation="mean"))


def test_an_unknown_backbone_is_refused(network):
    with pytest.raises(CheckpointError, match="resnet"):
        build_network(_checkpoint(state_dict=network.state_dict(), backbone="resnet"))
