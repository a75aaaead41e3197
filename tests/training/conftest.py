"""Fixtures of the training tests: small data sets in the official layout, made of small real clips."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from mvfoul.labels import ACTION_CLASSES, FoulLabels, soccernet_fields
from training.config import (
    ClipConfig,
    DataConfig,
    LoopConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small tensors: more threads only cost time, and workers of two test processes would fight for the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def grey_clip() -> Callable[..., bytes]:
    """`grey_clip(level, frames=126)`: an h264 mp4 of 64 x 48 px at 25 fps, every pixel about `level`."""
    made: dict[tuple[int, int], bytes] = {}

    def make(level: int, frames: int = 126) -> bytes:
        if (level, frames) not in made:
            made[level, frames] = _encode(level, frames)
        return made[level, frames]

    return make


def _encode(level: int, frames: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(frames):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.fixture
def write_split(tmp_path: Path) -> Callable[..., Path]:
    """Write a split: `write_split(actions, folder="train")`, `actions` as `action(...)` makes them; returns the root.

    Each clip's value is the bytes of its file, or None for a file that is not on disk.
    """

    def write(
        actions: Mapping[str, tuple[Mapping[str, Any], Mapping[str, bytes | None]]], folder: str = "train"
    ) -> Path:
        root = tmp_path / "data"
        for action_id, (_, clips) in actions.items():
            for name, content in clips.items():
                path = root / folder / f"action_{action_id}" / f"{name}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                if content is not None:
                    path.write_bytes(content)
        document = {"Set": folder, "Actions": {action_id: fields for action_id, (fields, _) in actions.items()}}
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "annotations.json").write_text(json.dumps(document))
        return root

    return write


@pytest.fixture(scope="session")
def action() -> Callable[..., tuple[Mapping[str, Any], Mapping[str, bytes | None]]]:
    """`action("7", {"clip_0": b"...", "clip_1": None}, **{"Action class": "Dive"})`: official fields, and the files."""

    def make(
        action_id: str, clips: Mapping[str, bytes | None], **fields: Any
    ) -> tuple[Mapping[str, Any], Mapping[str, bytes | None]]:
        listed = [
            {
                "Url": f"Dataset/Train/action_{action_id}/{name}",
                "Camera type": "Main camera center",
                "Timestamp": 1259839,
                "Replay speed": 1.0,
            }
            for name in clips
        ]
        labels = {"Offence": "Offence", "Action class": "Tackling", "Severity": "3.0"}
        return {**labels, "Clips": listed, **fields}, clips

    return make


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory, grey_clip, action) -> Path:
    """A root with train (16 actions), valid (8), test (8) and challenge (4, without labels), 1 to 3 views each.

    The grey level tells both labels, so a small network learns it in seconds. Read only: copy it before changing it.
    """
    root = tmp_path_factory.mktemp("tiny")
    for split, count in (("train", 16), ("valid", 8), ("test", 8), ("challenge", 4)):
        actions = {}
        for number in range(count):
            kind = number % len(ACTION_CLASSES)
            clips = {f"clip_{view}": grey_clip(20 + 25 * kind) for view in range(1 + number % 3)}
            fields, files = action(str(number), clips, **_labels(kind, labelled=split != "challenge"))
            actions[str(number)] = fields
            folder = root / split / f"action_{number}"
            folder.mkdir(parents=True)
            for name, content in files.items():
                (folder / f"{name}.mp4").write_bytes(content)
        document = {"Set": split, "Actions": actions}
        (root / split / "annotations.json").write_text(json.dumps(document))
    return root


def _labels(kind: int, *, labelled: bool) -> dict[str, str]:
    if not labelled:
        return {"Action class": "", "Offence": "", "Severity": ""}
    # Dive is the last class: the official evaluator wants its severity to be 1.0.
    return soccernet_fields(FoulLabels(kind, 1 if ACTION_CLASSES[kind] == "Dive" else kind % 4))


@pytest.fixture(scope="session")
def tiny_config(tiny_dataset) -> Callable[..., TrainConfig]:
    """`tiny_config(output=..., loop={"epochs": 3})`: the smallest run on `tiny_dataset`; groups as dictionaries."""

    def make(*, root: Path = tiny_dataset, **settings: Any) -> TrainConfig:
        base = TrainConfig(
            weights="none",
            device="cpu",
            data=DataConfig(root=root, workers=0, preload_gib=0.5),
            clip=ClipConfig(num_frames=2, size_px=16),
            model=ModelConfig(backbone="mc3_18", aggregation="max"),
            optim=OptimConfig(name="sgd", lr=0.01, momentum=0.0),
            schedule=ScheduleConfig(name="constant"),
            loop=LoopConfig(epochs=2, batch_size=8, patience=0),
        )
        changed = {
            name: replace(getattr(base, name), **value) if isinstance(value, dict) else value
            for name, value in settings.items()
        }
        return replace(base, **changed)

    return make


@pytest.fixture(scope="session")
def tiny_run(tiny_config, tmp_path_factory) -> Path:
    """The folder of a finished run of two epochs on `tiny_dataset`. Read only."""
    from training.run import train

    return train(tiny_config(output=tmp_path_factory.mktemp("run"))).output


TRAIN = "import training.__main__ as m, sys; sys.exit(m.main())"


@dataclass
class Program:
    """A Python program in a process of its own."""

    programs: Programs
    pid: int
    out_path: Path
    err_path: Path

    @property
    def out(self) -> str:
        return self.out_path.read_text()

    @property
    def err(self) -> str:
        return self.err_path.read_text()

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = 120) -> int:
        """Return the exit code, negative for a signal."""
        return self.programs.wait(self.pid, timeout_s)

    def running(self) -> bool:
        self.programs.read(0)
        return self.pid not in self.programs.ended


class Programs:
    """Starts programs from a process that has torch and the trainer imported, so each starts in milliseconds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self.ended: dict[int, int] = {}
        self._pids: list[int] = []
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
        pipe = subprocess.PIPE
        self._zygote = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, bufsize=0)
        self._buffer = b""

    def start(self, argv: Sequence[str], *, code: str = TRAIN, env: Mapping[str, str] | None = None) -> Program:
        """Run `code`, `python -m training` where left out, with the arguments `argv`."""
        self._count += 1
        out, err = (self._folder / f"{self._count}.{name}" for name in ("out", "err"))
        out.touch()
        err.touch()
        order = {"code": code, "argv": ["training", *map(str, argv)], "env": dict(env or {}), "out": str(out)}
        self._zygote.stdin.write((json.dumps({**order, "err": str(err)}) + "\n").encode())
        known = len(self._pids)
        while len(self._pids) == known:
            assert self.read(120), "the zygote does not answer"
        return Program(self, self._pids[-1], out, err)

    def ranks(self, argv: Sequence[str], count: int = 2, *, code: str = TRAIN) -> list[Program]:
        """Start the processes of one run, as torchrun does; rank 0 holds the store."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return [
            self.start(argv, code=code, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(count)
        ]

    def read(self, timeout_s: float) -> bool:
        """Take in what the zygote reports; return whether there was anything."""
        if not select.select([self._zygote.stdout], [], [], timeout_s)[0]:
            return False
        news = self._zygote.stdout.read(65536)
        assert news, "the process that starts the programs is gone: see its traceback"
        self._buffer += news
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            report = json.loads(line)
            if "ended" in report:
                self.ended[report["ended"]] = report["code"]
            else:
                self._pids.append(report["pid"])
        return True

    def wait(self, pid: int, timeout_s: float) -> int:
        end = time.monotonic() + timeout_s
        while pid not in self.ended:
            assert time.monotonic() < end, f"process {pid} is still running"
            self.read(max(0.0, end - time.monotonic()))
        return self.ended[pid]

    def close(self) -> None:
        for pid in self._pids:
            if pid not in self.ended:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        self._zygote.stdin.close()
        self._zygote.wait(30)
        self._zygote.stdout.close()


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> Iterator[Programs]:
    """Programs in processes of their own; what still runs at the end is killed."""
    started = Programs(tmp_path_factory.mktemp("programs"))
    yield started
    started.close()
