"""The flags of `python -m serving`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mvfoul.command import check_flag
from mvfoul.engines import EngineName
from mvfoul.prediction import DEFAULT_ABSTAIN_BELOW

LogLevel = Literal["debug", "info", "warning", "error"]

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve an exported artifact over gRPC and REST (Open Inference Protocol), with metrics at /metrics."""

    artifact: Path
    """The directory that `python -m export` wrote."""
    host: str = "127.0.0.1"
    """Address to listen on. Containers pass 0.0.0.0; clients are not authenticated."""
    http_port: int = 8080
    """REST, health and metrics. 0 takes a free port; the line READY on stdout says which."""
    grpc_port: int = 8081
    """gRPC. 0 takes a free port."""
    model_name: str = "mvfoul"
    """The name that requests ask for."""
    engine: EngineName = "onnxruntime"
    """What runs both graphs. openvino: faster on most CPUs; needs the extra of that name."""
    threads: int = 0
    """Threads of the encoder and the head. 0: one per CPU that this process may use."""
    decode_workers: int = 0
    """Clips decoded at the same time. 0: one per CPU that this process may use."""
    max_in_flight: int = 16
    """Requests accepted at the same time; one more is refused at once (RESOURCE_EXHAUSTED, HTTP 429)."""
    max_request_bytes: int = 64 * _MIB
    """A larger request is refused (RESOURCE_EXHAUSTED, HTTP 413). Base64 over REST adds a third to a clip."""
    abstain_below: float = DEFAULT_ABSTAIN_BELOW
    """A head whose best probability is lower says "abstain". 0 never does."""
    grace_s: float = 30.0
    """After SIGTERM, requests in flight get this long to finish."""
    log_level: LogLevel = "info"
    """Of the log on stderr. info: one line per request; never the contents of a clip."""

    def __post_init__(self) -> None:
        for flag, port in (("--http-port", self.http_port), ("--grpc-port", self.grpc_port)):
            check_flag(0 <= port <= 65535, flag, port, "Use 1 to 65535, or 0 for a free port.")
        check_flag(
            self.http_port != self.grpc_port or not self.http_port, "--grpc-port", self.grpc_port, "HTTP has it."
        )
        check_flag(bool(self.model_name) and "/" not in self.model_name, "--model-name", self.model_name, "Use a name.")
        check_flag(self.threads >= 0, "--threads", self.threads, "Use 1 or more, or 0 for one per CPU.")
        check_flag(
            self.decode_workers >= 0, "--decode-workers", self.decode_workers, "Use 1 or more, or 0 for one per CPU."
        )
        check_flag(self.max_in_flight >= 1, "--max-in-flight", self.max_in_flight, "Use 1 or more.")
        check_flag(
            self.max_request_bytes >= _MIB, "--max-request-bytes", self.max_request_bytes, f"Use {_MIB} or more."
        )
        # A size in gRPC is a signed 32-bit number.
        check_flag(
            self.max_request_bytes < 1 << 31, "--max-request-bytes", self.max_request_bytes, "Use less than 2 GiB."
        )
        check_flag(0 <= self.abstain_below <= 1, "--abstain-below", self.abstain_below, "Use 0 to 1.")
        check_flag(self.grace_s >= 0, "--grace-s", self.grace_s, "Use 0 or more.")
