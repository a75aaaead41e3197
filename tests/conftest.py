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


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """best.pth.tar of mc3_18 with attention and random weights, for 8 frames of 32 px; 50 MB. Do not change it."""
    import torch

    from mvfoul.clip import preset
    from training.checkpoint import Checkpoint, save_checkpoint
    from training.model.network import FoulNetwork

    clip = preset("two-second", num_frames=8, size_px=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = FoulNetwork("mc3_18", "attention", clip=clip)
    path = tmp_path_factory.mktemp("tiny_checkpoint") / "best.pth.tar"
    checkpoint = Checkpoint(
        epoch=3,
        backbone="mc3_18",
        aggregation="attention",
        clip=clip,
        state_dict=network.state_dict(),
        evaluation={"score": 0.25},
        temperatures={"action": 1.5, "offence_severity": 0.8},
    )
    save_checkpoint(path, checkpoint)
    return path


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the artifact that the real export makes of `tiny_checkpoint`. Copy it before changing it."""
    from export.config import ExportConfig
    from export.pipeline import export_checkpoint

    target = tmp_path_factory.mktemp("tiny_artifact") / "artifact"
    outcome = export_checkpoint(ExportConfig(ckpt=tiny_checkpoint, output=target))
    assert outcome.artifact is not None, [check.failures for check in outcome.report.failed]
    return target
