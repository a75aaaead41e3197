"""The two ONNX graphs of an artifact in an engine, checked against the manifest and against golden.npz."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mvfoul.artifact import (
    ACTION_LOGITS,
    ACTION_PROBABILITIES,
    FEATURES,
    OFFENCE_SEVERITY_LOGITS,
    OFFENCE_SEVERITY_PROBABILITIES,
    VIEW_WEIGHTS,
    VIEWS,
    Artifact,
    GraphSpec,
)
from mvfoul.engines import ONNXRUNTIME_PROVIDERS, configure_onnxruntime
from mvfoul.errors import ArtifactError
from serving.golden import check_golden

_TESTED = (ACTION_LOGITS, OFFENCE_SEVERITY_LOGITS, ACTION_PROBABILITIES, OFFENCE_SEVERITY_PROBABILITIES, VIEW_WEIGHTS)
_ANSWERS = (ACTION_PROBABILITIES, OFFENCE_SEVERITY_PROBABILITIES, VIEW_WEIGHTS)


@dataclass(frozen=True)
class Scores:
    """What the head says about one action."""

    action_probabilities: NDArray[np.float32]
    """`[8]`"""
    offence_severity_probabilities: NDArray[np.float32]
    """`[4]`"""
    view_weights: NDArray[np.float32]
    """`[V]`"""


class ArtifactGraphs(ABC):
    """Encoder and head in this process. Methods block; call them from one thread at a time.

    The same input gives the same bits every time.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Engine and version."""

    @abstractmethod
    def _run_encoder(self, views: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return features `[N, D]`."""

    @abstractmethod
    def _run_head(self, names: Sequence[str], features: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Return the head's outputs of these names, in their order."""

    def encode(self, views: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return features `[N, D]` of views `[N, 3, T, H, W]`."""
        return self._run_encoder(views)

    def classify(self, features: NDArray[np.float32]) -> Scores:
        """Score one action from the features `[V, D]` of its views."""
        return Scores(*self._run_head(_ANSWERS, features))

    def self_test(self, artifact: Artifact) -> None:
        """Run golden.npz through both graphs and compare with what PyTorch answered at export.

        Raises:
            ArtifactError: An answer differs by more than `GOLDEN_TOLERANCE`.
        """
        golden = artifact.golden()
        outputs = self._run_head(_TESTED, self.encode(golden[VIEWS]))
        check_golden(artifact, golden, dict(zip(_TESTED, outputs, strict=True)), engine=self.name)


class OnnxGraphs(ArtifactGraphs):
    """In ONNX Runtime."""

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        """Load both graphs.

        Raises:
            ArtifactError: ONNX Runtime refuses a file, or its tensors are not those of the manifest.
        """
        self._encoder = _load(artifact, artifact.manifest.encoder, threads)
        self._head = _load(artifact, artifact.manifest.head, threads)

    @property
    def name(self) -> str:
        """See `ArtifactGraphs`."""
        return f"ONNX Runtime {onnxruntime.__version__}"

    def _run_encoder(self, views: NDArray[np.uint8]) -> NDArray[np.float32]:
        (features,) = self._encoder.run([FEATURES], {VIEWS: views})
        return features  # type: ignore[no-any-return]

    def _run_head(self, names: Sequence[str], features: NDArray[np.float32]) -> list[NDArray[Any]]:
        return self._head.run(list(names), {FEATURES: features})  # type: ignore[no-any-return]


def check_tensors(path: Path, graph: GraphSpec, *, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Refuse a file whose tensors are not those of the manifest.

    Raises:
        ArtifactError: Other names.
    """
    for kind, found, promised in (("inputs", inputs, graph.inputs), ("outputs", outputs, graph.outputs)):
        if (names := set(found)) != {tensor.name for tensor in promised}:
            raise ArtifactError(
                f"{path} has {kind} {sorted(names)}, the manifest says {sorted(t.name for t in promised)}."
                " Export again."
            )


def _load(artifact: Artifact, graph: GraphSpec, threads: int) -> Any:
    path = artifact.path(graph.file)
    options = configure_onnxruntime(onnxruntime.SessionOptions(), threads=threads)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=list(ONNXRUNTIME_PROVIDERS))
    except Exception as error:
        # ONNX Runtime's exceptions have no common base of their own.
        raise ArtifactError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}") from error
    check_tensors(
        path,
        graph,
        inputs=(tensor.name for tensor in session.get_inputs()),
        outputs=(tensor.name for tensor in session.get_outputs()),
    )
    return session
