"""Who may connect and who may ask: TLS and the door, from the flags."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from dataclasses import dataclass
from pathlib import Path

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


def make_access(config: ServeConfig) -> Access:
    """Return what the flags ask for.

    Raises:
        ConfigError: A file is not as it should be.
    """
    tls = None
    if config.tls_cert is not None and config.tls_key is not None:
        tls = ServerTls(TlsFiles(cert=config.tls_cert, key=config.tls_key, client_ca=config.tls_client_ca))
    if config.token_file is not None and tls is None and not is_loopback(config.host):
        log.warning("tokens travel unencrypted: --token-file without --tls-cert on %s", config.host)
    door = Door(
        config.token_file,
        certificates=config.tls_client_ca is not None,
        max_in_flight=config.max_in_flight_per_client,
    )
    flags = (config.token_file, config.tls_cert, config.tls_key, config.tls_client_ca)
    return Access(door, tls, tuple(path for path in flags if path is not None))


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
