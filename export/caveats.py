"""What a checkpoint asks of its users that no tensor of the graphs can say."""

from __future__ import annotations

from training.checkpoint import Checkpoint


def caveats_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return one sentence each; none for most checkpoints."""
    found = []
    if checkpoint.options.get("view_embedding"):
        found.append(
            "The network tells live views from replays: the first view of a request must be the live one, all others "
            "count as replays."
        )
    data = checkpoint.config.get("data", {})
    if isinstance(data, dict) and data.get("replay_aware"):
        found.append(
            "It was trained with --data.replay-aware: the slower a replay, the further apart its frames. "
            "The clip specification has the frames of a live view; a server knows no replay speed, so whoever cuts the "
            "clips must play replays at their real speed first."
        )
    return tuple(found)
