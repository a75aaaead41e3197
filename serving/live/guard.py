"""Who may talk to a console: programs and pages that know it by an allowed name, and no page of another origin.

A page anywhere can let its own name resolve to this machine (DNS rebinding). The browser then takes the console for
part of that page, and its `Origin` fits its `Host`: only the name itself tells. An address cannot be rebound.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; media-src 'self' blob:; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Guard:
    """Refuses requests for other names and from other origins, and adds the headers that keep a page to itself."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] = ()) -> None:
        """`hosts`: names by which the console may be called, besides localhost and any address."""
        self._app = app
        self._hosts = {"localhost", *(_plain(host) for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif (refusal := self._refusal(scope)) is None:
            await self._app(scope, receive, _guarded(send))
        elif scope["type"] == "http":
            await refusal(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._knows(host):
            cure = "If it is right, start the console with --allowed-host and this name."
            return JSONResponse({"detail": f"this console is not called {host!r}. {cure}"}, 421)
        asks_only = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        if not asks_only and origin and urlsplit(origin).netloc.lower() != host.lower():
            return JSONResponse({"detail": f"requests from pages of {origin} are refused"}, 403)
        return None

    def _knows(self, host: str) -> bool:
        try:
            name = _plain(urlsplit(f"//{host}").hostname or "")
        except ValueError:
            return False
        return name in self._hosts or _is_address(name)


def _plain(name: str) -> str:
    return name.strip("[]").lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _guarded(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_HEADERS)
        await send(message)

    return guarded
