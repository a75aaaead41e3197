"""Where a client's server is and how it is reached: address, TLS, token. The same for both clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mvfoul.errors import ConfigError

_MAX_MESSAGE_BYTES: Final = (1 << 31) - 1
_MAX_TIMEOUT_S: Final = 24 * 3600.0
"""The server accepts no longer one."""


@dataclass(frozen=True, kw_only=True)
class Tls:
    """How the connection is encrypted, and who proves what. All files are PEM."""

    ca: Path | None = None
    """Certificates that sign the server's; None: those that gRPC brings along."""
    cert: Path | None = None
    """Our certificate, where the server asks for one (mTLS)."""
    key: Path | None = None
    """Its key."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("a client's certificate and its key go together; give both or neither.")


@dataclass(frozen=True, kw_only=True)
class Connection:
    """All that a client needs to know of its server."""

    target: str
    """host:port of its gRPC."""
    model_name: str
    version: str = ""
    """Non-empty: this version of the artifact must answer."""
    timeout_s: float
    """For one answer, repetitions included."""
    retries: int = 0
    tls: Tls | None = None
    """None: the connection is not encrypted."""
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        check_timeout(self.timeout_s)
        if self.retries < 0:
            raise ConfigError(f"retries is {self.retries}; use 0 or more.")
        if not self.token.isascii() or not self.token.isprintable() or " " in self.token:
            raise ConfigError("the token has characters other than printable ASCII without spaces; check its file.")

    @property
    def headers(self) -> dict[str, str]:
        """What goes along with each call."""
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    def channel(self) -> dict[str, Any]:
        """Return the arguments of `tritonclient`'s clients, the synchronous and the other.

        Raises:
            ConfigError: A file of the TLS cannot be read.
        """
        arguments = [
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            # A server that comes back is found within a second, not within the default two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        return {"url": self.target, "creds": self._credentials(), "channel_args": arguments}

    def _credentials(self) -> Any:
        if self.tls is None:
            return None
        import grpc

        return grpc.ssl_channel_credentials(
            *(read_file(path) if path else None for path in (self.tls.ca, self.tls.key, self.tls.cert))
        )


def check_timeout(timeout_s: float) -> None:
    """Refuse a time to wait that makes no sense.

    Raises:
        ConfigError: It names the value.
    """
    if not 0 < timeout_s <= _MAX_TIMEOUT_S:
        raise ConfigError(f"timeout_s is {timeout_s}; use seconds, more than 0 and at most {_MAX_TIMEOUT_S:g}.")


def read_file(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}. Check the path.") from error
