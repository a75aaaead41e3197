"""golden.npz: one action and the reference's answers, and whether an engine repeats them as serving will ask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.difference import Difference
from export.parity import Check
from export.runners import Runner
from mvfoul.artifact import FEATURES, GOLDEN, GOLDEN_TENSORS, VIEWS


def write_golden(path: Path, reference: Runner, candidate: Runner, views: NDArray[np.uint8], *, limit: float) -> Check:
    """Write the reference's answers for one action; return whether the candidate gives them."""
    features = reference.encode(views)
    golden: dict[str, Any] = {VIEWS: views, **features, **reference.classify(features[FEATURES])}
    np.savez_compressed(path, **{name: golden[name] for name in GOLDEN_TENSORS})
    return check_golden(candidate, golden, limit=limit)


def read_golden(path: Path) -> dict[str, NDArray[Any]]:
    """Read what `write_golden` has just written; an artifact's own is read by `Artifact.golden`."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in GOLDEN_TENSORS}


def check_golden(candidate: Runner, golden: Mapping[str, NDArray[Any]], *, limit: float) -> Check:
    """Return whether an engine gives the answers of golden.npz, the features aside.

    Args:
        candidate: Judged.
        golden: By tensor name (`GOLDEN_TENSORS`).
        limit: Largest absolute difference.
    """
    difference = Difference()
    for name, answer in candidate.classify(candidate.encode(golden[VIEWS])[FEATURES]).items():
        difference.add(answer, golden[name], name)
    passed = difference.compared and difference.max_abs <= limit
    return Check(
        GOLDEN,
        passed,
        f"{difference.max_abs:.1e} absolute",
        f"{limit:.3g}",
        where=difference.worst,
        failures=() if passed else (*difference.problems, f"max_abs is {difference.max_abs:.3g}"),
    )
