"""Whether the primary's last answers still look like those of the evaluation in its manifest; see `mvfoul.population`.

A window of the last answers, of one artifact. In a session each request's answer counts, so where views arrive one by
one the confidences are those of fewer views than at the evaluation: expect an index above zero.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, Literal

import numpy as np

from mvfoul.artifact import Artifact
from mvfoul.labels import VOCABULARIES, Head
from mvfoul.population import (
    CONFIDENCE_BINS,
    MIN_REFERENCE,
    Counts,
    Population,
    confidence_bins,
    read_populations,
    stability_index,
)
from mvfoul.prediction import Prediction

Of = Literal["label", "confidence"]
DRIFT_OF: Final[tuple[Of, ...]] = ("label", "confidence")

_Place = tuple[Head, Of, int]


class Drift:
    """Counts the answers of a sliding window. Used from the event loop only."""

    def __init__(self, *, window: int = 500, at_least: int = 200) -> None:
        self._window = window
        self._at_least = at_least
        self._artifact: Artifact | None = None
        self._start({})

    @property
    def answers(self) -> int:
        """In the window."""
        return len(self._places)

    def watch(self, artifact: Artifact) -> None:
        """Start anew with this artifact, unless it is the one already watched."""
        if self._artifact is None or artifact.version != self._artifact.version:
            self._artifact = artifact
            self._start(_references(artifact))

    def add(self, prediction: Prediction, artifact: Artifact) -> None:
        """Count an answer; one of another artifact (it was replaced meanwhile) does not count."""
        if self._artifact is None or artifact.version != self._artifact.version:
            return
        places: list[_Place] = []
        for answer in (prediction.action, prediction.offence_severity):
            places.append((answer.head, "label", answer.index))
            places.append((answer.head, "confidence", int(confidence_bins(answer.confidence))))
        self._places.append(places)
        self._count(places, 1)
        if len(self._places) > self._window:
            self._count(self._places.popleft(), -1)

    def index(self, head: Head, of: Of) -> float:
        """Return the population stability index; NaN without a reference, or until there are enough answers."""
        reference = self._references.get((head, of))
        if reference is None or self.answers < self._at_least:
            return math.nan
        return stability_index(self._counts[head, of], reference)

    def _start(self, references: dict[tuple[Head, Of], tuple[int, ...]]) -> None:
        self._references = references
        self._places: deque[list[_Place]] = deque()
        self._counts: dict[tuple[Head, Of], Counts] = {}
        for head, names in VOCABULARIES.items():
            self._counts[head, "label"] = np.zeros(len(names), np.int64)
            self._counts[head, "confidence"] = np.zeros(CONFIDENCE_BINS, np.int64)

    def _count(self, places: list[_Place], step: int) -> None:
        for head, of, place in places:
            self._counts[head, of][place] += step


def _references(artifact: Artifact) -> dict[tuple[Head, Of], tuple[int, ...]]:
    manifest = artifact.manifest
    references: dict[tuple[Head, Of], tuple[int, ...]] = {}
    for head, population in read_populations(manifest.evaluation).items():
        if population.answers < MIN_REFERENCE:
            continue
        references[head, "label"] = population.labels
        if _same_scale(population, manifest.temperatures.get(head, 1.0)):
            references[head, "confidence"] = population.confidences
    return references


def _same_scale(population: Population, temperature: float) -> bool:
    """Say whether the artifact computes confidences as the evaluation did: it may be older than the calibration."""
    return math.isclose(population.temperature, temperature, rel_tol=1e-6)
