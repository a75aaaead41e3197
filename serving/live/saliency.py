"""What moved the decision: hide one region of a few frames at a time, ask again, and see how the probability falls.

The other views stay as they are, so this is about the decision on the whole action. Every question goes at bulk
priority: decisions of others come first.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mvfoul.clip import ClipSpec
from mvfoul.errors import RequestError
from mvfoul.labels import Head
from serving.client import Decision, FoulClient

GRID: Final = 4
SPANS: Final = 4
HEADS: Final[tuple[Head, ...]] = ("action", "offence_severity")

Ask = Callable[[NDArray[np.uint8]], Decision]
"""One view `[3, T, H, W]`, the others as they are, to the decision on the action."""


class CancelledError(Exception):
    """The operator no longer wants it."""


@dataclass(frozen=True)
class Saliency:
    """How much the decided label's probability falls where a region is hidden."""

    label: dict[str, str]
    base: dict[str, float]
    """The label's probability with nothing hidden."""
    fall: dict[str, NDArray[np.float32]]
    """By head `[S, G, G]`: span of frames, row, column. Negative where hiding raises it."""
    spans: tuple[tuple[int, int], ...]
    """First and last frame of each span at 25 fps, of the source clip."""

    def to_json(self) -> dict[str, Any]:
        """Return what the page gets."""
        fall = {head: np.round(values, 5).tolist() for head, values in self.fall.items()}
        return {"label": self.label, "base": self.base, "fall": fall, "spans": [list(span) for span in self.spans]}


class Probe:
    """Asks about one view after another in the place of one, in a session that holds the others: they are sent once."""

    def __init__(self, client: FoulClient, others: NDArray[np.uint8]) -> None:
        """`others`: uint8 `[V - 1, 3, T, H, W]`."""
        self._client, self._others = client, others
        self._action_id = ""

    def ask(self, view: NDArray[np.uint8]) -> Decision:
        """Return the decision on the others and this view, uint8 `[3, T, H, W]`.

        Raises:
            ServiceError: As `FoulClient.classify_views`.
        """
        if self._action_id:
            try:
                decision = self._send(view[None], drop_views=[len(self._others)])
            except RequestError:  # the session is over
                self._action_id = ""
            else:
                if len(decision.view_weights) == len(self._others) + 1:
                    return decision
        self._action_id = uuid.uuid4().hex
        return self._send(np.concatenate([self._others, view[None]]), drop_views=[])

    def _send(self, views: NDArray[np.uint8], drop_views: Sequence[int]) -> Decision:
        return self._client.classify_views(views, action_id=self._action_id, drop_views=drop_views, priority="bulk")


def occlusion(ask: Ask, view: NDArray[np.uint8], spec: ClipSpec, *, progress: Callable[[int, int], None]) -> Saliency:
    """Hide each region of each span of one view, and ask.

    Args:
        ask: The server.
        view: uint8 `[3, T, H, W]`, in which regions are hidden.
        spec: How it was decoded.
        progress: Told how many of how many questions are answered; may raise `CancelledError`.
    """
    whole = ask(view)
    labels = {head: int(np.argmax(whole.probabilities[head])) for head in HEADS}
    frames = np.array_split(np.arange(spec.num_frames), min(SPANS, spec.num_frames))
    fall = {str(head): np.zeros((len(frames), GRID, GRID), np.float32) for head in HEADS}
    edges = np.linspace(0, spec.size_px, GRID + 1).astype(int)
    ground = view.mean(axis=(1, 2, 3)).astype(np.uint8)
    places = [(s, row, column) for s in range(len(frames)) for row in range(GRID) for column in range(GRID)]
    for done, (s, row, column) in enumerate(places):
        progress(done, len(places))
        hidden = view.copy()
        rows, columns = slice(edges[row], edges[row + 1]), slice(edges[column], edges[column + 1])
        hidden[:, frames[s][0] : frames[s][-1] + 1, rows, columns] = ground[:, None, None, None]
        answer = ask(hidden)
        for head, label in labels.items():
            fall[head][s, row, column] = whole.probabilities[head][label] - answer.probabilities[head][label]
    progress(len(places), len(places))
    return Saliency(
        label={str(head): (whole.action if head == "action" else whole.offence_severity).label for head in HEADS},
        base={str(head): whole.probabilities[head][label] for head, label in labels.items()},
        fall=fall,
        spans=tuple((spec.frame_indices[part[0]], spec.frame_indices[part[-1]]) for part in frames),
    )
