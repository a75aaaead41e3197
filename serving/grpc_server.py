"""Open Inference Protocol over gRPC: KServe's servicer, with this server's checks, statuses and listening address."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.unknown_fields import UnknownFieldSet
from kserve import InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from mvfoul.errors import ConfigError, MVFoulError, RequestError
from serving.call import TRANSPORT, Transport
from serving.dataplane import FoulDataPlane
from serving.observer import Observer
from serving.status import INTERNAL, status_of

log = logging.getLogger("mvfoul.serving")

_DATATYPES = frozenset(
    ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES")
)


_UINT64_PARAM = 5
"""Triton's clients send a priority in this field of `InferParameter`; KServe's copy of the protocol lacks it."""

_FOREVER_S = 30 * 24 * 3600.0
"""gRPC gives a request without a deadline some hundred years."""


class FoulServicer(InferenceServicer):  # type: ignore[misc]  # kserve has no types
    """The RPCs. Errors leave as exceptions; `StatusInterceptor` turns them into statuses."""

    def __init__(self, data_plane: FoulDataPlane, repository: ModelRepositoryExtension, observer: Observer) -> None:
        super().__init__(data_plane, repository)
        self._plane = data_plane
        self._observer = observer

    async def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        """Answer one inference request."""
        with self._observer.request("grpc", context.invocation_metadata() or ()) as trace:
            TRANSPORT.set(replace(_transport(request, context), request_id=request.id, trace=trace))
            self._plane.check_model(request.model_name, request.model_version)
            _check_layout(request)
            infer_request = InferRequest.from_grpc(request)
            # KServe leaves them as messages; over REST they are values.
            infer_request.parameters = {name: _value(item) for name, item in request.parameters.items()}
            response, _ = await self._plane.infer(model_name=request.model_name, request=infer_request)
            return response.to_grpc()

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: grpc.aio.ServicerContext) -> Any:  # noqa: ARG002, N802
        """Describe the model; unlike KServe's, with its version."""
        self._plane.check_model(request.name, request.version)
        return pb.ModelMetadataResponse(**await self._plane.model_metadata(request.name))

    async def ModelReady(self, request: pb.ModelReadyRequest, context: grpc.aio.ServicerContext) -> Any:  # noqa: ARG002, N802
        """Say whether the model, in the version asked for, answers requests."""
        model = self._plane.check_model(request.name, request.version)
        return pb.ModelReadyResponse(ready=model.healthy)


class StatusInterceptor(ExceptionToStatusInterceptor):  # type: ignore[misc]
    """Turns exceptions into statuses by the one table; a bug's message stays in the log."""

    async def handle_exception(
        self,
        ex: Exception,
        request_or_iterator: Any,  # noqa: ARG002
        context: grpc.aio.ServicerContext,
        method_name: str,
    ) -> None:
        """End the RPC with the status of `ex`."""
        status = status_of(ex)
        if status is INTERNAL:
            log.error("%s failed", method_name, exc_info=ex)
        message = str(ex) if isinstance(ex, MVFoulError) else "internal error; the server's log has it."
        await context.abort(getattr(grpc.StatusCode, status.grpc), message)


def build_grpc_server(servicer: FoulServicer, address: str, *, max_request_bytes: int) -> tuple[grpc.aio.Server, int]:
    """Return a server that is bound to `address` ("host:port") but not started, and its port.

    Raises:
        ConfigError: The address cannot be bound.
    """
    server = grpc.aio.server(
        interceptors=(StatusInterceptor(),),
        options=[
            ("grpc.max_receive_message_length", max_request_bytes),
            # Without this, a second server on the same port starts and takes half of the requests.
            ("grpc.so_reuseport", 0),
        ],
    )
    add_GRPCInferenceServiceServicer_to_server(servicer, server)
    try:
        return server, server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address} for gRPC ({error}); choose another --grpc-port.") from error


def _transport(request: pb.ModelInferRequest, context: grpc.aio.ServicerContext) -> Transport:
    left_s = context.time_remaining()
    # The library cancels the call at its deadline; ours stops the work a moment before and says why.
    deadline = None if left_s is None or left_s > _FOREVER_S else time.monotonic() + left_s
    return Transport(client=_host(context.peer()), deadline=deadline, version=request.model_version)


def _value(parameter: pb.InferParameter) -> Any:
    if chosen := parameter.WhichOneof("parameter_choice"):
        return getattr(parameter, chosen)
    return next((field.data for field in UnknownFieldSet(parameter) if field.field_number == _UINT64_PARAM), None)


def _host(peer: str) -> str:
    """Return "127.0.0.1" for "ipv4:127.0.0.1:50312" and "[::1]" for "ipv6:[::1]:50312"."""
    return unquote(peer).partition(":")[2].rpartition(":")[0]


def _check_layout(request: pb.ModelInferRequest) -> None:
    """Check what KServe's conversion would answer with an internal or unclear error."""
    for item in request.inputs:
        if item.datatype not in _DATATYPES:
            raise RequestError(f"{item.name[:64]} has unknown datatype {item.datatype[:64]!r}.")
    raw = len(request.raw_input_contents)
    if raw and raw != len(request.inputs):
        raise RequestError(f"the request has {len(request.inputs)} inputs but {raw} raw buffers; send one buffer each.")
    if raw and (double := [item.name[:64] for item in request.inputs if item.HasField("contents")]):
        raise RequestError(f"inputs {double} have contents and raw_input_contents; send one of the two.")
