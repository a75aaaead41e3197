"""The KServe model: request tensors in, the engine's answer out as response tensors. The same for gRPC and REST."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model
from numpy.typing import NDArray

from mvfoul.artifact import ACTION_PROBABILITIES, OFFENCE_SEVERITY_PROBABILITIES, VIEW_WEIGHTS
from serving.engine import Answer, Engine
from serving.metrics import Metrics
from serving.protocol import (
    DECISION,
    OUTPUTS,
    Tensor,
    check_envelope,
    input_metadata,
    output_metadata,
    read_inputs,
)

log = logging.getLogger("mvfoul.serving")


class FoulModel(Model):  # type: ignore[misc]  # kserve has no types
    """Serves one engine under one name. `ready` is true from the self-test until the server stops."""

    def __init__(self, name: str, engine: Engine, metrics: Metrics) -> None:
        super().__init__(name)
        self.engine = False  # KServe's flag for models with an engine process of their own
        self.core = engine
        self._metrics = metrics
        self.ready = True
        metrics.watch(in_flight=lambda: engine.in_flight, ready=lambda: self.ready)

    @property
    def version(self) -> str:
        """The artifact's version."""
        return self.core.artifact.version

    def load(self) -> bool:
        """Keep `ready` as it is; KServe would set it."""
        return bool(self.ready)

    def get_input_types(self) -> list[dict[str, Any]]:
        """Return the inputs for the model's metadata."""
        return input_metadata(self.core.artifact.manifest.clip)

    def get_output_types(self) -> list[dict[str, Any]]:
        """Return the outputs for the model's metadata."""
        return output_metadata()

    async def predict(self, payload: InferRequest, headers: Mapping[str, str] | None = None) -> InferResponse:  # noqa: ARG002
        """Answer one request; raises the errors of `serving.status`."""
        wanted = [output.name for output in payload.request_outputs or ()]
        request_id = payload.id or uuid.uuid4().hex
        check_envelope(request_id, _parameter_names(payload), wanted)
        inputs = read_inputs([_tensor(item) for item in payload.inputs], self.core.artifact.manifest.clip)
        if isinstance(inputs, list):
            answer = await self.core.predict(inputs)
        else:
            answer = await self.core.predict_views(inputs)
        self._metrics.answered(answer)
        self._log(request_id, answer)
        return self._response(payload, request_id, wanted, answer)

    def _response(self, payload: InferRequest, request_id: str, wanted: list[str], answer: Answer) -> InferResponse:
        tensors = self._tensors(request_id, answer)
        outputs = [_output(name, tensors[name]) for name in wanted or OUTPUTS]
        return InferResponse(
            response_id=request_id,
            model_name=self.name,
            model_version=self.version,
            infer_outputs=outputs,
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=None if payload.from_grpc else payload.request_outputs,
        )

    def _tensors(self, request_id: str, answer: Answer) -> dict[str, NDArray[Any]]:
        decision = {
            "id": request_id,
            "model": self.name,
            "artifact": self.version,
            **answer.prediction.to_json(),
            "timings_ms": _timings_ms(answer),
        }
        return {
            ACTION_PROBABILITIES: answer.scores.action_probabilities,
            OFFENCE_SEVERITY_PROBABILITIES: answer.scores.offence_severity_probabilities,
            VIEW_WEIGHTS: answer.scores.view_weights,
            DECISION: np.array([json.dumps(decision).encode()], dtype=np.object_),
        }

    def _log(self, request_id: str, answer: Answer) -> None:
        prediction = answer.prediction
        stages = " ".join(f"{stage} {ms:.1f}" for stage, ms in _timings_ms(answer).items())
        views = len(prediction.view_weights)
        labels = f"{prediction.action.label!r} {prediction.offence_severity.label!r}"
        log.info("answered id=%r views=%d %s ms: %s", request_id, views, labels, stages)


def _parameter_names(payload: InferRequest) -> list[str]:
    holders = (payload, *payload.inputs, *(payload.request_outputs or ()))
    return [name for holder in holders for name in holder.parameters or ()]


def _timings_ms(answer: Answer) -> dict[str, float]:
    return {stage: round(seconds * 1000, 3) for stage, seconds in answer.stages_s.items()}


def _tensor(item: InferInput) -> Tensor:
    # KServe's own conversions answer a short buffer with an internal error, so the raw buffer is read here.
    raw = item._raw_data
    return Tensor(item.name, item.datatype, tuple(item.shape), item.data if raw is None else raw)


def _output(name: str, values: NDArray[Any]) -> InferOutput:
    datatype = "BYTES" if values.dtype == np.object_ else "FP32"
    # As a list, so that the response can become raw bytes or JSON, whichever the request asked for.
    return InferOutput(name=name, shape=list(values.shape), datatype=datatype, data=values.tolist())
