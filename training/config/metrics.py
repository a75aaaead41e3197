"""Figures of a run at work, for Prometheus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mvfoul.command import check_flag

_HERE: Final = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """Where Prometheus reads the figures of the run while it is at work."""

    port: int = 0
    """Serve /metrics on this port; the first process of the run does. 0: do not."""
    host: str = _HERE
    """Address to listen on. Containers pass 0.0.0.0; readers are not authenticated."""

    def __post_init__(self) -> None:
        check_flag(0 <= self.port <= 65535, "--metrics.port", self.port, "Use 1 to 65535, or 0 (off).")
        check_flag(
            bool(self.port) or self.host == _HERE,
            "--metrics.host",
            self.host,
            "It goes with --metrics.port, such as 9090.",
        )
