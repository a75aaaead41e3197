"""Fixtures that more than one package's tests use."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no bug.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# A shell without job control starts what it sends to the background deaf to Ctrl-C, and children inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker, and what it starts, has one core; before torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REPO = Path(__file__).resolve().parent.parent


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


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
    import torch

    from export.config import ExportConfig
    from export.pipeline import export_checkpoint

    target = tmp_path_factory.mktemp("tiny_artifact") / "artifact"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outcome = export_checkpoint(ExportConfig(ckpt=tiny_checkpoint, output=target))
    finally:
        torch.set_num_threads(threads)
    assert outcome.artifact is not None, [check.failures for check in outcome.report.failed]
    return target


@pytest.fixture(scope="session")
def numbered_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`numbered_clip(container="mp4", **how)` writes a clip whose pictures carry their number; returns its path.

    `how`: see `_write_numbered_clip`. The fixture `frame_numbers` reads the numbers from a decoded view.
    """
    folder = tmp_path_factory.mktemp("clips")
    names = itertools.count()

    def write(*, container: str = "mp4", **how: Any) -> Path:
        path = folder / f"{next(names)}.{container}"
        _write_numbered_clip(path, **how)
        return path

    return write


@pytest.fixture(scope="session")
def frame_numbers() -> Callable[[np.ndarray], list[int]]:
    """`frame_numbers(view)` reads the numbers from a view, uint8 `[3, T, H, W]`, resized by `squash`."""
    return lambda view: [_number_of(view[:, t].transpose(1, 2, 0)) for t in range(view.shape[1])]


@pytest.fixture(scope="session")
def numbered_picture() -> Callable[..., np.ndarray]:
    """`numbered_picture(number, width, height)` draws what `numbered_clip` encodes: uint8 `[H, W, 3]`."""
    return _numbered_picture


_CODE_ROWS, _CODE_COLUMNS = 2, 4  # Eight blocks, black or white: the bits of a number from 0 to 255.


def _numbered_picture(number: int, width: int, height: int) -> np.ndarray:
    bits = np.unpackbits(np.array([number], np.uint8)).reshape(_CODE_ROWS, _CODE_COLUMNS)
    rows, columns = np.arange(height) * _CODE_ROWS // height, np.arange(width) * _CODE_COLUMNS // width
    noise = np.random.default_rng(number).integers(-20, 21, (height, width, 3))
    return (40 + 175 * bits[rows][:, columns, None] + noise).astype(np.uint8)


def _number_of(picture: np.ndarray) -> int:
    rows, columns = np.array_split(picture, _CODE_ROWS), _CODE_COLUMNS
    bits = [block.mean() > 127 for row in rows for block in np.array_split(row, columns, axis=1)]
    return int(np.packbits(bits)[0])


def _write_numbered_clip(
    path: Path,
    *,
    frames: int = 30,
    fps: int | Fraction = 25,
    times_s: Sequence[Fraction | float] | None = None,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    options: dict[str, str] | None = None,
    rotation: tuple[float, bool, bool] | None = None,
    audio: bool = False,
    muxer_options: dict[str, str] | None = None,
) -> None:
    """Encode numbered pictures, 0 to `frames - 1`.

    Args:
        path: Its suffix names the container.
        frames: How many pictures.
        fps: Constant frame rate.
        times_s: When each picture is shown; replaces `frames` and the constant rate.
        size: Width and height in pixels.
        codec: FFmpeg's name of the encoder.
        pix_fmt: FFmpeg's name of the pixel format.
        gop: Frames from one keyframe to the next.
        options: Of the encoder.
        rotation: Degrees counter-clockwise, and whether to mirror across and down: the display matrix.
        audio: Whether a second of noise goes with it, longer than the video's first frames.
        muxer_options: Of the container.
    """
    time_base = 1 / Fraction(fps) if times_s is None else Fraction(1, 90_000)
    times_s = [k * time_base for k in range(frames)] if times_s is None else times_s
    with av.open(str(path), "w", options=muxer_options or {}) as output:
        stream = output.add_stream(
            codec, rate=Fraction(fps), options={"threads": "1", "sc_threshold": "0", **(options or {})}
        )
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, pix_fmt, gop
        stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(*rotation)
        if audio:
            sound = output.add_stream("aac", rate=16_000)
            output.mux([*sound.encode(_noise()), *sound.encode(None)])
        for number, at_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(_numbered_picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = round(Fraction(at_s) / time_base), time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _noise(seconds: int = 1) -> av.AudioFrame:
    samples = np.random.default_rng(0).integers(-3000, 3000, (1, 16_000 * seconds), np.int16)
    frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
    frame.sample_rate, frame.pts = 16_000, 0
    return frame
