"""The flags of `python -m serving.bulk`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mvfoul.command import check_flag
from mvfoul.layout import canonical_split
from serving.client.flags import ConnectionFlags


@dataclass(frozen=True, kw_only=True)
class BulkConfig(ConnectionFlags):
    """Classify every action of a split through a server and write SoccerNet's prediction file.

    What is answered stands in a journal beside the output until the output is written: after an interruption the same
    command goes on. The official filter is not applied: which actions count is the evaluator's business.

    Exit codes: 0 a prediction for every action, 1 finished but some actions have none, 2 bad usage, data or token, 3
    server not reachable or not in time, 4 server overloaded for too long, 5 any other failure of the server.
    """

    data: Path
    """Folder with the splits in it, in the official layout."""
    out: Path
    """The prediction file. Beside it, as <name>.report.json, what was skipped and why."""
    split: str = "test"
    """train, valid, test or challenge."""
    concurrency: int = 8
    """Requests in flight at a time."""
    timeout_s: float = 300.0
    """How long one action may take, repetitions included: a server that restarts meanwhile is waited for."""
    max_views: int = 5
    """Clips of an action that are sent, the first ones."""
    artifact: str = ""
    """The version of the artifact that must answer. Empty: the server's primary one, the same for all actions."""
    restart: bool = False
    """Forget what an interrupted run has answered."""

    def __post_init__(self) -> None:
        super().__post_init__()
        canonical_split(self.split)
        check_flag(self.concurrency >= 1, "--concurrency", self.concurrency, "Use 1 or more.")
        check_flag(self.timeout_s > 0, "--timeout-s", self.timeout_s, "Use more than 0.")
        check_flag(self.max_views >= 1, "--max-views", self.max_views, "Use 1 or more.")
        check_flag(self.out.name != "", "--out", str(self.out), "Name a file.")
