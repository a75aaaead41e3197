"""`python -m serving.client clip_0.mp4 clip_1.mp4`: send the clips of one action, print the decision.

Exit codes: 0 decision (also when a head abstains), 2 bad usage, refused input or refused token, 3 server not reachable
or not available in time, 4 server overloaded, 5 any other failure of the server.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mvfoul.command import check_flag, exit_code_of
from mvfoul.errors import ConfigError
from serving.client.clients import FoulClient
from serving.client.connection import read_file
from serving.client.decision import Decision, HeadDecision
from serving.client.flags import ConnectionFlags
from serving.client.question import Priority


@dataclass(frozen=True, kw_only=True)
class ClientConfig(ConnectionFlags):
    """Send the clips of one action to a server and print its decision.

    Exit codes: 0 decision (also when a head abstains), 2 bad usage, refused input or refused token, 3 server not
    reachable or not available in time, 4 server overloaded, 5 any other failure of the server.
    """

    clips: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[CLIP ...]", help_behavior_hint="")]
    """Video files of one action, one per view. With --action-id those that the server does not have yet."""
    timeout_s: float = 30.0
    """How long to wait for the answer, repetitions included."""
    retries: int = 0
    """How often to ask again a server that is overloaded or not there, with growing pauses.
    With --drop-views only one that is overloaded: any other may have dropped them already."""
    request_id: str = ""
    """For the server's log; one is made if it is empty."""
    action_id: str = ""
    """The action that further views will be sent to; the answer is over all its views so far."""
    drop_views: tuple[int, ...] = ()
    """Views that the action forgets first, by their number in it."""
    priority: Priority = "live"
    """A live request overtakes bulk ones that have not begun."""
    json: bool = False
    """Print the decision as one JSON object."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.clips and not self.action_id:
            raise ConfigError("no clip given; pass the video files of one action.")
        check_flag(self.timeout_s > 0, "--timeout-s", self.timeout_s, "Use more than 0.")
        check_flag(self.retries >= 0, "--retries", self.retries, "Use 0 or more.")


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_ask)


def _ask() -> int:
    config = tyro.cli(ClientConfig, prog="python -m serving.client", config=(tyro.conf.FlagCreatePairsOff,))
    clips = [read_file(path) for path in config.clips]
    connection = config.connection(timeout_s=config.timeout_s, retries=config.retries)
    with FoulClient(config.target, **connection) as client:
        decision = client.classify(
            clips,
            request_id=config.request_id,
            action_id=config.action_id,
            drop_views=config.drop_views,
            priority=config.priority,
        )
    text = as_json(decision) if config.json else as_text(decision, [path.name for path in config.clips])
    sys.stdout.write(text + "\n")
    return 0


def as_json(decision: Decision) -> str:
    """Return the server's decision with the client's latency as `client_ms`, in one line."""
    return json.dumps({**decision.document, "client_ms": round(decision.client_ms, 3)})


def as_text(decision: Decision, names: list[str]) -> str:
    """Return the decision for people; `names` are those of the views that were sent."""
    count = len(decision.view_weights)
    # In a session, views from earlier requests stand first; of a view that was sent twice there is only one.
    shown = [*_numbered(count - len(names)), *names] if len(names) <= count else _numbered(count)
    weights = "   ".join(f"{name} {weight:.2f}" for name, weight in zip(shown, decision.view_weights, strict=True))
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


def _numbered(count: int) -> list[str]:
    return [f"view {number}" for number in range(count)]


def _head(head: HeadDecision) -> str:
    first, second = (f"{candidate.label} {candidate.probability:.1%}" for candidate in head.top2)
    return f"abstains; at best {first}, then {second}" if head.abstain else f"{first}, then {second}"
