"""Open Inference Protocol over gRPC: KServe's servicer, with this server's checks, statuses and listening address."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc_interceptor import AsyncServerInterceptor
from kserve import InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from mvfoul.errors import ConfigError, MVFoulError, RequestError
from serving.access import Access
from serving.admission import Admission
from serving.call import TRANSPORT, Transport
from serving.config import ServeConfig
from serving.dataplane import FoulDataPlane
from serving.door import Client, Door, Shown, check_request_bytes
from serving.observer import Observer
from serving.request_id import REQUEST_ID_HEADER, as_header, choose_request_id
from serving.status import INTERNAL, message_of, status_of
from serving.unreadable import UnreadableInterceptor
from serving.uploads import UploadInterceptor

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

    def __init__(
        self, data_plane: FoulDataPlane, repository: ModelRepositoryExtension, observer: Observer, door: Door
    ) -> None:
        super().__init__(data_plane, repository)
        self._door = door
        self._plane = data_plane
        self.observer = observer

    async def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        """Answer one inference request."""
        with self.observer.request("grpc", context.invocation_metadata() or ()) as trace:
            metadata = dict(context.invocation_metadata() or ())
            request_id = choose_request_id(request.id, metadata.get(REQUEST_ID_HEADER))
            context.set_trailing_metadata(((REQUEST_ID_HEADER, as_header(request_id)),))
            TRANSPORT.set(Transport(request_id=request_id, trace=trace))
            client = self._door.client(_shown(context))
            TRANSPORT.set(replace(_transport(request, context, client), request_id=request_id, trace=trace))
            if client.max_request_bytes:  # measured: 16 ms or more for 12 MB on a busy machine
                check_request_bytes(request.ByteSize(), client)
            self._plane.check_model(request.model_name, request.model_version)
            _check_layout(request)
            infer_request = InferRequest.from_grpc(request)
            infer_request.id = request_id
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
        message = message_of(ex) if isinstance(ex, MVFoulError) else "internal error; the server's log has it."
        await context.abort(getattr(grpc.StatusCode, status.grpc), message)


class DoorInterceptor(AsyncServerInterceptor):
    """Lets pass who is known; everybody, to the health probes."""

    # Inference asks the door itself, where its refusals are counted.
    _OPEN = frozenset(("ServerLive", "ServerReady", "ModelReady", "ModelInfer"))

    def __init__(self, door: Door) -> None:
        self._door = door

    async def intercept(
        self, method: Any, request_or_iterator: Any, context: grpc.aio.ServicerContext, method_name: str
    ) -> Any:
        """Answer one RPC."""
        if method_name.rpartition("/")[2] not in self._OPEN:
            self._door.client(_shown(context))
        return await method(request_or_iterator, context)


def build_grpc_server(
    servicer: FoulServicer, address: str, access: Access, config: ServeConfig
) -> tuple[grpc.aio.Server, int]:
    """Return a server that is bound to `address` ("host:port") but not started, and its port.

    Raises:
        ConfigError: The address cannot be bound.
    """
    server = grpc.aio.server(
        interceptors=(
            StatusInterceptor(),
            UploadInterceptor(servicer.observer, Admission(config.max_in_flight)),
            UnreadableInterceptor(servicer.observer),
            DoorInterceptor(access.door),
        ),
        options=[
            ("grpc.max_receive_message_length", config.max_request_bytes),
            # Without this, a second server on the same port starts and takes half of the requests.
            ("grpc.so_reuseport", 0),
            # Who connects and says nothing is let go; the library's own two minutes let a few clients take all files.
            ("grpc.server_handshake_timeout_ms", 10_000),
        ],
    )
    add_GRPCInferenceServiceServicer_to_server(servicer, server)
    try:
        if access.tls is not None:
            return server, server.add_secure_port(address, access.tls.grpc_credentials())
        return server, server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address} for gRPC ({error}); choose another --grpc-port.") from error


def _shown(context: grpc.aio.ServicerContext) -> Shown:
    metadata = dict(context.invocation_metadata() or ())
    # gRPC has checked the certificate, where there is one.
    common_names: list[bytes] = list(context.auth_context().get("x509_common_name", ()))
    return Shown(
        authorization=str(metadata.get("authorization", "")),
        common_name=common_names[0].decode(errors="replace") if common_names else "",
        host=_host(context.peer()),
    )


def _transport(request: pb.ModelInferRequest, context: grpc.aio.ServicerContext, client: Client) -> Transport:
    left_s = context.time_remaining()
    # The library cancels the call at its deadline; ours stops the work a moment before and says why.
    deadline = None if left_s is None or left_s > _FOREVER_S else time.monotonic() + left_s
    return Transport(
        client=client.identity,
        max_in_flight=client.max_in_flight,
        deadline=deadline,
        version=request.model_version,
    )


def _value(parameter: pb.InferParameter) -> Any:
    if chosen := parameter.WhichOneof("parameter_choice"):
        return getattr(parameter, chosen)
    return next((field.data for field in UnknownFieldSet(parameter) if field.field_number == _UINT64_PARAM), None)


def _host(peer: str) -> str:
    """Return "127.0.0.1" for "ipv4:127.0.0.1:50312" and "::1" for "ipv6:[::1]:50312", as over REST."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


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
