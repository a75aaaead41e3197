"""What Prometheus reads of a run: real runs, scraped while they train."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from mvfoul.errors import ConfigError
from training.assembly import assemble
from training.config.metrics import MetricsConfig
from training.exposition import RunMetrics, served_metrics
from training.pass_result import PassResult
from training.run import train

FLAGS = ["--recipe", "cpu-demo", "--clip.num-frames", "2", "--clip.size-px", "16", "--loop.epochs", "500"]
# Dashboards and alerts ask for these.
NAMES = {
    "mvfoul_training_epoch",
    "mvfoul_training_step",
    "mvfoul_training_steps_total",
    "mvfoul_training_loss",
    "mvfoul_training_score",
    "mvfoul_training_balanced_accuracy",
    "mvfoul_training_learning_rate",
    "mvfoul_training_step_duration_seconds_bucket",
    "mvfoul_training_step_duration_seconds_sum",
    "mvfoul_training_step_duration_seconds_count",
    "mvfoul_training_actions_total",
    "mvfoul_training_data_wait_seconds_total",
    "mvfoul_training_skipped_steps_total",
    "mvfoul_training_last_step_timestamp_seconds",
    "mvfoul_training_epochs_planned",
    "mvfoul_training_info",
}


@pytest.fixture
def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _scrape(port):
    """Return the values by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}


def _scrape_until(port, condition, *, timeout_s=60):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            if condition(found := _scrape(port)):
                return found
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.05)
    raise AssertionError("not in time")


def test_the_first_process_of_a_run_in_progress_answers_with_every_figure(programs, tiny_dataset, tmp_path, free_port):
    argv = [*FLAGS, "--data.root", tiny_dataset, "--output", tmp_path / "run", "--metrics.port", free_port]
    main, other = programs.ranks(argv)
    found = _scrape_until(free_port, lambda found: found.get(("mvfoul_training_epoch",), 0) >= 2)
    main.kill(signal.SIGTERM)
    assert (main.wait(), other.wait()) == (75, 75), main.err + other.err
    ours = {key[0] for key in found if key[0].startswith("mvfoul_")}
    assert {name for name in ours if not name.endswith("_created")} == NAMES
    assert ("process_resident_memory_bytes",) in found
    epoch = int(found["mvfoul_training_epoch",])
    rows = [json.loads(line) for line in (tmp_path / "run/history.jsonl").read_text().splitlines()]
    assert found["mvfoul_training_score",] == rows[epoch - 1]["valid/score"]
    assert found["mvfoul_training_loss", ("split", "valid")] == rows[epoch - 1]["valid/loss"]
    assert found["mvfoul_training_epochs_planned",] == 500
    assert 0 < found["mvfoul_training_learning_rate",] <= 5e-4
    info = (("aggregation", "mean"), ("backbone", "mc3_18"), ("run", "run"))
    assert found["mvfoul_training_info", *info] == 1
    # 16 actions in batches of 8, over both processes.
    steps = found["mvfoul_training_steps_total",]
    assert steps == found["mvfoul_training_step_duration_seconds_count",] >= 2 * epoch
    assert found["mvfoul_training_actions_total",] == 8 * steps
    waited = found["mvfoul_training_data_wait_seconds_total",]
    assert 0 < waited < found["mvfoul_training_step_duration_seconds_sum",]
    assert time.time() - found["mvfoul_training_last_step_timestamp_seconds",] < 60


def test_watching_a_run_changes_none_of_its_numbers(tiny_config, tiny_run, tmp_path, free_port):
    train(tiny_config(output=tmp_path, metrics={"port": free_port}))
    for one, other in zip(_rows(tmp_path), _rows(tiny_run), strict=True):
        assert one == other
    with pytest.raises(urllib.error.URLError):
        _scrape(free_port)


def _rows(folder):
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if not name.startswith(("seconds", "system/"))} for row in rows]


def test_a_port_that_is_taken_is_named_before_the_old_run_is_touched(tiny_config, tmp_path):
    (tmp_path / "last.pth.tar").write_text("of an old run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--metrics\.port is {port}: cannot listen on 127\.0\.0\.1:{port}"):
            train(tiny_config(output=tmp_path, overwrite=True, metrics={"port": port}))
    assert (tmp_path / "last.pth.tar").read_text() == "of an old run"


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_worker_that_outlives_its_run_does_not_hold_the_port(tiny_config, free_port):
    with served_metrics(tiny_config(metrics={"port": free_port}), "run"):
        # As a worker of the data loader, where the run is killed.
        worker = os.fork()
        if not worker:
            time.sleep(30)
            os._exit(0)
    try:
        with served_metrics(tiny_config(metrics={"port": free_port}), "again"):
            assert _scrape(free_port)["mvfoul_training_epochs_planned",] == 2
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_an_epoch_that_goes_on_in_its_middle_counts_only_its_own_steps(tiny_config):
    registry = CollectorRegistry()
    metrics = RunMetrics(tiny_config(), "run", registry)
    metrics.watch(learner := assemble(tiny_config()).learner)

    def step(number, *, seconds, waited, actions, skipped=0):
        learner.actions_seen, learner.skipped_steps = actions, skipped
        metrics.step_done(number, PassResult(seconds=seconds, wait_seconds=waited))

    metrics.epoch_starts(5, PassResult(seconds=100.0, wait_seconds=40.0))
    step(6, seconds=100.5, waited=40.25, actions=8)
    step(7, seconds=101.0, waited=40.5, actions=14, skipped=1)
    metrics.epoch_starts(0, PassResult())
    step(1, seconds=0.25, waited=0.125, actions=22, skipped=1)
    value = registry.get_sample_value
    assert value("mvfoul_training_step") == 1
    assert value("mvfoul_training_steps_total") == 3
    assert value("mvfoul_training_step_duration_seconds_sum") == 1.25
    assert value("mvfoul_training_data_wait_seconds_total") == 0.625
    assert value("mvfoul_training_actions_total") == 22
    assert value("mvfoul_training_skipped_steps_total") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 65536}, r"--metrics\.port is 65536\. Use 1 to 65535, or 0 \(off\)"),
        ({"host": "10.0.0.1"}, r"--metrics\.host is '10\.0\.0\.1'\. It goes with --metrics\.port"),
    ],
)
def test_an_address_that_would_do_nothing_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MetricsConfig(**settings)
