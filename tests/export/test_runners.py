from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from export.batches import golden_views
from export.runners import CUDA_PROVIDER, OnnxRunner
from export.torch_runner import TorchRunner
from mvfoul.artifact import (
    ACTION_LOGITS,
    ACTION_PROBABILITIES,
    ENCODER,
    FEATURES,
    OFFENCE_SEVERITY_PROBABILITIES,
    VIEW_WEIGHTS,
    load_artifact,
)
from mvfoul.errors import ArtifactError
from mvfoul.prediction import make_prediction


def test_the_reference_is_the_whole_network(source):
    runner = TorchRunner(source.network, source.checkpoint.temperatures)
    views = golden_views(source.network.clip)
    answers = runner.classify(runner.encode(views)[FEATURES])
    with torch.inference_mode():
        logits = source.network(torch.from_numpy(views), torch.tensor([len(views)]))
    np.testing.assert_allclose(answers[ACTION_LOGITS], logits.action[0], atol=1e-6)
    calibrated = torch.softmax(logits.action[0] / source.checkpoint.temperatures["action"], dim=0)
    np.testing.assert_allclose(answers[ACTION_PROBABILITIES], calibrated, atol=1e-6)


def test_both_runners_give_what_the_server_needs_for_a_decision(source, tiny_artifact):
    views = golden_views(source.network.clip)
    for runner in (TorchRunner(source.network, source.checkpoint.temperatures), OnnxRunner(tiny_artifact)):
        answers = runner.classify(runner.encode(views)[FEATURES])
        prediction = make_prediction(
            answers[ACTION_PROBABILITIES], answers[OFFENCE_SEVERITY_PROBABILITIES], answers[VIEW_WEIGHTS]
        )
        assert sum(prediction.view_weights) == pytest.approx(1)


def test_the_files_say_of_themselves_what_the_manifest_promises(tiny_artifact):
    manifest = load_artifact(tiny_artifact).manifest
    assert OnnxRunner(tiny_artifact).graphs == (manifest.encoder, manifest.head)


def test_a_file_that_is_no_graph_is_an_artifact_error(tmp_path):
    (tmp_path / ENCODER).write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match=f"ONNX Runtime {onnxruntime.__version__} cannot load .*{ENCODER}"):
        OnnxRunner(tmp_path)


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.skipif(CUDA_PROVIDER in onnxruntime.get_available_providers(), reason="it can run here")
def test_a_gpu_that_onnx_runtime_does_not_have_is_no_cpu_in_disguise(tiny_artifact, monkeypatch, capsys):
    looked = []
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print(looked.append(1) or "Failed to load libcudart.so"))
    with pytest.raises(ArtifactError, match=r"has no CUDAExecutionProvider here, for .*encoder\.onnx"):
        OnnxRunner(tiny_artifact, provider=CUDA_PROVIDER)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "Failed to load libcudart.so\n"), "standard output is the command's own"
