"""Where the figures of a run go: files of a run, of a resumed run, and of one that was killed at a bad moment."""

from __future__ import annotations

import json
import math
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mvfoul.errors import ConfigError
from training.checkpoint import load_checkpoint
from training.config.track import TrackConfig
from training.tracking import open_trackers


def _lines(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def _scalars(folder, name):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


@pytest.fixture
def config(tiny_config, tmp_path):
    return tiny_config(output=tmp_path, track={"tensorboard": True})


def _write(config, epochs, *, histories=None):
    with open_trackers(config, config.output, histories=histories) as trackers:
        for epoch in epochs:
            trackers.log({"train/loss": 1 / epoch, "system/clips_per_second": 10.0 * epoch}, epoch=epoch)


def _histories(epochs):
    numbers = range(1, epochs + 1)
    return {"train/loss": [1 / n for n in numbers], "system/clips_per_second": [10.0 * n for n in numbers]}


def test_a_run_writes_one_line_per_epoch_with_every_figure_of_its_checkpoint(tiny_run):
    histories = load_checkpoint(tiny_run / "last.pth.tar").histories
    lines = _lines(tiny_run)
    assert [line["epoch"] for line in lines] == [1, 2]
    for name, values in histories.items():
        assert [line[name] for line in lines] == values


def test_a_resumed_run_tracks_no_epoch_twice_and_takes_back_what_the_checkpoint_does_not_have(config):
    _write(config, [1, 2, 3])
    _write(config, [3, 4], histories=_histories(2))  # the third epoch was tracked, and is trained again
    assert [line["epoch"] for line in _lines(config.output)] == [1, 2, 3, 4]
    assert _scalars(config.output, "train/loss") == pytest.approx({n: 1 / n for n in (1, 2, 3, 4)})


def test_an_epoch_that_was_saved_and_not_tracked_is_added_on_resuming(config):
    _write(config, [1])
    _write(config, [3], histories=_histories(2))
    assert [line["epoch"] for line in _lines(config.output)] == [1, 2, 3]
    assert [line["system/clips_per_second"] for line in _lines(config.output)] == [10, 20, 30]
    assert sorted(_scalars(config.output, "system/clips_per_second")) == [1, 2, 3]


def test_a_new_run_in_the_same_folder_leaves_nothing_of_the_old_one(config):
    _write(config, [1, 2, 3])
    _write(config, [1])
    assert len(_lines(config.output)) == 1
    assert sorted(_scalars(config.output, "train/loss")) == [1]


def test_curves_that_began_later_are_in_the_later_lines_only(config):
    _write(config, [], histories={"lr": [1.0, 0.5], "system/peak_bytes": [7.0]})
    assert _lines(config.output) == [{"epoch": 1, "lr": 1.0}, {"epoch": 2, "lr": 0.5, "system/peak_bytes": 7.0}]


def test_what_is_no_number_in_json_is_null(config):
    with open_trackers(config, config.output) as trackers:
        trackers.log({"a": math.nan, "b": math.inf, "c": 1.0}, epoch=1)
    assert _lines(config.output) == [{"epoch": 1, "a": None, "b": None, "c": 1.0}]


def test_nothing_is_written_where_nothing_is_asked_for(tiny_config, tmp_path):
    _write(tiny_config(output=tmp_path, track={"jsonl": False}), [1])
    assert list(tmp_path.iterdir()) == []


OFFLINE = """
import sys
from pathlib import Path
from training.config import DataConfig
from training.config.track import TrackConfig
from training.config import TrainConfig
from training.tracking import open_trackers
folder = Path(sys.argv[1])
config = TrainConfig(data=DataConfig(root=Path("data")), track=TrackConfig(wandb="offline", wandb_project="tests"))
with open_trackers(config, folder) as trackers:
    trackers.log({"valid/score": 0.25}, epoch=1)
with open_trackers(config, folder, histories={"valid/score": [0.25]}) as trackers:
    trackers.log({"valid/score": 0.5}, epoch=2)
"""


def test_weights_and_biases_works_offline_and_a_resumed_run_keeps_its_id(programs, tmp_path):
    program = programs.start([str(tmp_path)], code=OFFLINE, env={"WANDB_SILENT": "true"})
    assert program.wait() == 0, program.err
    identity = (tmp_path / "wandb.id").read_text()
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert runs
    # Two starts within one second: W&B tells the folders apart by a number after the id.
    assert all(identity in path.name for path in runs)
    written = b"".join(path.read_bytes() for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert b"valid/score" in written
    assert b"0.5" in written


def test_a_missing_package_is_named_with_the_command_that_installs_it(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"--track\.wandb needs the package wandb .*vars-platform\[wandb\]"):
        open_trackers(tiny_config(output=tmp_path, track={"wandb": "offline"}), tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tiny_config, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot write to .* or choose another --output"):
        open_trackers(tiny_config(output=tmp_path), tmp_path / "none")


def test_a_project_without_its_service_is_refused():
    with pytest.raises(ConfigError, match=r"--track\.wandb-project is 'x'"):
        TrackConfig(wandb_project="x")
