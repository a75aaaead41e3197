"""Loading the graphs, and the self-test."""

from __future__ import annotations

import asyncio
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from mvfoul.artifact import ENCODER, FEATURES, GOLDEN, HEAD, VIEW_WEIGHTS, load_artifact, write_manifest
from mvfoul.errors import ArtifactError, ConfigError
from serving.config import ServeConfig
from serving.graphs import OnnxGraphs
from serving.loading import load_here
from serving.openvino_graphs import OpenVinoGraphs
from serving.priority_pool import PriorityPool


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
    with pytest.raises(ArtifactError, match=f"fails its self-test in ONNX Runtime .*: {name} by .*export again"):
        OnnxGraphs(changed, threads=1).self_test(changed)


def test_view_weights_may_be_off_by_a_few_ties_and_by_no_more(copy):
    directory, publish = copy
    change_golden(directory, VIEW_WEIGHTS, lambda a: a + np.float32([3 / 512, -3 / 512]))
    OnnxGraphs(changed := publish(), threads=1).self_test(changed)
    change_golden(directory, VIEW_WEIGHTS, lambda a: a + np.float32([0.03, -0.03]))
    changed = publish()
    with pytest.raises(ArtifactError, match=r"VIEW_WEIGHTS by 0\.03"):
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


def test_openvino_gives_the_same_answers_from_the_same_artifact(artifact):
    views = np.random.default_rng(0).integers(0, 256, (3, *artifact.manifest.clip.view_shape), dtype=np.uint8)
    answers = []
    for engine in (OnnxGraphs, OpenVinoGraphs):
        graphs = engine(artifact, threads=1)
        graphs.self_test(artifact)
        answers.append(graphs.classify(graphs.encode(views)))
    ours, theirs = answers
    np.testing.assert_allclose(theirs.action_probabilities, ours.action_probabilities, atol=1e-5)
    np.testing.assert_allclose(theirs.offence_severity_probabilities, ours.offence_severity_probabilities, atol=1e-5)
    np.testing.assert_allclose(theirs.view_weights, ours.view_weights, atol=1e-5)


def test_an_answer_of_openvino_is_not_overwritten_by_the_next(artifact):
    graphs = OpenVinoGraphs(artifact, threads=1)
    black, white = (np.full((1, *artifact.manifest.clip.view_shape), value, np.uint8) for value in (0, 255))
    first = graphs.encode(black)
    kept = first.copy()
    assert not np.array_equal(graphs.encode(white), kept)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("threads", [1, 2])
def test_openvino_takes_the_threads_it_is_given_and_computes_in_float32(artifact, threads):
    compiled = OpenVinoGraphs(artifact, threads=threads)._encoder.get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


def test_openvino_refuses_a_file_that_is_no_graph_by_name(copy):
    directory, publish = copy
    (directory / HEAD).write_bytes(b"not a graph")
    changed = publish()
    with pytest.raises(ArtifactError, match=r"OpenVINO cannot load .*head\.onnx"):
        OpenVinoGraphs(changed, threads=1)


def test_openvino_that_is_not_installed_is_named_with_its_extra(artifact, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"--engine openvino.*vars-platform\[openvino\]"):
        load_here(
            ServeConfig(artifact=artifact.directory, engine="openvino"),
            artifact.directory,
            "primary",
            PriorityPool(1, "graphs"),
        )


def test_the_engine_asked_for_is_the_one_that_is_loaded(artifact):
    for name, kind in (("onnxruntime", OnnxGraphs), ("openvino", OpenVinoGraphs)):
        config = ServeConfig(artifact=artifact.directory, engine=name, threads=1)
        backend = load_here(config, artifact.directory, "primary", PriorityPool(1, "graphs")).backend
        asyncio.run(backend.aclose())
        assert type(backend._graphs) is kind
