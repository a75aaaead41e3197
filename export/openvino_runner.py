"""OpenVINO as a runner: the engine of `python -m serving --engine openvino`, set up alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from export.runners import Tensors
from mvfoul.artifact import ENCODER, FEATURES, HEAD, VIEWS, GraphSpec, TensorSpec
from mvfoul.engines import openvino_properties
from mvfoul.errors import ArtifactError


class OpenVinoRunner:
    """The two graphs of an artifact (or of a work folder) in OpenVINO, on the CPU in float32."""

    def __init__(self, directory: Path, *, threads: int = 0) -> None:
        """Compile both graphs.

        Raises:
            ArtifactError: OpenVINO refuses a graph.
        """
        core = openvino.Core()
        self._encoder, self._head = (_request(core, directory / file, threads) for file in (ENCODER, HEAD))

    @property
    def name(self) -> str:
        """See `Runner`."""
        return f"OpenVINO {openvino.__version__.split('-')[0]}"

    @property
    def graphs(self) -> tuple[GraphSpec, GraphSpec]:
        """What the compiled graphs say of themselves; OpenVINO keeps no names of dynamic axes."""
        encoder, head = (
            GraphSpec(file, _tensors(request.model_inputs), _tensors(request.model_outputs))
            for file, request in ((ENCODER, self._encoder), (HEAD, self._head))
        )
        return encoder, head

    def encode(self, views: NDArray[np.uint8]) -> Tensors:
        """See `Runner`."""
        return _infer(self._encoder, {VIEWS: views})

    def classify(self, features: NDArray[np.float32]) -> Tensors:
        """See `Runner`."""
        return _infer(self._head, {FEATURES: features})


def _request(core: Any, path: Path, threads: int) -> Any:
    try:
        return core.compile_model(path, "CPU", openvino_properties(threads=threads)).create_infer_request()
    except RuntimeError as error:
        raise ArtifactError(f"OpenVINO {openvino.__version__} cannot load {path}: {error}") from error


def _infer(request: Any, inputs: Tensors) -> Tensors:
    answers = request.infer(dict(inputs))
    # The request's memory is overwritten by the next call.
    return {output.any_name: answers[output].copy() for output in request.model_outputs}


def _tensors(ports: list[Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            port.any_name,
            np.dtype(port.element_type.to_dtype()).name,
            tuple("?" if length.is_dynamic else length.get_length() for length in port.partial_shape),
        )
        for port in ports
    )
