"""golden.npz: one action and the reference's answers, and whether an engine repeats them as serving will ask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.checks import Check
from export.difference import Difference
from export.runners import Runner
from mvfoul.artifact import FEATURES, GOLDEN, GOLDEN_TENSORS, VIEW_WEIGHTS, VIEWS, golden_limit


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
        limit: Largest absolute difference of a logit or probability; see `golden_limit`.
    """
    answers = candidate.classify(candidate.encode(golden[VIEWS])[FEATURES])
    failures: list[str] = []
    worst = Difference()
    for name, answer in answers.items():
        difference = Difference()
        difference.add(answer, golden[name], name)
        failures += difference.problems
        if difference.max_abs > (allowed := golden_limit(limit, name)):
            failures.append(f"{name} is {difference.max_abs:.3g} off, beyond {allowed:.3g}")
        if name != VIEW_WEIGHTS and difference.max_abs >= worst.max_abs:
            worst = difference
    return Check(
        GOLDEN,
        bool(answers) and not failures,
        f"{worst.max_abs:.1e} absolute",
        f"{limit:.3g}",
        where=worst.worst,
        failures=tuple(failures) if answers else ("nothing could be compared",),
    )
