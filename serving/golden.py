"""The self-test: answers to golden.npz against those of PyTorch at export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvfoul.artifact import GOLDEN_TOLERANCE, Artifact, golden_limit
from mvfoul.errors import ArtifactError


def check_golden(
    artifact: Artifact, golden: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]], *, engine: str
) -> None:
    """Compare `found` with the arrays of the same names in `golden` (`Artifact.golden`).

    Raises:
        ArtifactError: One differs by more than `GOLDEN_TOLERANCE`.
    """
    precision = artifact.manifest.precision
    if (tolerance := GOLDEN_TOLERANCE.get(precision)) is None:
        known = ", ".join(GOLDEN_TOLERANCE)
        raise ArtifactError(f"{artifact.directory} has precision {precision!r}; known: {known}. Export again.")
    errors = {name: _max_abs_error(values, golden[name]) for name, values in found.items()}
    if failed := [
        f"{name} by {error:.3g}" for name, error in errors.items() if not error <= golden_limit(tolerance, name)
    ]:
        raise ArtifactError(
            f"{artifact.directory} fails its self-test in {engine}: {', '.join(failed)} off golden.npz "
            f"(tolerance {tolerance})."
            " It computes something else here than where it was exported; export again, or use the versions that "
            f"wrote it: {dict(artifact.manifest.versions)}."
        )


def _max_abs_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found.astype(np.float64) - expected).max())
