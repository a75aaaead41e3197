"""The reference asked once per view: its answers are kept, for other batches and for other precisions.

A view's features never depend on the other views of a batch (a property test of the network), so remembering them by
view loses nothing; and the comparison costs the candidate's time and little more.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from export.runners import Runner, Tensors
from mvfoul.artifact import FEATURES, GraphSpec

_MOST_AT_ONCE: Final = 4
"""Views in one call, for memory: PyTorch holds about 0.5 GB per view of mvit_v2_s at full size."""


class RememberingRunner:
    """A runner whose encoder sees each distinct view once."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._features: dict[bytes, NDArray[np.float32]] = {}

    @property
    def name(self) -> str:
        """See `Runner`."""
        return self._runner.name

    @property
    def graphs(self) -> tuple[GraphSpec, GraphSpec]:
        """See `Runner`."""
        return self._runner.graphs

    def encode(self, views: NDArray[np.uint8]) -> Tensors:
        """See `Runner`."""
        keys = [hashlib.sha256(view.tobytes()).digest() for view in views]
        new = {key: index for index, key in enumerate(keys) if key not in self._features}
        indices = list(new.values())
        for start in range(0, len(indices), _MOST_AT_ONCE):
            chosen = indices[start : start + _MOST_AT_ONCE]
            answers = self._runner.encode(views[chosen])[FEATURES]
            self._features |= {keys[index]: row for index, row in zip(chosen, answers, strict=True)}
        return {FEATURES: np.stack([self._features[key] for key in keys])}

    def classify(self, features: NDArray[Any]) -> Tensors:
        """See `Runner`."""
        return self._runner.classify(features)
