"""Fixtures that more than one package's tests use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return REPO


@pytest.fixture(scope="session")
def sample_root() -> Path:
    """The three real actions, or a skip that says how to get them."""
    root = Path(os.environ.get("MVFOUL_SAMPLE", REPO.parent / "shared" / "data" / "mvfoul-sample"))
    if not (root / "test" / "annotations.json").is_file():
        pytest.skip(f"no real sample at {root}; set MVFOUL_SAMPLE to a folder in the official layout")
    return root
