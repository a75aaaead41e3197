"""How the transformer reaches Triton."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serving.config import ServeConfig


@dataclass(frozen=True, kw_only=True)
class TritonSettings:
    """Where Triton is and what it is asked."""

    target: str
    """host:port of its gRPC."""
    name: str = "mvfoul"
    """The models are `<name>_encoder` and `<name>_head`."""
    retries: int = 4
    """How often a call is repeated that found nobody (UNAVAILABLE); the pauses double from 50 ms."""
    explicit: bool = False
    """It loads no model that nobody asks for: --model-control-mode=explicit."""
    shared_memory: bool = False
    """Views go through /dev/shm: Triton is on this host and in its IPC namespace."""
    slots: int = 16
    """Regions of shared memory, one per call in flight."""
    tls_ca: Path | None = None
    """Certificates that sign Triton's; makes the connection TLS."""
    tls_cert: Path | None = None
    tls_key: Path | None = None


def triton_settings(config: ServeConfig) -> TritonSettings:
    """Return Triton's part of the flags, which name a Triton."""
    assert config.triton is not None  # noqa: S101  # the caller's choice
    return TritonSettings(
        target=config.triton,
        name=config.triton_name,
        retries=config.triton_retries,
        explicit=config.triton_explicit,
        shared_memory=config.triton_shared_memory,
        slots=config.max_in_flight,
        tls_ca=config.triton_tls_ca,
        tls_cert=config.triton_tls_cert,
        tls_key=config.triton_tls_key,
    )
