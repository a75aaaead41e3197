"""What one pass over a split saw, and what it cost.

Everything adds up (sums and confusion matrices), so the figures over several ranks are a sum away.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvfoul.labels import VOCABULARIES, Head
from mvfoul.population import CONFIDENCE_BINS, Population, confidence_bins
from training.dataset import ActionBatch
from training.distributed import World
from training.loss import LossSums
from training.metrics import Confusion, Metrics, confusion_matrix, empty_confusions, metrics_of
from training.model.network import FoulLogits


def _no_confidences() -> dict[Head, NDArray[np.int64]]:
    return {head: np.zeros(CONFIDENCE_BINS, np.int64) for head in VOCABULARIES}


@dataclass
class PassResult:
    """What one pass over a split saw."""

    loss_sums: dict[Head, float] = field(default_factory=lambda: dict.fromkeys(VOCABULARIES, 0.0))
    confusions: dict[Head, Confusion] = field(default_factory=empty_confusions)
    confidences: dict[Head, NDArray[np.int64]] = field(default_factory=_no_confidences)
    """Labelled actions by the probability of their answer, in `mvfoul.population.CONFIDENCE_BINS` bins."""
    labelled: int = 0
    """Actions that the sums and matrices count."""
    views: int = 0
    skipped: list[str] = field(default_factory=list)
    """One sentence per clip that could not be decoded."""
    left_out: list[str] = field(default_factory=list)
    """Ids of the actions without any view."""
    seconds: float = 0.0
    """That the pass took, without what was done between steps (saving)."""
    wait_seconds: float = 0.0
    """Of them, those spent waiting for data."""
    peak_memory_bytes: int = 0
    """See `training.memory.peak_bytes`."""

    def add(self, batch: ActionBatch, logits: FoulLogits, losses: LossSums) -> None:
        """Count one batch."""
        for head in VOCABULARIES:
            labels, answers = getattr(batch, head).cpu(), getattr(logits, head).detach()
            self.confusions[head] += confusion_matrix(labels, answers.argmax(dim=1).cpu(), len(VOCABULARIES[head]))
            shares = answers.float().softmax(dim=1).amax(dim=1).cpu()[labels >= 0]
            self.confidences[head] += np.bincount(confidence_bins(shares), minlength=CONFIDENCE_BINS)
            self.loss_sums[head] += float(getattr(losses, head).detach())
        self.labelled += losses.labelled
        self.views += len(batch.views)

    def note_skipped(self, batch: ActionBatch) -> None:
        """Remember what of the batch could not be used."""
        self.skipped.extend(batch.skipped)
        self.left_out.extend(batch.left_out)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for the checkpoint of an epoch in progress."""
        confusions = {head: matrix.tolist() for head, matrix in self.confusions.items()}
        confidences = {head: counts.tolist() for head, counts in self.confidences.items()}
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**plain, "confusions": confusions, "confidences": confidences}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting where `state` was taken."""
        for name, value in state.items():
            setattr(self, name, copy.deepcopy(value))
        self.confusions = {head: np.asarray(rows, np.int64) for head, rows in state["confusions"].items()}
        # A checkpoint of an earlier version has none.
        counted = state.get("confidences", _no_confidences())
        self.confidences = {head: np.asarray(counts, np.int64) for head, counts in counted.items()}

    def over_ranks(self, world: World) -> PassResult:
        """Return the sum of all ranks' results."""
        results: list[PassResult] = world.gather(self)
        total, *others = copy.deepcopy(results)
        for other in others:
            for head in VOCABULARIES:
                total.loss_sums[head] += other.loss_sums[head]
                total.confusions[head] += other.confusions[head]
                total.confidences[head] += other.confidences[head]
            total.labelled += other.labelled
            total.views += other.views
            total.skipped += other.skipped
            total.left_out += other.left_out
            # The ranks work at the same time: the slowest one counts, and the one that needs most.
            for name in ("seconds", "wait_seconds", "peak_memory_bytes"):
                setattr(total, name, max(getattr(total, name), getattr(other, name)))
        return total

    @property
    def populations(self) -> dict[Head, Population]:
        """How often each label was answered, and each confidence."""
        return {
            head: Population(tuple(matrix.sum(axis=0).tolist()), tuple(self.confidences[head].tolist()))
            for head, matrix in self.confusions.items()
        }

    @property
    def losses(self) -> dict[Head, float]:
        """Mean loss per action and head."""
        return {head: total / max(self.labelled, 1) for head, total in self.loss_sums.items()}

    @property
    def loss(self) -> float:
        """Sum of both heads' losses."""
        return sum(self.losses.values())

    @property
    def metrics(self) -> Metrics:
        """Accuracies and the score.

        Raises:
            ValueError: Not one labelled action.
        """
        return metrics_of(self.confusions)

    def system(self) -> dict[str, float]:
        """Return what the pass cost: views per second, the share of time without data, and the most memory."""
        seconds = max(self.seconds, 1e-9)
        return {
            "system/clips_per_second": self.views / seconds,
            "system/data_wait_share": self.wait_seconds / seconds,
            "system/peak_memory_bytes": float(self.peak_memory_bytes),
        }

    def cost(self) -> str:
        """Say the same in a sentence."""
        speed, waiting, memory = self.system().values()
        return (
            f"{speed:.1f} clips/s, {waiting:.0%} of the time waiting for data, peak memory {memory / (1 << 30):.2f} GiB"
        )
