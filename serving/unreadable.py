"""Messages that are no protobuf: refused as every bad request is, where the gRPC library would show a traceback.

measured: without this the status is UNKNOWN, the log gets a traceback of 8 lines, and no metric counts it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from mvfoul.errors import RequestError
from serving.observer import Observer

_COUNTED: Final = "/ModelInfer"

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class UnreadableInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Stands behind the one that turns exceptions into statuses."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of the method, with a parser that does not raise."""
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler

        async def behave(request: Any, context: grpc.aio.ServicerContext) -> Any:
            if not isinstance(request, DecodeError):
                return await handler.unary_unary(request, context)
            refusal = RequestError(f"the message is no {details.method.rpartition('/')[2]} request ({request}).")
            if not details.method.endswith(_COUNTED):
                raise refusal
            with self._observer.request("grpc", ()):
                raise refusal

        return grpc.unary_unary_rpc_method_handler(
            behave, _forgiving(handler.request_deserializer), handler.response_serializer
        )


def _forgiving(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parsed(message: bytes) -> Any:
        try:
            return parse(message)
        except DecodeError as error:
            return error

    return parsed
