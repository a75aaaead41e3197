"""Inside Triton's python backend: one graph of an artifact in ONNX Runtime, on the CPU.

`serving.repository` copies this file as `model.py` into a version folder, beside the graph and `engines.py` (a copy of
`mvfoul.engines`, so that the settings are those of the export's check). It imports nothing else of ours.

Parameters of the model: `graph` (file name), `threads` (0: all CPUs, shared among the instances), and `max_rows` (most
rows of one request; only for a graph that answers requests one by one).
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class TritonPythonModel:
    """What the python backend calls. Requests of a batch are answered by one run: rows are joined, never padded."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Load the graph; an exception here makes the version fail to load, and the one before goes on."""
        self._triton = importlib.import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        self._batches = config["max_batch_size"] > 0
        self._max_rows = int(parameters.get("max_rows", 0))
        self._input = config["input"][0]["name"]
        self._outputs = [output["name"] for output in config["output"]]
        threads = int(parameters["threads"]) or _share_of_cpus(config)
        self._session = _load(Path(__file__).with_name(parameters["graph"]), threads)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return one response per request, in order."""
        groups = [requests] if self._batches else [[request] for request in requests]
        return [response for group in groups for response in self._answer(group)]

    def _answer(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests by one run; a request that is refused does not enter it."""
        refusals = [self._refusal(request) for request in requests]
        accepted = [request for request, refusal in zip(requests, refusals, strict=True) if refusal is None]
        answers = iter(self._run(accepted) if accepted else [])
        return [self._error(*refusal) if refusal else next(answers) for refusal in refusals]

    def _refusal(self, request: Any) -> tuple[str, int] | None:
        """Return why a request is not computed, and the code of its status; None to compute it."""
        error = self._triton.TritonError
        if request.is_cancelled():
            return "the client cancelled the request while it waited.", error.CANCELLED
        rows = self._rows(request).shape[0]
        if rows < 1 or (self._max_rows and rows > self._max_rows):
            return f"{self._input} has {rows} rows; send from 1 to {self._max_rows}.", error.INVALID_ARG
        return None

    def _run(self, requests: Sequence[Any]) -> list[Any]:
        rows = [self._rows(request) for request in requests]
        joined = rows[0] if len(rows) == 1 else np.concatenate(rows)
        try:
            outputs = self._session.run(self._outputs, {self._input: joined})
        except Exception as error:  # noqa: BLE001
            # ONNX Runtime's exceptions have no common base of their own.
            return [self._error(f"ONNX Runtime failed: {error}", self._triton.TritonError.INTERNAL) for _ in requests]
        ends = np.cumsum([len(part) for part in rows])[:-1]
        # Without batching there is one request, and outputs such as probabilities have no axis of rows.
        split = [np.split(output, ends) if self._batches else [output] for output in outputs]
        return [self._response(parts) for parts in zip(*split, strict=True)]

    def _rows(self, request: Any) -> np.ndarray[Any, Any]:
        array: np.ndarray[Any, Any] = self._triton.get_input_tensor_by_name(request, self._input).as_numpy()
        return array

    def _response(self, arrays: Sequence[np.ndarray[Any, Any]]) -> Any:
        named = zip(self._outputs, arrays, strict=True)
        return self._triton.InferenceResponse([self._triton.Tensor(n, np.ascontiguousarray(a)) for n, a in named])

    def _error(self, message: str, code: int) -> Any:
        return self._triton.InferenceResponse(error=self._triton.TritonError(message, code))


def _load(path: Path, threads: int) -> Any:
    engines = importlib.import_module("engines")
    options = engines.configure_onnxruntime(onnxruntime.SessionOptions(), threads=threads)
    return onnxruntime.InferenceSession(path, options, providers=list(engines.ONNXRUNTIME_PROVIDERS))


def _share_of_cpus(config: dict[str, Any]) -> int:
    instances = sum(group.get("count", 1) for group in config.get("instance_group", [])) or 1
    return max(1, len(os.sched_getaffinity(0)) // instances)
