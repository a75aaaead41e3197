"""The flags of `python -m serving`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mvfoul.command import check_flag
from mvfoul.engines import EngineName
from mvfoul.prediction import DEFAULT_ABSTAIN_BELOW

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve an exported artifact over gRPC and REST (Open Inference Protocol), with metrics at /metrics."""

    artifact: Path
    """The directory that `python -m export` wrote."""
    host: str = "127.0.0.1"
    """Address to listen on. Containers pass 0.0.0.0."""
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
    """Requests accepted at the same time; one more is refused at once (RESOURCE_EXHAUSTED, HTTP 429). A quarter of the
    places is for live requests only."""
    max_in_flight_per_client: int = 0
    """Of them, those of one client: a token, a certificate or a host. 0: as many as there may be."""
    max_request_s: float = 60.0
    """A request without an answer by then gets DEADLINE_EXCEEDED (HTTP 504), also if its own deadline is later: a
    backend that hangs must not keep the places of all."""
    max_request_bytes: int = 64 * _MIB
    """A larger request is refused (RESOURCE_EXHAUSTED, HTTP 413). Base64 over REST adds a third to a clip."""
    token_file: Path | None = None
    """Lines of a client's name and its token, then max_in_flight=N or max_request_bytes=N where it has limits of its
    own. Requests then need "authorization: Bearer TOKEN"; health probes and /metrics do not. Read anew when changed."""
    tls_cert: Path | None = None
    """Our certificate, PEM: both protocols are encrypted. Read anew when changed."""
    tls_key: Path | None = None
    """Its key, PEM."""
    tls_client_ca: Path | None = None
    """Certificates that sign those of the clients, PEM: who has none is refused (mTLS); over REST health probes and
    /metrics are not."""
    max_decode_s: float = 10.0
    """CPU seconds that decoding one clip may take; a clip that takes more is refused."""
    max_clip_frames: int = 2000
    """A clip with more frames up to a second after the window is refused."""
    max_frame_pixels: int = 4096 * 2304
    """A clip of larger pictures is refused."""
    max_sessions: int = 1024
    """Actions whose views arrive one by one (parameter action_id), all clients together; each takes some kilobytes."""
    max_sessions_per_client: int = 64
    """One more ends the client's oldest."""
    session_ttl_s: float = 120.0
    """A session ends this long after its last request."""
    # Under the other name KServe tells a transformer of its predictor.
    triton: Annotated[str | None, tyro.conf.arg(aliases=["--predictor-host"])] = None
    """host:port of a Triton server's gRPC: it computes, this process decodes (transformer). --artifact must be in its
    repository, see python -m serving.repository."""
    triton_name: str = "mvfoul"
    """Triton's models are <name>_encoder and <name>_head."""
    triton_retries: int = 4
    """How often a call is repeated that did not reach Triton, with growing pauses, within the request's deadline."""
    triton_shared_memory: bool = False
    """Give views to Triton through shared memory. It must run on this host and share /dev/shm."""
    triton_explicit: bool = False
    """Triton runs with --model-control-mode=explicit: ask it to load the models at start and at each swap."""
    triton_tls_ca: Path | None = None
    """Certificates that sign Triton's; switches TLS on."""
    triton_tls_cert: Path | None = None
    """Our certificate, where Triton asks for one (mTLS)."""
    triton_tls_key: Path | None = None
    """Its key."""
    canary: Path | None = None
    """Another artifact that answers a share of the requests: all of one action_id get the same artifact, a request id
    that comes again too, others are spread at random."""
    canary_share: float = 0.05
    """Of all requests, 0 to 1."""
    shadow: Path | None = None
    """Another artifact that gets a copy of the requests after their answer; only metrics tell what it says."""
    admin: bool = False
    """Answer POST /admin/reload, which reads the artifact directories again and swaps without a failed request. SIGHUP
    always does."""
    swap_timeout_s: float = 60.0
    """How long a swap waits until Triton has loaded the artifact."""
    self_test_interval_s: float = 10.0
    """How often golden.npz is computed to know whether the server is ready, while no request proves it."""
    self_test_timeout_s: float = 20.0
    """A self-test that takes longer has failed."""
    abstain_below: float = DEFAULT_ABSTAIN_BELOW
    """A head whose best probability is lower says "abstain". 0 never does."""
    drift_window: int = 500
    """The last answers that mvfoul_drift_psi compares with the evaluation in the manifest."""
    drift_min_answers: int = 200
    """With fewer answers the drift is not told: chance alone would look like it."""
    trace_endpoint: str | None = None
    """http://host:4318 of an OpenTelemetry collector (OTLP over HTTP): a span per request and per stage; Triton's join
    the same trace. Needs the extra tracing."""
    trace_ratio: float = 1.0
    """Share of the requests traced whose client has not decided it (header traceparent), 0 to 1."""
    grace_s: float = 30.0
    """After SIGTERM, requests in flight get this long to finish."""
    log_level: LogLevel = "info"
    """Of the log on stderr. info: one line per request; never the contents of a clip."""
    log_format: LogFormat = "text"
    """json: one object per line, with request id, client, labels and milliseconds by stage in fields of their own."""

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
        self._check_access()
        self._check_limits()
        self._check_observation()
        self._check_artifacts()
        check_flag(0 <= self.abstain_below <= 1, "--abstain-below", self.abstain_below, "Use 0 to 1.")
        check_flag(self.grace_s >= 0, "--grace-s", self.grace_s, "Use 0 or more.")

    def _check_access(self) -> None:
        check_flag(
            self.max_in_flight_per_client >= 0,
            "--max-in-flight-per-client",
            self.max_in_flight_per_client,
            "Use 1 or more, or 0 for no limit of its own.",
        )
        pair = (self.tls_cert is None) == (self.tls_key is None)
        check_flag(pair, "--tls-cert", self.tls_cert, "Give --tls-cert and --tls-key, or neither.")
        accepted = self.tls_client_ca is None or self.tls_cert is not None
        check_flag(accepted, "--tls-client-ca", self.tls_client_ca, "Give --tls-cert and --tls-key too.")

    def _check_limits(self) -> None:
        for flag, value in (
            ("--max-request-s", self.max_request_s),
            ("--max-decode-s", self.max_decode_s),
            ("--max-clip-frames", self.max_clip_frames),
            ("--max-frame-pixels", self.max_frame_pixels),
            ("--max-sessions", self.max_sessions),
            ("--max-sessions-per-client", self.max_sessions_per_client),
            ("--session-ttl-s", self.session_ttl_s),
            ("--swap-timeout-s", self.swap_timeout_s),
            ("--self-test-interval-s", self.self_test_interval_s),
            ("--self-test-timeout-s", self.self_test_timeout_s),
        ):
            check_flag(value > 0, flag, value, "Use more than 0.")

    def _check_observation(self) -> None:
        enough = 1 <= self.drift_min_answers <= self.drift_window
        check_flag(enough, "--drift-min-answers", self.drift_min_answers, "Use 1 up to --drift-window.")
        check_flag(0 <= self.trace_ratio <= 1, "--trace-ratio", self.trace_ratio, "Use 0 to 1.")
        accepted = self.trace_endpoint is None or self.trace_endpoint.startswith(("http://", "https://"))
        check_flag(accepted, "--trace-endpoint", self.trace_endpoint, "Use http://host:4318.")

    def _check_artifacts(self) -> None:
        check_flag(0 <= self.canary_share <= 1, "--canary-share", self.canary_share, "Use 0 to 1.")
        check_flag(self.triton_retries >= 0, "--triton-retries", self.triton_retries, "Use 0 or more.")
        if self.triton is not None:
            host, _, port = self.triton.rpartition(":")
            accepted = bool(host) and port.isdigit() and 0 < int(port) < 1 << 16
            check_flag(accepted, "--triton", self.triton, "Use host:port of its gRPC, such as 127.0.0.1:8001.")
        for flag, value in (
            ("--triton-shared-memory", self.triton_shared_memory),
            ("--triton-explicit", self.triton_explicit),
            ("--triton-tls-ca", self.triton_tls_ca),
        ):
            check_flag(not value or self.triton is not None, flag, value, "It goes with --triton host:port.")
        pair = (self.triton_tls_cert, self.triton_tls_key)
        check_flag(
            (pair[0] is None) == (pair[1] is None),
            "--triton-tls-cert",
            self.triton_tls_cert,
            "Give --triton-tls-key too.",
        )
        check_flag(
            self.triton_tls_cert is None or self.triton_tls_ca is not None,
            "--triton-tls-cert",
            self.triton_tls_cert,
            "Give --triton-tls-ca too.",
        )
