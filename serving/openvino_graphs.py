"""The two ONNX graphs of an artifact in OpenVINO, for Intel and AMD CPUs: `python -m serving --engine openvino`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvfoul.artifact import FEATURES, VIEWS, Artifact, GraphSpec
from mvfoul.engines import openvino_properties
from mvfoul.errors import ArtifactError, ConfigError
from serving.graphs import ArtifactGraphs, check_tensors


class OpenVinoGraphs(ArtifactGraphs):
    """In OpenVINO, in float32."""

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        """Compile both graphs.

        Raises:
            ConfigError: OpenVINO is not installed.
            ArtifactError: It refuses a file, or the file's tensors are not those of the manifest.
        """
        try:
            import openvino
        except ImportError as error:
            raise ConfigError(
                f"--engine openvino: the package cannot be imported ({error}). Install it: "
                'pip install "vars-platform[openvino]"; or leave --engine out for ONNX Runtime.'
            ) from error
        self._version = openvino.__version__.split("-")[0]
        core = openvino.Core()
        self._encoder = _compile(core, artifact, artifact.manifest.encoder, threads)
        self._head = _compile(core, artifact, artifact.manifest.head, threads)

    @property
    def name(self) -> str:
        """See `ArtifactGraphs`."""
        return f"OpenVINO {self._version}"

    def _run_encoder(self, views: NDArray[np.uint8]) -> NDArray[np.float32]:
        features: NDArray[np.float32] = self._encoder.infer({VIEWS: views})[FEATURES].copy()
        return features

    def _run_head(self, names: Sequence[str], features: NDArray[np.float32]) -> list[NDArray[Any]]:
        answers = self._head.infer({FEATURES: features})
        # The request's memory is overwritten by the next call.
        return [answers[name].copy() for name in names]


def _compile(core: Any, artifact: Artifact, graph: GraphSpec, threads: int) -> Any:
    """Return a request of one compiled graph."""
    path = artifact.path(graph.file)
    try:
        compiled = core.compile_model(path, "CPU", openvino_properties(threads=threads))
    except RuntimeError as error:
        raise ArtifactError(f"OpenVINO cannot load {path}: {error}") from error
    check_tensors(
        path,
        graph,
        inputs=(tensor.any_name for tensor in compiled.inputs),
        outputs=(tensor.any_name for tensor in compiled.outputs),
    )
    return compiled.create_infer_request()
