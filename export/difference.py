"""How far one tensor is from its reference, over many comparisons: absolute, relative, and in direction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Difference:
    """Collects the comparisons of one tensor. Everything is computed in float64."""

    max_abs: float = 0.0
    max_relative: float = 0.0
    """Largest absolute error as a share of the largest absolute value of the same reference."""
    min_cosine: float = 1.0
    """Smallest cosine of a row (the last axis) with its reference row."""
    worst: str = ""
    """Where `max_abs` was."""
    problems: list[str] = field(default_factory=list)
    """Comparisons that could not be made: missing tensors, other shapes or dtypes, values that are not finite."""
    _sum_abs: float = 0.0
    _count: int = 0

    @property
    def mean_abs(self) -> float:
        """Mean absolute error over all values."""
        return self._sum_abs / max(self._count, 1)

    @property
    def compared(self) -> bool:
        """Whether there was anything to compare, and all of it could be."""
        return self._count > 0 and not self.problems

    def add(self, found: NDArray[Any] | None, expected: NDArray[Any], where: str) -> None:
        """Compare one tensor with its reference; `where` names the batch in the report."""
        if problem := _problem(found, expected):
            self.problems.append(f"{where}: {problem}")
            return
        assert found is not None  # noqa: S101  # `_problem` names a missing tensor
        reference = expected.astype(np.float64)
        error = np.abs(found.astype(np.float64) - reference)
        self._sum_abs += float(error.sum())
        self._count += error.size
        self.min_cosine = min(self.min_cosine, _min_cosine(found, expected))
        scale = float(np.abs(reference).max())
        largest = float(error.max())
        if largest > 0:
            self.max_relative = max(self.max_relative, largest / scale if scale else float("inf"))
        if largest >= self.max_abs:
            self.max_abs, self.worst = largest, where


def _problem(found: NDArray[Any] | None, expected: NDArray[Any]) -> str:
    if found is None:
        return "the tensor is missing"
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"{found.dtype} {list(found.shape)} instead of {expected.dtype} {list(expected.shape)}"
    if not np.isfinite(expected).all():
        return "the reference itself is not finite"
    if not np.isfinite(found).all():
        return f"{np.count_nonzero(~np.isfinite(found))} of {found.size} values are not finite"
    return ""


def _min_cosine(found: NDArray[Any], expected: NDArray[Any]) -> float:
    rows, references = (np.atleast_2d(a.astype(np.float64)) for a in (found, expected))
    norms = np.linalg.norm(rows, axis=-1) * np.linalg.norm(references, axis=-1)
    products = (rows * references).sum(axis=-1)
    # Two rows of zeros agree; one row of zeros agrees with nothing.
    both_zero = ~rows.any(axis=-1) & ~references.any(axis=-1)
    cosines = np.where(both_zero, 1.0, np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0))
    return float(cosines.min())
