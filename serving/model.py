"""The KServe model: request tensors in, the engine's answer out as response tensors. The same for gRPC and REST."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model
from numpy.typing import NDArray

from mvfoul.artifact import ACTION_PROBABILITIES, OFFENCE_SEVERITY_PROBABILITIES, VIEW_WEIGHTS
from mvfoul.errors import DeadlineError, UnavailableError
from serving.call import TRANSPORT, Call
from serving.engine import Answer, Engine
from serving.observer import Observer
from serving.parameters import read_call
from serving.protocol import (
    DECISION,
    OUTPUTS,
    Tensor,
    check_envelope,
    input_metadata,
    output_metadata,
    read_inputs,
    view_shape_of,
)
from serving.readiness import Readiness
from serving.shadow import Shadow


class FoulModel(Model):  # type: ignore[misc]  # kserve has no types
    """Serves one engine under one name."""

    def __init__(self, name: str, engine: Engine, observer: Observer, readiness: Readiness) -> None:
        super().__init__(name)
        self.engine = False  # KServe's flag for models with an engine process of their own
        self.core = engine
        self.stopping = False
        self.shadow: Callable[[], Shadow | None] = lambda: None
        """Returns who gets a copy of the requests."""
        self._observer = observer
        self._readiness = readiness
        self.ready = True  # KServe's flag; `accepts_requests` is ours
        observer.metrics.watch(engine, ready=lambda: self.healthy)

    @property
    def healthy(self) -> bool:
        """Whether probes are told that this server is ready."""
        return self._readiness.ready and not self.stopping

    def check_accepting(self) -> None:
        """Refuse requests that would get no answer, or a wrong one.

        Raises:
            UnavailableError: The server is stopping, or the self-test says that it computes something else.
        """
        if self.stopping:
            raise UnavailableError("the server is stopping; send the request to another one, or later.")
        if self._readiness.computes_something_else:
            raise UnavailableError("the server's self-test fails; send the request to another one, or later.")

    @property
    def version(self) -> str:
        """The version of the primary artifact."""
        return self.core.artifact.version

    @property
    def platform(self) -> str:
        """What computes, for the model's metadata."""
        return self.core.router.primary.backend.name

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
        tensor_parameters = [
            n for item in (*payload.inputs, *(payload.request_outputs or ())) for n in item.parameters or ()
        ]
        check_envelope(request_id, list(payload.parameters or ()), tensor_parameters, wanted)
        call = read_call(request_id, payload.parameters or {}, TRANSPORT.get())
        answer = await self._answer([_tensor(item) for item in payload.inputs], call)
        self._observer.answered(answer, call)
        return self._response(payload, request_id, wanted, answer)

    async def _answer(self, tensors: list[Tensor], call: Call) -> Answer:
        # From here on one generation, whatever is swapped meanwhile.
        generation = self.core.route(call, view_shape_of(tensors))
        inputs = read_inputs(tensors, generation.clip, at_least=0 if call.action_id else 1)
        try:
            answer = await self.core.answer(inputs, call, generation)
        except DeadlineError:
            raise
        except UnavailableError:
            self._readiness.doubt()
            raise
        if (shadow := self.shadow()) is not None:
            shadow.offer(inputs, answer)
        return answer

    def _response(self, payload: InferRequest, request_id: str, wanted: list[str], answer: Answer) -> InferResponse:
        tensors = self._tensors(request_id, answer)
        outputs = [_output(name, tensors[name]) for name in wanted or OUTPUTS]
        return InferResponse(
            response_id=request_id,
            model_name=self.name,
            model_version=answer.artifact.version,
            infer_outputs=outputs,
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=None if payload.from_grpc else payload.request_outputs,
        )

    def _tensors(self, request_id: str, answer: Answer) -> dict[str, NDArray[Any]]:
        decision = {
            "id": request_id,
            "model": self.name,
            "artifact": answer.artifact.version,
            "engine": answer.engine,
            **answer.prediction.to_json(),
            **({"session": asdict(answer.session)} if answer.session else {}),
            "timings_ms": answer.stages_ms,
        }
        return {
            ACTION_PROBABILITIES: answer.scores.action_probabilities,
            OFFENCE_SEVERITY_PROBABILITIES: answer.scores.offence_severity_probabilities,
            VIEW_WEIGHTS: answer.scores.view_weights,
            DECISION: np.array([json.dumps(decision).encode()], dtype=np.object_),
        }


def _tensor(item: InferInput) -> Tensor:
    # KServe's own conversions answer a short buffer with an internal error, so the raw buffer is read here.
    raw = item._raw_data
    return Tensor(item.name, item.datatype, tuple(item.shape), item.data if raw is None else raw)


def _output(name: str, values: NDArray[Any]) -> InferOutput:
    datatype = "BYTES" if values.dtype == np.object_ else "FP32"
    # As a list, so that the response can become raw bytes or JSON, whichever the request asked for.
    return InferOutput(name=name, shape=list(values.shape), datatype=datatype, data=values.tolist())
