"""TLS of both protocols from the same files. New connections use what the files hold after `reload`.

Over gRPC a client without a certificate gets no connection where certificates are asked for. Over REST it gets one, for
the health probes and /metrics, and `serving.door` refuses it everything else: a kubelet has no certificate to show.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from mvfoul.errors import ConfigError

log = logging.getLogger("mvfoul.serving")


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """PEM files."""

    cert: Path
    """The server's certificate, with what lies between it and the authority."""
    key: Path
    client_ca: Path | None = None
    """Certificates that sign those of the clients; None: clients show none."""
    flags: str = "--tls-"
    """How the flags that named them begin, for messages."""


class ServerTls:
    """What both servers listen with."""

    def __init__(self, files: TlsFiles) -> None:
        """Read the files.

        Raises:
            ConfigError: One cannot be read, or the key is another certificate's.
        """
        self._files = files
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._load(self.context)
        if files.client_ca:
            self.context.verify_mode = ssl.CERT_OPTIONAL
        self._grpc = self._grpc_configuration()

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Return what gRPC listens with."""
        return grpc.dynamic_ssl_server_credentials(
            self._grpc, lambda: self._grpc, require_client_authentication=self._files.client_ca is not None
        )

    def reload(self) -> None:
        """Read the files again; if they are not as they should be, what was read before stays.

        A client authority that is no longer in its file stays trusted over REST until the next start.
        """
        try:
            # Into another context first: a bad pair must not spoil the one in use.
            self._load(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
            self._load(self.context)
            self._grpc = self._grpc_configuration()
        except (ConfigError, OSError) as error:
            log.warning("certificates not reloaded: %s", error)
        else:
            log.info("certificates reloaded")

    def _load(self, context: ssl.SSLContext) -> None:
        files = self._files
        try:
            context.load_cert_chain(files.cert, files.key)
            if files.client_ca:
                context.load_verify_locations(files.client_ca)
        except (OSError, ssl.SSLError) as error:
            authority = f", {files.flags}client-ca {files.client_ca}" if files.client_ca else ""
            raise ConfigError(
                f"{files.flags}cert {files.cert}, {files.flags}key {files.key}{authority} do not work ({error}). "
                "They must be PEM files, and the key that of the certificate."
            ) from error

    def _grpc_configuration(self) -> Any:
        files = self._files
        pair = (files.key.read_bytes(), files.cert.read_bytes())
        authority = files.client_ca.read_bytes() if files.client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=authority)


def common_name(certificate: dict[str, Any] | None) -> str:
    """Return the common name of a certificate as `ssl.SSLSocket.getpeercert` gives it; "" where there is none."""
    subject = (certificate or {}).get("subject", ())
    return next((value for part in subject for key, value in part if key == "commonName"), "")
