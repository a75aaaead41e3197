"""A plan as one of parity's engines: TensorRT for the encoder, and another engine for the head, which has no plan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.runners import Runner, Tensors
from export.tensorrt_callbacks import BuildLog, make_logger
from export.tensorrt_host import import_tensorrt
from mvfoul.artifact import FEATURES, VIEWS, GraphSpec, TensorSpec
from mvfoul.errors import PlanError
from mvfoul.plan import PlanSpec


class TensorRTRunner:
    """encoder.plan on a GPU. More views than the profile takes go in several calls, as a server would send them."""

    def __init__(self, directory: Path, plan: PlanSpec, head: Runner, *, device: str = "cuda") -> None:
        """Load the plan.

        Args:
            directory: Holds the plan.
            plan: What is known of it.
            head: Answers `classify`.
            device: Of the buffers, in torch's words.

        Raises:
            PlanError: TensorRT refuses the plan.
        """
        self._trt = import_tensorrt()
        self._spec, self._head, self._device = plan, head, torch.device(device)
        self._log = BuildLog()
        self._logger = make_logger(self._trt, self._log)
        self._runtime = self._trt.Runtime(self._logger)
        # A version-compatible plan carries its own runtime, which is code that this process then executes.
        self._runtime.engine_host_code_allowed = plan.version_compatible
        self._engine = self._runtime.deserialize_cuda_engine((directory / plan.file).read_bytes())
        if self._engine is None:
            raise PlanError(f"TensorRT cannot load {directory / plan.file}: {self._reasons()}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise PlanError(f"no GPU memory to run {plan.file} with {plan.max_views} views: {self._reasons()}")
        # TensorRT's documentation: the default stream costs a synchronisation per call.
        self._stream: Any = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @property
    def name(self) -> str:
        """See `Runner`."""
        return f"TensorRT {self._trt.__version__}"

    @property
    def graphs(self) -> tuple[GraphSpec, GraphSpec]:
        """What the plan says of itself; a dynamic axis is N."""
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        encoder = GraphSpec(self._spec.file, self._tensors(inputs), self._tensors(outputs))
        return encoder, self._head.graphs[1]

    def encode(self, views: NDArray[np.uint8]) -> Tensors:
        """See `Runner`.

        Raises:
            PlanError: TensorRT refuses the views, or fails.
        """
        return {FEATURES: np.concatenate([self._encode(part) for part in split(views, self._spec.max_views)])}

    def classify(self, features: NDArray[np.float32]) -> Tensors:
        """See `Runner`."""
        return self._head.classify(features)

    def _encode(self, views: NDArray[np.uint8]) -> NDArray[Any]:
        with torch.cuda.stream(self._stream):  # None changes nothing
            pixels = torch.from_numpy(np.ascontiguousarray(views)).to(self._device)
            self._demand(self._context.set_input_shape(VIEWS, tuple(pixels.shape)), f"{len(views)} views")
            shape = tuple(self._context.get_tensor_shape(FEATURES))
            dtype = torch.from_numpy(np.empty(0, self._dtype(FEATURES))).dtype
            features = torch.empty(shape, dtype=dtype, device=self._device)
            self._bind({VIEWS: pixels, FEATURES: features})
            handle = self._stream.cuda_stream if self._stream else 0
            self._demand(self._context.execute_async_v3(handle), "the call")
            answer: NDArray[Any] = features.cpu().numpy()  # waits for the stream
        return answer

    def _bind(self, buffers: dict[str, Tensor]) -> None:
        for name, buffer in buffers.items():
            self._demand(self._context.set_tensor_address(name, buffer.data_ptr()), f"the buffer of {name}")

    def _demand(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise PlanError(f"TensorRT refuses {what}: {self._reasons()}")

    def _reasons(self) -> str:
        return "; ".join(self._log.take_errors()) or "it gives no reason"

    def _dtype(self, name: str) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        return dtype

    def _tensors(self, names: list[str]) -> tuple[TensorSpec, ...]:
        def shape(name: str) -> tuple[int | str, ...]:
            return tuple("N" if length < 0 else int(length) for length in self._engine.get_tensor_shape(name))

        return tuple(TensorSpec(name, self._dtype(name).name, shape(name)) for name in names)


def split(views: NDArray[np.uint8], most: int) -> Iterator[NDArray[np.uint8]]:
    """Cut `[N, ...]` into parts of at most `most`; no views are one empty part."""
    for start in range(0, max(len(views), 1), most):
        yield views[start : start + most]
