"""The engines that parity compares: PyTorch, the reference, and ONNX Runtime, the candidate.

Both answer by tensor name:

    encode     views uint8 [N,3,T,H,W] -> {FEATURES: f32 [N,D]}
    classify   features f32 [V,D]      -> {ACTION_LOGITS: f32 [8], OFFENCE_SEVERITY_LOGITS: f32 [4],
                                               both ..._PROBABILITIES: the same, VIEW_WEIGHTS: f32 [V]}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvfoul.artifact import (
    ACTION_LOGITS,
    ACTION_PROBABILITIES,
    ENCODER,
    FEATURES,
    HEAD,
    OFFENCE_SEVERITY_LOGITS,
    OFFENCE_SEVERITY_PROBABILITIES,
    VIEW_WEIGHTS,
    VIEWS,
    GraphSpec,
    TensorSpec,
)
from mvfoul.clip import ClipSpec
from mvfoul.engines import ONNXRUNTIME_PROVIDERS, configure_onnxruntime
from mvfoul.errors import ArtifactError
from mvfoul.labels import ACTION_CLASSES, OFFENCE_SEVERITIES
from mvfoul.prediction import softmax
from training.model.network import FoulNetwork

Tensors = Mapping[str, NDArray[Any]]

_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(float16)": "float16"}


class Runner(Protocol):
    """Something that computes what the artifact promises."""

    @property
    def name(self) -> str:
        """Engine and version."""

    @property
    def graphs(self) -> tuple[GraphSpec, GraphSpec]:
        """Encoder and head: names, dtypes and shapes of their tensors."""

    def encode(self, views: NDArray[np.uint8]) -> Tensors:
        """See the top of the file."""

    def classify(self, features: NDArray[np.float32]) -> Tensors:
        """See the top of the file."""


class TorchRunner:
    """The checkpoint's network in PyTorch, float32. Probabilities are computed by `mvfoul.prediction`, not by torch."""

    def __init__(self, network: FoulNetwork, temperatures: Mapping[str, float]) -> None:
        self._network = network.eval()
        self._temperatures = temperatures

    @property
    def name(self) -> str:
        """See `Runner`."""
        return f"PyTorch {torch.__version__}"

    @property
    def graphs(self) -> tuple[GraphSpec, GraphSpec]:
        """What the artifact has to promise for this network."""
        return graph_specs(self._network.clip, self._network.feature_dim)

    def encode(self, views: NDArray[np.uint8]) -> Tensors:
        """See `Runner`."""
        with torch.inference_mode():
            return {FEATURES: self._network.encode(_aligned(views)).numpy()}

    def classify(self, features: NDArray[np.float32]) -> Tensors:
        """See `Runner`."""
        view_mask = torch.ones(1, len(features), dtype=torch.bool)
        with torch.inference_mode():
            logits = self._network.classify(_aligned(features).unsqueeze(0), view_mask)
        action, severity, weights = (tensor.squeeze(0).numpy() for tensor in logits)
        return {
            ACTION_LOGITS: action,
            OFFENCE_SEVERITY_LOGITS: severity,
            ACTION_PROBABILITIES: softmax(action, temperature=self._temperatures["action"]),
            OFFENCE_SEVERITY_PROBABILITIES: softmax(severity, temperature=self._temperatures["offence_severity"]),
            VIEW_WEIGHTS: weights,
        }


class OnnxRunner:
    """The two graphs of an artifact (or of a work folder) in ONNX Runtime on the CPU."""

    def __init__(self, directory: Path, *, threads: int = 0) -> None:
        """Load both graphs.

        Args:
            directory: Holds encoder.onnx and head.onnx.
            threads: Per operator; 0 for one per core.

        Raises:
            ArtifactError: ONNX Runtime refuses a graph.
        """
        self._sessions = tuple(_session(directory / file, threads) for file in (ENCODER, HEAD))

    @property
    def name(self) -> str:
        """See `Runner`."""
        return f"ONNX Runtime {onnxruntime.__version__} (CPU)"

    @property
    def graphs(self) -> tuple[GraphSpec, GraphSpec]:
        """What the files say of themselves."""
        encoder, head = (
            GraphSpec(file, _tensors(session.get_inputs()), _tensors(session.get_outputs()))
            for file, session in zip((ENCODER, HEAD), self._sessions, strict=True)
        )
        return encoder, head

    def encode(self, views: NDArray[np.uint8]) -> Tensors:
        """See `Runner`."""
        return _run(self._sessions[0], {VIEWS: views})

    def classify(self, features: NDArray[np.float32]) -> Tensors:
        """See `Runner`."""
        return _run(self._sessions[1], {FEATURES: features})


def graph_specs(clip: ClipSpec, feature_dim: int) -> tuple[GraphSpec, GraphSpec]:
    """Return what encoder and head of an artifact must look like."""
    classes = {ACTION_LOGITS: len(ACTION_CLASSES), OFFENCE_SEVERITY_LOGITS: len(OFFENCE_SEVERITIES)}
    classes |= {ACTION_PROBABILITIES: len(ACTION_CLASSES), OFFENCE_SEVERITY_PROBABILITIES: len(OFFENCE_SEVERITIES)}
    answers = tuple(TensorSpec(name, "float32", (length,)) for name, length in classes.items())
    encoder = GraphSpec(
        ENCODER,
        (TensorSpec(VIEWS, "uint8", ("N", *clip.view_shape)),),
        (TensorSpec(FEATURES, "float32", ("N", feature_dim)),),
    )
    head = GraphSpec(
        HEAD,
        (TensorSpec(FEATURES, "float32", ("V", feature_dim)),),
        (*answers, TensorSpec(VIEW_WEIGHTS, "float32", ("V",))),
    )
    return encoder, head


def _aligned(array: NDArray[Any]) -> Tensor:
    """Copy to memory of torch's own: MKL sums in an order that depends on the address, and numpy's are arbitrary."""
    return torch.from_numpy(array).clone()


def _session(path: Path, threads: int) -> Any:
    options = configure_onnxruntime(onnxruntime.SessionOptions(), threads=threads)
    try:
        return onnxruntime.InferenceSession(path, options, providers=list(ONNXRUNTIME_PROVIDERS))
    except Exception as error:
        # ONNX Runtime's exceptions have no base of their own.
        raise ArtifactError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}") from error


def _tensors(arguments: list[Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(a.name, _DTYPES.get(a.type, a.type), tuple(a.shape)) for a in arguments)


def _run(session: Any, inputs: Tensors) -> Tensors:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))
