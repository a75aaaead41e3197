"""Open Inference Protocol over REST: KServe's endpoints, our own for inference, and /metrics.

KServe's inference endpoint turns raw tensors into lists of numbers and cannot read raw BYTES; `serving.rest_body` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from kserve import InferInput, InferRequest, InferResponse
from kserve.errors import ModelNotReady, ServerNotReady
from kserve.protocol.infer_type import RequestedOutput
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import metrics_handler
from kserve.protocol.rest.v2_endpoints import register_v2_endpoints
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from mvfoul.errors import (
    ClientGoneError,
    ConfigError,
    DeadlineError,
    MVFoulError,
    RequestTooLargeError,
    UnauthenticatedError,
)
from serving.admission import Admission
from serving.call import TRANSPORT, Transport
from serving.config import ServeConfig
from serving.dataplane import FoulDataPlane
from serving.door import Client, Door, Shown, check_request_bytes
from serving.observer import Observer
from serving.protocol import Tensor
from serving.request_id import REQUEST_ID_HEADER, as_header, choose_request_id
from serving.rest_body import JSON_LENGTH_HEADER, RestRequest, parse_body
from serving.rest_connection import BoundedHttp
from serving.status import message_of, status_of
from serving.tls import ServerTls, common_name
from serving.uploads import UPLOAD_S

log = logging.getLogger("mvfoul.serving")

T = TypeVar("T")

_COMMON_NAME = "mvfoul_common_name"
_OPEN = re.compile(r"/|/metrics|/v2/health/(live|ready)|/v2/models/[^/]+/ready")
"""Paths that need no token and no certificate."""
_INFER = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")
"""Asks the door itself, where its refusals are counted."""


class InferEndpoint:
    """`POST /v2/models/{name}[/versions/{version}]/infer`."""

    def __init__(self, data_plane: FoulDataPlane, observer: Observer, door: Door, config: ServeConfig) -> None:
        self._plane = data_plane
        self._door = door
        self._uploads = Admission(config.max_in_flight)
        self._observer = observer
        self._max_request_bytes = config.max_request_bytes

    async def infer(self, request: Request, model_name: str, model_version: str = "") -> Response:
        """Answer one inference request."""
        with self._observer.request("rest", request.headers.items()) as trace:
            header = request.headers.get(REQUEST_ID_HEADER)
            TRANSPORT.set(Transport(request_id=choose_request_id("", header), trace=trace))
            client = self._door.client(shown(request))
            transport = replace(
                TRANSPORT.get(),
                client=client.identity,
                max_in_flight=client.max_in_flight,
                version=model_version,
            )
            TRANSPORT.set(transport)
            model = self._plane.check_model(model_name, model_version)
            # Before the body, so that what will be refused is not read into memory first.
            model.core.admission.check(client.identity, client.max_in_flight)
            with self._uploads.admitted(client.identity, client.max_in_flight):
                body = await self._read(request, client)
            parsed = parse_body(body, request.headers.get(JSON_LENGTH_HEADER))
            parsed = replace(parsed, request_id=parsed.request_id or transport.request_id)
            TRANSPORT.set(replace(transport, request_id=parsed.request_id))
            work = self._plane.infer(model_name=model_name, request=_to_kserve(model_name, parsed))
            response, _ = await _unless_gone(request, work)
            return _named(_to_http(response))

    async def _read(self, request: Request, client: Client) -> bytes:
        announced = request.headers.get("content-length", "")
        self._check_size(int(announced) if announced.isdigit() and len(announced) < 20 else 0, client)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(UPLOAD_S):
                async for chunk in request.stream():
                    size += len(chunk)
                    self._check_size(size, client)
                    chunks.append(chunk)
        except TimeoutError as error:
            raise DeadlineError(f"the request's body did not arrive within {UPLOAD_S:g} s; send it faster.") from error
        except ClientDisconnect as error:
            raise ClientGoneError("the client hung up before the end of its request.") from error
        return b"".join(chunks)

    def _check_size(self, size: int, client: Client) -> None:
        check_request_bytes(size, client)
        if size > self._max_request_bytes:
            raise RequestTooLargeError(
                f"the request has {size} bytes or more; this server takes {self._max_request_bytes}. Send smaller "
                "clips (only the seconds around the contact are used), or gRPC, which needs no base64."
            )


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work of a request, unless its client hangs up: then nobody waits for it.

    Raises:
        ClientGoneError: It did.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError("the client hung up before its answer.")
        return task.result()
    finally:
        for unfinished in (task, gone):
            unfinished.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Protocol(BoundedHttp):
    """One connection; its client's certificate goes along with each request, for which ASGI has no place."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if (connection := transport.get_extra_info("ssl_object")) is not None:
            self.app_state = {**self.app_state, _COMMON_NAME: common_name(connection.getpeercert())}


def shown(request: Request) -> Shown:
    """Return what a caller shows of itself."""
    return Shown(
        authorization=request.headers.get("authorization", ""),
        common_name=request.scope.get("state", {}).get(_COMMON_NAME, ""),
        host=request.client.host if request.client else "",
    )


class RestServer(uvicorn.Server):
    """uvicorn on a socket of ours; tells when it listens, and leaves signals to the one who runs it."""

    def __init__(self, app: FastAPI, listener: socket.socket, tls: ServerTls | None, *, grace_s: float) -> None:
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=max(1, round(grace_s)),
        )
        config.load()
        config.ssl = tls.context if tls else None
        super().__init__(config)
        self._listener = listener
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signal handlers alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and set `listening`."""
        await super().startup(sockets)
        self.listening.set()

    async def run_until_stopped(self) -> None:
        """Serve until `should_exit` is set and the requests in flight are answered."""
        await self.serve(sockets=[self._listener])


def build_app(
    endpoint: InferEndpoint,
    data_plane: FoulDataPlane,
    repository: ModelRepositoryExtension,
    door: Door,
    *,
    swap: Callable[[], Awaitable[dict[str, str]]] | None = None,
) -> FastAPI:
    """Return the web application; `swap` answers `POST /admin/reload`, which otherwise does not exist."""

    async def guard(request: Request) -> None:
        path = request.url.path
        if not (_OPEN.fullmatch(path) or _INFER.fullmatch(path)):
            door.client(shown(request))

    async def guard_admin(request: Request) -> None:
        door.check_admin(shown(request))

    app = FastAPI(title="mvfoul", docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(guard)])
    app.add_api_route("/", data_plane.live, methods=["GET"])
    app.add_api_route("/metrics", metrics_handler, methods=["GET"])
    for path in ("/v2/models/{model_name}/infer", "/v2/models/{model_name}/versions/{model_version}/infer"):
        app.add_api_route(path, endpoint.infer, methods=["POST"], response_model=None)
    if swap is not None:
        app.add_api_route("/admin/reload", _reload(swap), methods=["POST"], dependencies=[Depends(guard_admin)])
    # After ours: the first route that fits a path answers.
    register_v2_endpoints(app, data_plane, repository)
    app.add_exception_handler(MVFoulError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_path)
    for kind in (ServerNotReady, ModelNotReady):
        app.add_exception_handler(kind, _not_ready)
    app.add_exception_handler(NotImplementedError, _not_implemented)
    app.add_exception_handler(Exception, _internal)
    return app


def _reload(swap: Callable[[], Awaitable[dict[str, str]]]) -> Callable[[], Awaitable[Response]]:
    async def reload() -> Response:
        try:
            return JSONResponse(await swap())
        except MVFoulError as error:
            return JSONResponse({"error": f"refused: {error}"}, status_code=409)

    return reload


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address, so that its port is known before anything starts.

    Raises:
        ConfigError: The address cannot be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port} for HTTP ({error}); choose another --http-port.") from error
    return listener


def _to_kserve(model_name: str, parsed: RestRequest) -> InferRequest:
    return InferRequest(
        model_name,
        [_input(tensor) for tensor in parsed.tensors],
        request_id=parsed.request_id,
        parameters=dict(parsed.parameters),
        request_outputs=[RequestedOutput(name, dict(parameters)) for name, parameters in parsed.outputs] or None,
    )


def _input(tensor: Tensor) -> InferInput:
    item = InferInput(tensor.name, list(tensor.shape), tensor.datatype)
    if isinstance(tensor.data, bytes):
        item._raw_data = tensor.data  # KServe has no other way to set it from bytes
    else:
        item.data = tensor.data
    return item


def _to_http(response: InferResponse) -> Response:
    content, json_length = response.to_rest()
    if json_length is None:
        return JSONResponse(content)
    headers = {JSON_LENGTH_HEADER: str(json_length)}
    return Response(content, headers=headers, media_type="application/octet-stream")


async def _refuse(_: Request, error: Exception) -> Response:
    response = JSONResponse({"error": message_of(error)}, status_code=status_of(error).http)
    if isinstance(error, UnauthenticatedError):
        response.headers["www-authenticate"] = "Bearer"
    return _named(response)


def _named(response: Response) -> Response:
    """Give an answer the id of its request, where it has one."""
    if request_id := TRANSPORT.get().request_id:
        response.headers[REQUEST_ID_HEADER] = as_header(request_id)
    return response


async def _refuse_path(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    message = f"{request.method} {request.url.path[:200]} is not served here; see GET /v2 and GET /v2/models."
    return JSONResponse({"error": message}, status_code=status)


async def _not_ready(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=503)


async def _not_implemented(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=501)


async def _internal(_: Request, error: Exception) -> Response:
    # The log gets the traceback from uvicorn; the client gets no details of the inside.
    log.debug("internal error: %s", error)
    return _named(JSONResponse({"error": "internal error; the server's log has it."}, status_code=500))
