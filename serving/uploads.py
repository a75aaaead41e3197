"""Messages on their way in: over gRPC the library reads all of them into memory, and waits for the slowest for ever.

A handler of a stream reads its own messages, and on the wire a stream of one message is a single request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc

from mvfoul.errors import DeadlineError, MVFoulError, RequestError
from serving.admission import Admission
from serving.call import TRANSPORT, Transport
from serving.observer import Observer
from serving.request_id import REQUEST_ID_HEADER, as_header, choose_request_id

UPLOAD_S: Final = 60.0
"""For all of a request's message or body: who sends it byte by byte takes nobody's place for longer."""
_LARGE: Final = "/ModelInfer"

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class UploadInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Reads at most so many inference requests at a time; one more is refused before its message is read."""

    def __init__(self, observer: Observer, uploads: Admission, *, timeout_s: float = UPLOAD_S) -> None:
        self._observer = observer
        self._uploads = uploads
        self._timeout_s = timeout_s

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of the method, with this one's reading."""
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None or not details.method.endswith(_LARGE):
            return handler

        async def behave(_: Any, context: grpc.aio.ServicerContext) -> Any:
            try:
                with self._uploads.admitted(""):
                    message = await self._read(context)
            except MVFoulError:
                metadata = context.invocation_metadata() or ()
                request_id = choose_request_id("", dict(metadata).get(REQUEST_ID_HEADER))
                context.set_trailing_metadata(((REQUEST_ID_HEADER, as_header(request_id)),))
                TRANSPORT.set(Transport(request_id=request_id))
                with self._observer.request("grpc", metadata):
                    raise
            return await handler.unary_unary(message, context)

        return grpc.stream_unary_rpc_method_handler(behave, handler.request_deserializer, handler.response_serializer)

    async def _read(self, context: grpc.aio.ServicerContext) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                # Not from the iterator, which keeps what it gave until the garbage collector comes: measured, 40 kB
                # a request.
                message = await context.read()
        except TimeoutError as error:
            raise DeadlineError(
                f"the request's message did not arrive within {self._timeout_s:g} s; send it faster."
            ) from error
        if message is grpc.aio.EOF:
            raise RequestError("the request has no message.")
        return message
