"""Who asks: a token or a certificate makes a client known by name; without either it is its host's address.

The token file has one client per line, a name and its token, and limits of its own where it needs them:

    # name    token                               limits
    console   9f1c0de2a4b84f50a1d3c7e6b2f80917
    bulk      5d0e7a61c2f94b3886b1f4a0d93e7c25    max_in_flight=4 max_request_bytes=16777216

Tokens are kept as hashes, compared in constant time, and never logged. Health probes and /metrics stay open: neither
Kubernetes nor Prometheus brings a token, and neither sees a clip or a decision.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mvfoul.errors import ConfigError, RequestTooLargeError, UnauthenticatedError

ADMIN: Final = "admin"
"""The client that may reload, where clients are known."""
_MIN_TOKEN_CHARS: Final = 16
_LIMITS: Final = ("max_in_flight", "max_request_bytes")

log = logging.getLogger("mvfoul.serving")


@dataclass(frozen=True)
class Client:
    """Who asks, and what it may."""

    name: str
    """Of its token or certificate; "" where neither is known."""
    identity: str
    """What sessions and limits go by: "token:console", "certificate:console" or "127.0.0.1"."""
    max_in_flight: int = 0
    """Requests at a time; 0: as many as the server accepts."""
    max_request_bytes: int = 0
    """Of one request; 0: as many as the server accepts."""


@dataclass(frozen=True)
class Shown:
    """What a caller shows of itself."""

    authorization: str = ""
    """The header, or the metadata, of that name."""
    common_name: str = ""
    """Of a certificate that TLS has checked."""
    host: str = ""


@dataclass(frozen=True)
class _Entry:
    name: str
    digest: bytes
    limits: Mapping[str, int]


class Door:
    """Knows the clients. `reload` reads their tokens again."""

    def __init__(
        self,
        token_file: Path | None = None,
        *,
        certificates: bool = False,
        max_in_flight: int = 0,
        flag: str = "--token-file",
    ) -> None:
        """Read the tokens.

        Args:
            token_file: None: nobody needs a token.
            certificates: Whether everybody must show a certificate, also who has a token.
            max_in_flight: Of each client whose line in the file does not say otherwise.
            flag: That named the file, for messages.

        Raises:
            ConfigError: The file is not as it should be; the message names the line, never a token.
        """
        self._token_file = token_file
        self._certificates = certificates
        self._max_in_flight = max_in_flight
        self._flag = flag
        self._entries = _read_tokens(token_file, flag) if token_file else ()

    @property
    def closed(self) -> bool:
        """Whether a caller must prove who it is."""
        return self._token_file is not None or self._certificates

    def client(self, shown: Shown) -> Client:
        """Return who asks.

        Raises:
            UnauthenticatedError: Nobody known, where callers must be known.
        """
        if self._certificates and not shown.common_name:
            raise UnauthenticatedError(
                "the request comes without a client certificate that names it; connect with one."
            )
        if self._token_file is not None:
            return self._by_token(shown.authorization)
        if shown.common_name:
            identity = f"certificate:{shown.common_name}"
            return Client(shown.common_name, identity, max_in_flight=self._max_in_flight)
        return Client("", shown.host, max_in_flight=self._max_in_flight)

    def check_admin(self, shown: Shown) -> None:
        """Let pass who may reload: the client `admin`, or anybody where nobody is known.

        Raises:
            UnauthenticatedError: Somebody else.
        """
        if self.closed and self.client(shown).name != ADMIN:
            raise UnauthenticatedError(f"only the client {ADMIN!r} may do this; use its token or certificate.")

    def reload(self) -> None:
        """Read the token file again; if it is not as it should be, the known tokens stay."""
        if self._token_file is None:
            return
        try:
            self._entries = _read_tokens(self._token_file, self._flag)
        except ConfigError as error:
            log.warning("tokens not reloaded: %s", error)
        else:
            log.info("tokens reloaded: %s", ", ".join(entry.name for entry in self._entries))

    def _by_token(self, authorization: str) -> Client:
        scheme, _, token = authorization.partition(" ")
        if scheme.casefold() != "bearer" or not token.strip():
            raise UnauthenticatedError('the request has no token; send "authorization: Bearer TOKEN".')
        digest = _digest(token.strip())
        # All are compared, so that the time tells nothing.
        found = [entry for entry in self._entries if hmac.compare_digest(entry.digest, digest)]
        if not found:
            raise UnauthenticatedError("the request's token is not known here; ask for one, or check it.")
        (entry,) = found
        return Client(entry.name, f"token:{entry.name}", **{"max_in_flight": self._max_in_flight, **entry.limits})


def check_request_bytes(size: int, client: Client) -> None:
    """Refuse a request over its client's own limit.

    Raises:
        RequestTooLargeError: It is.
    """
    if client.max_request_bytes and size > client.max_request_bytes:
        raise RequestTooLargeError(
            f"the request has {size} bytes or more; {client.identity} may send {client.max_request_bytes}. Send "
            "smaller clips: only the seconds around the contact are used."
        )


def _read_tokens(path: Path, flag: str) -> tuple[_Entry, ...]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {flag} {path}: {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag} {path} is not plain ASCII; write names and tokens in ASCII.") from error
    entries = tuple(
        _entry(line.split(), f"{flag} {path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    )
    if not entries:
        raise ConfigError(f"{flag} {path} has no token; write lines of a name and a token.")
    for what, values in (("name", [e.name for e in entries]), ("token", [e.digest for e in entries])):
        if len(set(values)) < len(values):
            raise ConfigError(f"{flag} {path} has the same {what} twice; give each client its own.")
    return entries


def _entry(words: list[str], place: str) -> _Entry:
    if len(words) < 2:
        raise ConfigError(f"{place} is not a name and a token, with a space between.")
    name, token, *limits = words
    if len(token) < _MIN_TOKEN_CHARS:
        raise ConfigError(
            f"{place}: the token of {name!r} is shorter than {_MIN_TOKEN_CHARS}; use openssl rand -hex 16."
        )
    return _Entry(name, _digest(token), dict(_limit(word, place) for word in limits))


def _limit(word: str, place: str) -> tuple[str, int]:
    name, _, value = word.partition("=")
    if name not in _LIMITS or not value.isdigit() or not int(value):
        raise ConfigError(f"{place} has {word[:64]!r}; known limits: {', '.join(f'{known}=N' for known in _LIMITS)}.")
    return name, int(value)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
