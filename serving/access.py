"""Who may connect and who may ask: TLS and the door, from the flags."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serving.config import ServeConfig
from serving.door import Door
from serving.tls import ServerTls, TlsFiles

log = logging.getLogger("mvfoul.serving")


@dataclass(frozen=True)
class Access:
    """One per server."""

    door: Door
    tls: ServerTls | None = None
    """None: connections are not encrypted."""
    files: tuple[Path, ...] = ()
    """Where both come from."""

    async def follow(self, *, every_s: float = 10.0) -> None:
        """Reload when a file changes, for ever: who renews certificates and Secrets sends no signal."""
        seen = [_state(path) for path in self.files]
        while self.files:
            await asyncio.sleep(every_s)
            if (now := [_state(path) for path in self.files]) != seen:
                seen = now
                self.reload()

    def reload(self) -> None:
        """Read tokens and certificates again; what is not as it should be stays as it was."""
        self.door.reload()
        if self.tls is not None:
            self.tls.reload()


class AccessFiles(Protocol):
    """The flags of whatever listens: the server's, the console's."""

    @property
    def token_file(self) -> Path | None:
        """See `serving.door`."""

    @property
    def tls_cert(self) -> Path | None:
        """The certificate, PEM."""

    @property
    def tls_key(self) -> Path | None:
        """Its key, PEM."""


def make_access(config: ServeConfig) -> Access:
    """Return what the flags ask for.

    Raises:
        ConfigError: A file is not as it should be.
    """
    return open_access(
        config, host=config.host, client_ca=config.tls_client_ca, max_in_flight=config.max_in_flight_per_client
    )


def open_access(
    files: AccessFiles, *, host: str, client_ca: Path | None = None, max_in_flight: int = 0, flags: str = "--"
) -> Access:
    """Read the files.

    Args:
        files: Of tokens and TLS.
        host: Where the server listens.
        client_ca: Certificates that sign those of the clients; None: they show none.
        max_in_flight: See `Door`.
        flags: How the flags that named the files begin, for messages.

    Raises:
        ConfigError: A file is not as it should be.
    """
    tls = None
    if files.tls_cert is not None and files.tls_key is not None:
        tls = ServerTls(TlsFiles(cert=files.tls_cert, key=files.tls_key, client_ca=client_ca, flags=f"{flags}tls-"))
    if files.token_file is not None and tls is None and not is_loopback(host):
        log.warning("tokens travel unencrypted: %stoken-file without %stls-cert on %s", flags, flags, host)
    door = Door(
        files.token_file,
        certificates=client_ca is not None,
        max_in_flight=max_in_flight,
        flag=f"{flags}token-file",
    )
    named = (files.token_file, files.tls_cert, files.tls_key, client_ca)
    return Access(door, tls, tuple(path for path in named if path is not None))


def _state(path: Path) -> tuple[int, int, int]:
    """Return what tells a changed file from the same one; a Secret's files are exchanged as links."""
    try:
        state = path.stat()
    except OSError:  # it is being exchanged
        return 0, 0, 0
    return state.st_ino, state.st_mtime_ns, state.st_size


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
