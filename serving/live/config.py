"""The flags of `python -m serving.live`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from mvfoul.command import check_flag
from mvfoul.errors import ConfigError
from serving.client.flags import ConnectionFlags
from serving.config import LogLevel

Names = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True, kw_only=True)
class ContinuousConfig:
    """Decisions without a trigger, at low priority: what stays likely to be an offence becomes a candidate incident."""

    every_s: float = 0.0
    """A decision every so many seconds. 0: off."""
    threshold: float = 0.7
    """A candidate begins where the smoothed probability of an offence is this high."""
    release: float = 0.5
    """The next candidate can begin only after it was lower than this."""
    smoothing: float = 0.5
    """Weight of the newest answer in the running mean; 1 is no smoothing."""

    def __post_init__(self) -> None:
        check_flag(self.every_s >= 0, "--continuous.every-s", self.every_s, "Use seconds, or 0 for off.")
        check_flag(0 < self.smoothing <= 1, "--continuous.smoothing", self.smoothing, "Use more than 0, at most 1.")
        check_flag(0 <= self.threshold <= 1, "--continuous.threshold", self.threshold, "Use 0 to 1.")
        check_flag(
            self.release <= self.threshold, "--continuous.release", self.release, "Use at most --continuous.threshold."
        )


@dataclass(frozen=True, kw_only=True)
class AccessConfig:
    """Who may use the console. Changed files are read within 10 seconds."""

    token_file: Path | None = None
    """Lines of a name and a token, as in the server's --token-file: the browser asks for both, a program sends the
    token as a bearer's, and the audit log says who it was. None: whoever reaches the console may use it."""
    tls_cert: Path | None = None
    """The console's certificate, PEM: the page is served over https, triggers over gRPC are encrypted too."""
    tls_key: Path | None = None
    """Its key, PEM."""

    def __post_init__(self) -> None:
        pair = (self.tls_cert is None) == (self.tls_key is None)
        check_flag(pair, "--access.tls-cert", self.tls_cert, "Give --access.tls-cert and --access.tls-key, or neither.")


@dataclass(frozen=True, kw_only=True)
class LiveConfig(ConnectionFlags):
    """Watch several cameras, and turn an incident into a decision; or review recorded actions (--review).

    The page is served at the address that the line READY on stdout names. The referee decides: what the page shows is
    no official decision.
    """

    camera: Names = ()
    """NAME=URL, once per camera; the first is the main one. RTSP, SRT, UDP, HLS, a file, or a test pattern."""
    camera_offset: Names = ()
    """NAME=SECONDS, added to a camera's clock."""
    review: Path | None = None
    """Review recorded actions instead: a folder in the official layout, or one with dropped clips."""
    artifact: Path | None = None
    """What the server serves: tells the review which frames were seen. Without it, the known presets are tried."""
    target: Annotated[str, tyro.conf.arg(name="server")] = "127.0.0.1:8081"
    """host:port of the server's gRPC."""
    timeout_s: float = 30.0
    """How long to wait for one answer."""
    host: str = "127.0.0.1"
    """Address to listen on. Without --access.token-file whoever reaches it can trigger decisions."""
    access: AccessConfig = field(default_factory=AccessConfig)
    """Tokens and TLS of the console itself; the flags without `access.` are those of the way to the server."""
    allowed_host: Names = ()
    """A name by which the console is called, once per name; localhost, --host and any address are known."""
    http_port: int = 8090
    """The page, its interface and /metrics. 0 takes a free port."""
    grpc_port: int | None = None
    """Triggers over gRPC too (`serving.live.grpc_trigger`). 0 takes a free port."""
    audit_dir: Path = Path("runs/live/audit")
    """Where decisions and clips are kept; one process at a time."""
    keep_days: float = 30.0
    """Clips older than this are removed; the log keeps their hashes for ever."""
    keep_gib: float = 20.0
    """The oldest clips over this are removed."""
    buffer_s: float = 20.0
    """Seconds of each camera that are held back."""
    buffer_mib: int = 128
    """Most memory for one camera's buffer."""
    after_s: float = 1.1
    """How far a cut reaches past the contact: the end of the artifact's window and a little more."""
    wait_s: float = 3.0
    """How long a trigger waits for a camera that is late. Then the camera is masked in that decision."""
    contact_offset_s: float = 1.2
    """The contact was so many seconds before a trigger that does not say (key F): about what it takes to see and press.
    With less than --after-s, the decision waits for pictures that are still to come."""
    timecodes: Path | None = None
    """A file of contacts to decide, one a line: UNIX seconds, ISO 8601, or +SECONDS after the start; then a note."""
    continuous: ContinuousConfig = field(default_factory=ContinuousConfig)
    """Decisions without a trigger."""
    operator: str = "operator"
    """Who operates, for the audit log, where nobody signs in."""
    log_level: LogLevel = "info"
    """Of the log on stderr."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag(bool(self.camera) != bool(self.review), "--camera", self.camera, "Pass cameras, or --review DIR.")
        check_flag(0 <= self.http_port <= 65535, "--http-port", self.http_port, "Use 1 to 65535, or 0 for a free one.")
        check_flag(
            0 <= (self.grpc_port or 0) <= 65535, "--grpc-port", self.grpc_port, "Use 1 to 65535, or 0 for a free one."
        )
        check_flag(self.timeout_s > 0, "--timeout-s", self.timeout_s, "Use more than 0.")
        check_flag(self.buffer_s >= 12, "--buffer-s", self.buffer_s, "Use 12 or more.")
        check_flag(self.buffer_mib >= 1, "--buffer-mib", self.buffer_mib, "Use 1 or more.")
        check_flag(
            0 < self.after_s < self.buffer_s - 3, "--after-s", self.after_s, "Use more than 0, less than the buffer."
        )
        check_flag(
            0 <= self.contact_offset_s <= self.buffer_s - 3,
            "--contact-offset-s",
            self.contact_offset_s,
            "Use 0 or more, 3 less than the buffer at most.",
        )
        check_flag(self.wait_s >= 0, "--wait-s", self.wait_s, "Use 0 or more.")
        check_flag(self.keep_days >= 0, "--keep-days", self.keep_days, "Use 0 or more.")
        check_flag(self.keep_gib >= 0, "--keep-gib", self.keep_gib, "Use 0 or more.")
        for name in self.allowed_host:
            check_flag(not set(name) & set("/:* "), "--allowed-host", name, "Use a name, without scheme and port.")
        self.cameras()

    def cameras(self) -> dict[str, tuple[str, float]]:
        """Return URL and clock offset in seconds of every camera by name, in the order of the flags.

        Raises:
            ConfigError: A flag is not NAME=VALUE, or two cameras have one name.
        """
        urls: dict[str, str] = {}
        for text in self.camera:
            name, url = _named("--camera", text)
            check_flag(name not in urls, "--camera", text, f"There is a camera {name!r} already; choose another name.")
            urls[name] = url
        offsets: dict[str, float] = {}
        for text in self.camera_offset:
            name, value = _named("--camera-offset", text)
            check_flag(name in urls, "--camera-offset", text, f"There is no camera {name!r}.")
            try:
                offsets[name] = float(value)
            except ValueError as error:
                raise ConfigError(f"--camera-offset is {text!r}; use NAME=SECONDS.") from error
        return {name: (url, offsets.get(name, 0.0)) for name, url in urls.items()}


def _named(flag: str, text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    check_flag(
        bool(found and value) and name.replace("-", "").replace("_", "").isalnum(), flag, text, "Use NAME=VALUE."
    )
    return name, value
