"""model.onnx: one file, the same answers, for any ONNX user."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.batches import generated_batches, golden_views
from export.config import Tolerance
from export.merge import OUTPUTS, check_merged, merge_graphs, merged_spec, write_merged
from export.runners import OnnxRunner, onnx_session, spec_of
from export.torch_runner import TorchRunner
from mvfoul.artifact import ENCODER, FEATURES, HEAD, MERGED, load_artifact
from mvfoul.labels import VOCABULARIES


@pytest.fixture(scope="module")
def folder(tiny_artifact, source, tmp_path_factory):
    """Both graphs and the merged one."""
    folder = tmp_path_factory.mktemp("merged")
    for name in (ENCODER, HEAD):
        (folder / name).symlink_to(tiny_artifact / name)
    write_merged(folder, source.network.clip)
    return folder


def test_it_answers_as_the_two_graphs_one_after_the_other_at_every_number_of_views(folder, source):
    two, one = OnnxRunner(folder), onnx_session(folder / MERGED)
    views = generated_batches(source.network.clip)[-1].views
    for count in (1, 2, 5):
        expected = two.classify(two.encode(views[:count])[FEATURES])
        for name, answer in zip(OUTPUTS, one.run(list(OUTPUTS), {"VIEWS": views[:count]}), strict=True):
            np.testing.assert_allclose(answer, expected[name], atol=1e-6, err_msg=name)


def test_its_tensors_are_those_of_the_manifest_and_its_metadata_explains_them(folder, source):
    session = onnx_session(folder / MERGED)
    assert spec_of(MERGED, session) == merged_spec(source.network.clip)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == {head: list(names) for head, names in VOCABULARIES.items()}
    assert json.loads(metadata["clip"]) == source.network.clip.to_json()


def test_merging_twice_gives_the_same_bytes(folder, source):
    encoder, head = onnx.load(folder / ENCODER), onnx.load(folder / HEAD)
    again = merge_graphs(encoder, head, source.network.clip)
    assert again.SerializeToString(deterministic=True) == (folder / MERGED).read_bytes()
    assert encoder == onnx.load(folder / ENCODER), "the given graphs are left alone"


def test_a_merged_graph_of_other_weights_fails_its_checks(folder, source):
    batches = generated_batches(source.network.clip)[:1]
    network = copy.deepcopy(source.network)
    with torch.no_grad():
        network.action_head[-1].bias.add_(torch.arange(8.0))
    for judged, wrong in ((source.network, set()), (network, {"model.onnx ACTION_PROBABILITIES"})):
        reference = TorchRunner(judged, source.checkpoint.temperatures)
        checks = check_merged(folder / MERGED, reference, batches, Tolerance(), "fp32")
        assert {check.name for check in checks if not check.passed} == wrong


def test_the_flag_puts_it_into_the_manifest(merged_artifact):
    manifest = load_artifact(merged_artifact).manifest
    assert manifest.merged == merged_spec(manifest.clip)
    assert MERGED in manifest.files
    checks = {check["name"] for check in json.loads((merged_artifact / "parity.json").read_text())["checks"]}
    assert {f"{MERGED} inputs", f"{MERGED} ACTION_PROBABILITIES", f"{MERGED} VIEW_WEIGHTS"} <= checks


def test_the_example_runs_with_numpy_and_onnxruntime_alone(merged_artifact, repo_root, source, tmp_path):
    views = golden_views(source.network.clip)
    np.save(tmp_path / "views.npy", views)
    example = repo_root / "examples" / "classify_onnx.py"
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'av', 'mvfoul', 'export']))\n"
    # A None in sys.modules makes the import fail.
    program = blocked + f"sys.argv = sys.argv[1:]; exec(open({str(example)!r}).read())"
    command = [sys.executable, "-c", program, str(example), str(merged_artifact / MERGED), "views.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession(merged_artifact / MERGED, providers=["CPUExecutionProvider"])
    action = session.run(["ACTION_PROBABILITIES"], {"VIEWS": views})[0]
    assert f"action: {VOCABULARIES['action'][action.argmax()]} ({action.max():.0%})" in done.stdout
    assert "2 views of the frames [53, 59, 65, 71, 78, 84, 90, 96] at 25 fps" in done.stdout
    assert len(example.read_text().splitlines()) <= 25
