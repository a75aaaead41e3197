"""What a network says of the actions of a split: logits, with all views of an action and with each view alone.

A = actions, N = their views in all, C = classes of a head. Clips stream through in batches; only logits are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvfoul.errors import CheckpointError
from mvfoul.labels import VOCABULARIES, FoulLabels, Head
from mvfoul.population import Population, count_answers
from training.calibration import probabilities
from training.dataset import ActionBatch
from training.metrics import Confusion, confusion_matrix
from training.model.network import FoulLogits, FoulNetwork, pad_features, pad_kinds

Augmentation = Literal["none", "flip"]


def _lists() -> dict[Head, list[list[float]]]:
    return {head: [] for head in VOCABULARIES}


@dataclass
class Answers:
    """What the network said of A actions with N views."""

    action_ids: list[str] = field(default_factory=list)
    label_lists: dict[Head, list[int]] = field(default_factory=lambda: {head: [] for head in VOCABULARIES})
    view_counts: list[int] = field(default_factory=list)
    """A of them, summing to N."""
    cameras: list[str] = field(default_factory=list)
    """N: the camera type of each view, as annotated."""
    together: dict[Head, list[list[float]]] = field(default_factory=_lists)
    """A rows of C logits per head."""
    alone: dict[Head, list[list[float]]] = field(default_factory=_lists)
    """N rows of C logits per head."""
    skipped: list[str] = field(default_factory=list)
    """One sentence per clip that could not be decoded."""
    left_out: list[str] = field(default_factory=list)
    """Ids of the actions without any view."""

    @property
    def views(self) -> int:
        """N."""
        return sum(self.view_counts)

    def add(self, batch: ActionBatch, together: FoulLogits, alone: FoulLogits) -> None:
        """Append the answers for one batch."""
        self.action_ids.extend(batch.action_ids)
        self.view_counts.extend(batch.view_counts.tolist())
        self.cameras.extend(batch.cameras)
        for head in VOCABULARIES:
            self.label_lists[head].extend(getattr(batch, head).tolist())
            self.together[head].extend(getattr(together, head).tolist())
            self.alone[head].extend(getattr(alone, head).tolist())

    def labels(self, head: Head) -> NDArray[np.int64]:
        """Return int64 `[A]`; -1 where there is no label."""
        return np.asarray(self.label_lists[head], np.int64)

    def logits(self, head: Head) -> NDArray[np.float64]:
        """Return float64 `[A, C]`."""
        return np.asarray(self.together[head], np.float64).reshape(-1, len(VOCABULARIES[head]))

    def rankings(self, head: Head) -> NDArray[np.int64]:
        """Return the classes, the most probable first, int64 `[A, C]`."""
        return np.argsort(-self.logits(head), axis=1, kind="stable")

    def view_labels(self, head: Head) -> NDArray[np.int64]:
        """Return int64 `[N]`: the label of each view's action."""
        return np.repeat(self.labels(head), self.view_counts)

    def view_answers(self, head: Head) -> NDArray[np.int64]:
        """Return int64 `[N]`: the most probable class from this view alone."""
        logits = np.asarray(self.alone[head]).reshape(-1, len(VOCABULARIES[head]))
        return np.asarray(logits.argmax(axis=1), np.int64)

    def predictions(self) -> dict[str, FoulLabels]:
        """Return the most probable labels by action id."""
        columns = (self.rankings(head)[:, 0].tolist() for head in VOCABULARIES)
        return {name: FoulLabels(*labels) for name, *labels in zip(self.action_ids, *columns, strict=True)}

    def confusions(self, *, alone: bool = False) -> dict[Head, Confusion]:
        """Return the confusion matrices over actions, or over views answered alone."""
        matrices = {}
        for head, names in VOCABULARIES.items():
            labels = self.view_labels(head) if alone else self.labels(head)
            answers = self.view_answers(head) if alone else self.rankings(head)[:, 0]
            matrices[head] = confusion_matrix(labels, answers, len(names))
        return matrices

    def populations(self, temperatures: Mapping[Head, float]) -> dict[Head, Population]:
        """Return how often each label and each confidence occurs among all actions, labelled or not."""
        found = {}
        for head, names in VOCABULARIES.items():
            confidences = probabilities(self.logits(head), temperatures[head]).max(axis=1)
            found[head] = count_answers(self.rankings(head)[:, 0], confidences, len(names), temperatures[head])
        return found

    def top2(self, head: Head) -> float:
        """Return the share of labelled actions whose label is among the two most probable ones."""
        labels = self.labels(head)
        ranking = self.rankings(head)[labels >= 0, :2]
        return float((ranking == labels[labels >= 0, None]).any(axis=1).mean())


@torch.inference_mode()
def answer_all(
    network: FoulNetwork,
    batches: Iterable[ActionBatch],
    on_batch: Callable[[ActionBatch], None] | None = None,
    *,
    augmentation: Augmentation = "none",
) -> Answers:
    """Ask the network about every action, with all its views and with each alone.

    Args:
        network: In evaluation mode.
        batches: The split.
        on_batch: Called after each batch.
        augmentation: flip: the mean of the logits of the views and of the same views mirrored left to right.

    Raises:
        CheckpointError: The network's answer is not a number.
    """
    answers = Answers()
    device = network.normalise.scale.device
    for batch in batches:
        answers.skipped.extend(batch.skipped)
        answers.left_out.extend(batch.left_out)
        if len(batch):
            moved = batch.to(device, non_blocking=True)
            together, alone = _both(network, moved.views, moved)
            if augmentation == "flip":
                mirrored = _both(network, moved.views.flip(-1), moved)
                together, alone = _mean(together, mirrored[0]), _mean(alone, mirrored[1])
            if not all(torch.isfinite(logits).all() for logits in together):
                raise CheckpointError(f"the network answers NaN among the actions {batch.action_ids}; train again.")
            answers.add(moved, together, alone)
        if on_batch is not None:
            on_batch(batch)
    return answers


def _both(network: FoulNetwork, views: Tensor, batch: ActionBatch) -> tuple[FoulLogits, FoulLogits]:
    """Encode each view once; score its features with those of the action's other views, and alone."""
    features = network.encode(views)
    kinds = pad_kinds(batch.view_kinds, batch.view_counts)
    together = network.classify(*pad_features(features, batch.view_counts), kinds)
    one_view = torch.ones(len(features), 1, dtype=torch.bool, device=features.device)
    return together, network.classify(features.unsqueeze(1), one_view, batch.view_kinds.unsqueeze(1))


def _mean(one: FoulLogits, other: FoulLogits) -> FoulLogits:
    return FoulLogits(*((a + b) / 2 for a, b in zip(one, other, strict=True)))
