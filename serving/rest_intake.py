"""How requests come in over REST: bounded in number, in bytes, and in the time they may take to arrive.

uvicorn waits for ever for the end of a request's head and keeps what has come of it, whatever its size.
"""

from __future__ import annotations

import asyncio
from typing import Final

from fastapi import Request
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mvfoul.errors import OverloadedError, RequestError, RequestTooLargeError

MAX_HEAD_BYTES: Final = 64 << 10
MAX_CONNECTIONS: Final = 512
"""One more is closed at once. Each costs a file descriptor, of which a process often has 1,024."""
HEAD_S: Final = 10.0
"""From the first byte of a request, or the opening of the connection, to the end of its head."""
BODY_S: Final = 60.0
"""assumption: --max-request-bytes of 64 MiB over 10 Mbit/s; who is slower cannot decide a match."""


class BoundedHttp(HttpToolsProtocol):
    """A connection that is closed when the head of a request is too long or too slow."""

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, if there is room."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.close()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and give up on a head without end."""
        super().data_received(data)
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.close()

    def on_message_begin(self) -> None:
        """Expect a head, also of the second request of a connection."""
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        """Have the head."""
        self._stop_waiting()
        super().on_headers_complete()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_bytes = 0
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class Uploads:
    """Reads the bodies of requests, a few at a time: they lie in memory before anything can be said about them."""

    def __init__(self, *, max_bytes: int, at_most: int) -> None:
        self._max_bytes = max_bytes
        self._at_most = at_most
        self._reading = 0

    async def read(self, request: Request) -> bytes:
        """Return a request's body.

        Raises:
            RequestTooLargeError: It is larger than the limit.
            OverloadedError: So many others are being read.
            RequestError: It does not arrive.
        """
        announced = request.headers.get("content-length", "")
        self._check_size(int(announced) if announced.isdigit() and len(announced) < 20 else 0)
        if self._reading >= self._at_most:
            raise OverloadedError(f"{self._reading} requests are being received. Send the request later, with backoff.")
        self._reading += 1
        try:
            async with asyncio.timeout(BODY_S):
                return await self._collect(request)
        except TimeoutError as error:
            raise RequestError(f"the body did not arrive within {BODY_S:.0f} s; send smaller clips.") from error
        finally:
            self._reading -= 1

    async def _collect(self, request: Request) -> bytes:
        chunks: list[bytes] = []
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            self._check_size(size)
            chunks.append(chunk)
        return b"".join(chunks)

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise RequestTooLargeError(
                f"the request has {size} bytes or more; this server takes {self._max_bytes}. Send smaller "
                "clips (only the seconds around the contact are used), or gRPC, which needs no base64."
            )
