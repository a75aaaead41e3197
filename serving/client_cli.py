"""`python -m serving.client clip_0.mp4 clip_1.mp4`: send the clips of one action, print the decision.

Exit codes: 0 decision (also when a head abstains), 2 bad usage or refused input, 3 server not reachable or not
available in time, 4 server overloaded, 5 any other failure of the server.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mvfoul.command import exit_code_of
from mvfoul.errors import ConfigError
from serving.client import Decision, FoulClient, HeadDecision


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """Send the clips of one action to a server and print its decision.

    Exit codes: 0 decision (also when a head abstains), 2 bad usage or refused input, 3 server not reachable or not
    available in time, 4 server overloaded, 5 any other failure of the server.
    """

    clips: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CLIP [CLIP ...]", help_behavior_hint="")
    ]
    """Video files of one action, one per view."""
    target: str = "127.0.0.1:8081"
    """host:port of the server's gRPC."""
    model_name: str = "mvfoul"
    """The model to ask."""
    timeout_s: float = 30.0
    """How long to wait for the answer."""
    json: bool = False
    """Print the decision as one JSON object."""

    def __post_init__(self) -> None:
        if not self.clips:
            raise ConfigError("no clip given; pass the video files of one action.")
        if self.timeout_s <= 0:
            raise ConfigError(f"--timeout-s is {self.timeout_s}; use more than 0.")


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_ask)


def _ask() -> int:
    config = tyro.cli(ClientConfig, prog="python -m serving.client", config=(tyro.conf.FlagCreatePairsOff,))
    clips = [_read(path) for path in config.clips]
    with FoulClient(config.target, model_name=config.model_name, timeout_s=config.timeout_s) as client:
        decision = client.classify(clips)
    text = as_json(decision) if config.json else as_text(decision, [path.name for path in config.clips])
    sys.stdout.write(text + "\n")
    return 0


def as_json(decision: Decision) -> str:
    """Return the server's decision with the client's latency as `client_ms`, in one line."""
    return json.dumps({**decision.document, "client_ms": round(decision.client_ms, 3)})


def as_text(decision: Decision, names: list[str]) -> str:
    """Return the decision for people; `names` are those of the views."""
    weights = "   ".join(f"{name} {weight:.2f}" for name, weight in zip(names, decision.view_weights, strict=True))
    stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in decision.server_ms.items() if stage != "total")
    latency = f"{decision.client_ms:.1f} ms, of which server {decision.server_ms['total']:.1f} ms ({stages})"
    rows = (
        ("action class", _head(decision.action)),
        ("offence severity", _head(decision.offence_severity)),
        ("view weights", weights),
        ("latency", latency),
        ("answered by", f"artifact {decision.artifact}, request {decision.request_id}"),
    )
    return "\n".join(f"{title:<17} {text}" for title, text in rows)


def _head(head: HeadDecision) -> str:
    first, second = (f"{candidate.label} {candidate.probability:.1%}" for candidate in head.top2)
    return f"abstains; at best {first}, then {second}" if head.abstain else f"{first}, then {second}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}. Check the path.") from error
