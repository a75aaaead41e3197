"""The flags of every command that asks a server: where it is, TLS, token."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mvfoul.command import check_flag
from mvfoul.errors import ConfigError
from serving.client.connection import Tls, read_file

TOKEN_VARIABLE: Final = "MVFOUL_TOKEN"  # noqa: S105  # a name


@dataclass(frozen=True, kw_only=True)
class ConnectionFlags:
    """How to reach the server."""

    target: str = "127.0.0.1:8081"
    """host:port of the server's gRPC."""
    model_name: str = "mvfoul"
    """The model to ask."""
    tls: bool = False
    """Encrypt, and check the server's certificate with the authorities that gRPC brings along."""
    tls_ca: Path | None = None
    """Certificates that sign the server's, PEM; switches TLS on."""
    tls_cert: Path | None = None
    """Our certificate, where the server asks for one (mTLS), PEM; switches TLS on."""
    tls_key: Path | None = None
    """Its key, PEM."""
    token_file: Path | None = None
    """A file with the token that the server knows us by. Without it, the environment's MVFOUL_TOKEN."""

    def __post_init__(self) -> None:
        pair = (self.tls_cert is None) == (self.tls_key is None)
        check_flag(pair, "--tls-cert", self.tls_cert, "Give --tls-cert and --tls-key, or neither.")

    def connection(self, *, timeout_s: float, retries: int) -> dict[str, Any]:
        """Return the arguments of both clients, without the target.

        Raises:
            ConfigError: The token's file cannot be read, or is empty.
        """
        encrypt = self.tls or self.tls_ca is not None or self.tls_cert is not None
        return {
            "model_name": self.model_name,
            "timeout_s": timeout_s,
            "retries": retries,
            "tls": Tls(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key) if encrypt else None,
            "token": self._token(),
        }

    def _token(self) -> str:
        if self.token_file is None:
            return os.environ.get(TOKEN_VARIABLE, "").strip()
        if not (token := read_file(self.token_file).decode("ascii", "replace").strip()):
            raise ConfigError(f"--token-file {self.token_file} is empty; write the token into it.")
        return token
