"""Loading the graphs, and the self-test."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from mvfoul.artifact import ENCODER, FEATURES, GOLDEN, HEAD, VIEW_WEIGHTS, load_artifact, write_manifest
from mvfoul.errors import ArtifactError
from serving.graphs import OnnxGraphs


@pytest.fixture
def copy(tiny_artifact, tmp_path):
    """A copy of the artifact to damage; `publish()` writes its manifest anew, with the hashes of what is there."""
    directory = shutil.copytree(tiny_artifact, tmp_path / "artifact")

    def publish():
        return write_manifest(directory, load_artifact(tiny_artifact).manifest)

    return directory, publish


def change_golden(directory, name, change):
    with np.load(directory / GOLDEN) as archive:
        arrays = dict(archive)
    arrays[name] = change(arrays[name])
    np.savez(directory / GOLDEN, **arrays)


def test_an_artifact_passes_its_own_self_test(artifact):
    OnnxGraphs(artifact, threads=1).self_test(artifact)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ACTION_LOGITS", lambda a: a + 0.01),
        ("OFFENCE_SEVERITY_PROBABILITIES", lambda a: a[::-1] + 0.01),
        (VIEW_WEIGHTS, lambda a: a[:-1]),
        ("ACTION_PROBABILITIES", lambda a: a * np.nan),
    ],
)
def test_another_answer_than_the_golden_one_fails_the_self_test(copy, name, change):
    directory, publish = copy
    change_golden(directory, name, change)
    changed = publish()
    with pytest.raises(ArtifactError, match=f"fails its self-test: {name} by .*export again"):
        OnnxGraphs(changed, threads=1).self_test(changed)


def test_a_file_that_is_no_graph_is_refused_by_name(copy):
    directory, publish = copy
    (directory / HEAD).write_bytes(b"not a graph")
    changed = publish()
    with pytest.raises(ArtifactError, match=r"cannot load .*head\.onnx"):
        OnnxGraphs(changed, threads=1)


def test_swapped_graphs_are_refused_with_their_tensors(copy):
    directory, publish = copy
    shutil.copy(directory / HEAD, directory / ENCODER)
    changed = publish()
    with pytest.raises(
        ArtifactError, match=rf"encoder\.onnx has inputs \['{FEATURES}'\], the manifest says \['VIEWS'\]"
    ):
        OnnxGraphs(changed, threads=1)


def test_an_unknown_precision_is_refused(artifact):
    unknown = replace(artifact, manifest=replace(artifact.manifest, precision="int3"))
    with pytest.raises(ArtifactError, match="precision 'int3'"):
        OnnxGraphs(unknown, threads=1).self_test(unknown)
