"""Fixtures of the export tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from export.config import ExportConfig
from export.pipeline import Source, export_checkpoint, load_source


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors: more threads only cost time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def source(tiny_checkpoint: Path) -> Source:
    return load_source(tiny_checkpoint)


@pytest.fixture(scope="session")
def run_export(repo_root: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_export("--ckpt", ..., cwd=folder)`: `python -m export` to the end, with a terminal of fixed width."""

    def run(*arguments: str | Path, cwd: Path, module: str = "export") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        environment = {
            **os.environ,
            "PYTHONPATH": str(repo_root),
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",  # the same on a machine with a GPU
        }
        return subprocess.run(
            command, capture_output=True, text=True, timeout=240, env=environment, cwd=cwd, check=False
        )

    return run


@pytest.fixture(scope="session")
def merged_artifact(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with model.onnx. Copy it before changing it."""
    target = tmp_path_factory.mktemp("merged_artifact") / "artifact"
    outcome = export_checkpoint(ExportConfig(ckpt=tiny_checkpoint, output=target, merge=True))
    assert outcome.artifact is not None, [check.failures for check in outcome.report.failed]
    return target
