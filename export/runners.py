"""What an engine answers, and ONNX Runtime as one: the candidate that parity compares with PyTorch.

All answer by tensor name:

    encode     views uint8 [N,3,T,H,W] -> {FEATURES: f32 [N,D]}
    classify   features f32 [V,D]      -> {ACTION_LOGITS: f32 [8], OFFENCE_SEVERITY_LOGITS: f32 [4],
                                               both ..._PROBABILITIES: the same, VIEW_WEIGHTS: f32 [V]}
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

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

Tensors = Mapping[str, NDArray[Any]]

CUDA_PROVIDER: Final = "CUDAExecutionProvider"
"""ONNX Runtime's name of a GPU."""
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


class OnnxRunner:
    """The two graphs of an artifact (or of a work folder) in ONNX Runtime, on the CPU unless told otherwise."""

    def __init__(self, directory: Path, *, threads: int = 0, provider: str = ONNXRUNTIME_PROVIDERS[0]) -> None:
        """Load both graphs.

        Args:
            directory: Holds encoder.onnx and head.onnx.
            threads: Per operator; 0 for one per core.
            provider: ONNX Runtime's name of what computes.

        Raises:
            ArtifactError: ONNX Runtime refuses a graph, or does not have the provider.
        """
        self._provider = provider
        if provider == CUDA_PROVIDER:
            # CUDA and cuDNN as pip installs them are not where the loader looks. What is missing is printed.
            with redirect_stdout(sys.stderr):
                onnxruntime.preload_dlls()
        self._sessions = tuple(onnx_session(directory / file, threads, provider) for file in (ENCODER, HEAD))

    @property
    def name(self) -> str:
        """See `Runner`."""
        return f"ONNX Runtime {onnxruntime.__version__} ({self._provider.removesuffix('ExecutionProvider')})"

    @property
    def graphs(self) -> tuple[GraphSpec, GraphSpec]:
        """What the files say of themselves."""
        encoder, head = (spec_of(file, session) for file, session in zip((ENCODER, HEAD), self._sessions, strict=True))
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


def onnx_session(path: Path, threads: int = 0, provider: str = ONNXRUNTIME_PROVIDERS[0]) -> Any:
    """Load one graph as serving does.

    Raises:
        ArtifactError: ONNX Runtime refuses it, or does not have the provider.
    """
    options = configure_onnxruntime(onnxruntime.SessionOptions(), threads=threads)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as error:
        # ONNX Runtime's exceptions have no base of their own.
        raise ArtifactError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}") from error
    # Where a provider fails to load, ONNX Runtime goes on with the CPU and a line in its log.
    if provider not in session.get_providers():
        raise ArtifactError(f"ONNX Runtime {onnxruntime.__version__} has no {provider} here, for {path}.")
    return session


def spec_of(file: str, session: Any) -> GraphSpec:
    """Return what a graph says of its inputs and outputs."""
    return GraphSpec(file, _tensors(session.get_inputs()), _tensors(session.get_outputs()))


def _tensors(arguments: list[Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(a.name, _DTYPES.get(a.type, a.type), tuple(a.shape)) for a in arguments)


def _run(session: Any, inputs: Tensors) -> Tensors:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))
