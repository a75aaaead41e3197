"""The two ONNX graphs of an artifact in ONNX Runtime, checked against the manifest and against golden.npz."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mvfoul.artifact import (
    ACTION_LOGITS,
    ACTION_PROBABILITIES,
    FEATURES,
    GOLDEN_TOLERANCE,
    OFFENCE_SEVERITY_LOGITS,
    OFFENCE_SEVERITY_PROBABILITIES,
    VIEW_WEIGHTS,
    VIEWS,
    Artifact,
    GraphSpec,
)
from mvfoul.errors import ArtifactError

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


class OnnxGraphs:
    """Encoder and head in this process. Methods block; call them from one thread at a time.

    The same input gives the same bits every time: one operator runs after the other, with deterministic kernels.
    """

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        """Load both graphs.

        Raises:
            ArtifactError: ONNX Runtime refuses a file, or its tensors are not those of the manifest.
        """
        self._encoder = _load(artifact, artifact.manifest.encoder, threads)
        self._head = _load(artifact, artifact.manifest.head, threads)

    def encode(self, views: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return features `[N, D]` of views `[N, 3, T, H, W]`."""
        (features,) = self._encoder.run([FEATURES], {VIEWS: views})
        return features  # type: ignore[no-any-return]

    def classify(self, features: NDArray[np.float32]) -> Scores:
        """Score one action from the features `[V, D]` of its views."""
        return Scores(*self._head.run(list(_ANSWERS), {FEATURES: features}))

    def self_test(self, artifact: Artifact) -> None:
        """Run golden.npz through both graphs and compare with what PyTorch answered at export.

        Raises:
            ArtifactError: An answer differs by more than `GOLDEN_TOLERANCE`.
        """
        precision = artifact.manifest.precision
        if (tolerance := GOLDEN_TOLERANCE.get(precision)) is None:
            known = ", ".join(GOLDEN_TOLERANCE)
            raise ArtifactError(f"{artifact.directory} has precision {precision!r}; known: {known}. Export again.")
        golden = artifact.golden()
        outputs = self._head.run(list(_TESTED), {FEATURES: self.encode(golden[VIEWS])})
        errors = {name: _max_abs_error(found, golden[name]) for name, found in zip(_TESTED, outputs, strict=True)}
        if failed := [f"{name} by {error:.3g}" for name, error in errors.items() if not error <= tolerance]:
            raise ArtifactError(
                f"{artifact.directory} fails its self-test: {', '.join(failed)} off golden.npz (tolerance {tolerance})."
                " It computes something else here than where it was exported; export again, or use the versions that "
                f"wrote it: {dict(artifact.manifest.versions)}."
            )


def _load(artifact: Artifact, graph: GraphSpec, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    # Idle threads that spin take the CPU from the decoders.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = artifact.path(graph.file)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # ONNX Runtime's exceptions have no common base of their own.
        raise ArtifactError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}") from error
    for kind, found, promised in (
        ("inputs", session.get_inputs(), graph.inputs),
        ("outputs", session.get_outputs(), graph.outputs),
    ):
        if (names := {tensor.name for tensor in found}) != {tensor.name for tensor in promised}:
            raise ArtifactError(
                f"{path} has {kind} {sorted(names)}, the manifest says {sorted(t.name for t in promised)}."
                " Export again."
            )
    return session


def _max_abs_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found.astype(np.float64) - expected).max())
