"""Who is at the console: names and tokens as the server has them (`serving.door`), asked for by the browser itself.

A browser shows its own form for name and token (HTTP Basic) and sends them with every request, that for the stream of
events and those for clips included; a program sends `authorization: Bearer TOKEN`. /healthz and /metrics stay open:
neither shows a clip or a decision.
"""

from __future__ import annotations

import base64
import binascii
import logging
from typing import Annotated, Final

from fastapi import Depends, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mvfoul.errors import UnauthenticatedError
from serving.access import Access, is_loopback, open_access
from serving.door import Door, Shown
from serving.live.config import LiveConfig

_OPEN: Final = ("/healthz", "/metrics")
_WHO: Final = "mvfoul.who"
_ASK: Final = {"WWW-Authenticate": 'Basic realm="VARS console", charset="UTF-8"'}

log = logging.getLogger("mvfoul.live")


def make_access(config: LiveConfig) -> Access:
    """Return what the flags ask for.

    Raises:
        ConfigError: A file is not as it should be.
    """
    access = open_access(config.access, host=config.host, flags="--access.")
    if not access.door.closed and not is_loopback(config.host):
        log.warning("whoever reaches %s can trigger decisions and see clips: use --access.token-file", config.host)
    return access


def who_is(door: Door, authorization: str) -> str:
    """Return the name of who shows this header; an empty string where nobody needs a token.

    Raises:
        UnauthenticatedError: Nobody known, or the token is another one's.
    """
    if not door.closed:
        return ""
    name, token = _credentials(authorization)
    known = door.client(Shown(authorization=f"Bearer {token}" if token else "")).name
    if name not in ("", known):
        raise UnauthenticatedError("this is another one's token; give the name that stands beside it.")
    return known


def _credentials(authorization: str) -> tuple[str, str]:
    """Return name and token; a bearer's name is empty."""
    scheme, _, rest = authorization.strip().partition(" ")
    if scheme.casefold() != "basic":
        return "", rest.strip() if scheme.casefold() == "bearer" else ""
    try:
        name, _, token = base64.b64decode(rest.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return name, token


class Login:
    """Lets nobody in who is not known, and notes who it is."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or ask for name and token."""
        if scope["type"] != "http" or scope["path"] in _OPEN:
            await self._app(scope, receive, send)
            return
        try:
            scope[_WHO] = who_is(self._door, Headers(scope=scope).get("authorization", ""))
        except UnauthenticatedError as error:
            await JSONResponse({"detail": str(error)}, 401, _ASK)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def signed_in(request: Request) -> str:
    """Return who sent a request; an empty string where nobody needs a token."""
    return str(request.scope.get(_WHO, ""))


Who = Annotated[str, Depends(signed_in)]
"""Of an endpoint's parameter: the name of who asks."""
