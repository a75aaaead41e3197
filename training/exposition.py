"""What Prometheus reads of a run at work: on rank 0, at `--metrics.port`, path /metrics; base units.

Only what the loop already knows, so watching a run changes none of its numbers. A run that goes on starts its counters
at zero, as every process does, and its gauges where they were.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, start_http_server

from mvfoul.errors import ConfigError
from mvfoul.labels import VOCABULARIES
from training.config import TrainConfig
from training.learner import Learner
from training.pass_result import PassResult

_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class RunMetrics:
    """All metrics of one run."""

    def __init__(self, config: TrainConfig, run: str, registry: CollectorRegistry) -> None:
        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"mvfoul_training_{name}", what, labels, registry=registry)

        def counter(name: str, what: str) -> Counter:
            return Counter(f"mvfoul_training_{name}", what, registry=registry)

        self._epoch = gauge("epoch", "Epochs that are finished")
        self._step = gauge("step", "Steps done of the epoch in progress")
        self._steps = counter("steps", "Steps done by this process")
        self._loss = gauge("loss", "Sum of both heads' mean losses; train: of the epoch so far", "split")
        self._score = gauge("score", "Mean of the two balanced accuracies on valid, 0 to 1")
        self._balanced_accuracy = gauge("balanced_accuracy", "On valid, 0 to 1", "head")
        self._learning_rate = gauge("learning_rate", "Of the first group of parameters")
        self._step_s = Histogram(
            "mvfoul_training_step_duration_seconds",
            "From asking for the data of a step to its new weights; saving is not in it",
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._actions = counter("actions", "Labelled actions learnt from, over all processes")
        self._wait_s = counter("data_wait_seconds", "Spent waiting for data; part of the steps' durations")
        self._skipped = counter("skipped_steps", "Steps that changed nothing: their gradients were no numbers (fp16)")
        self._last_step = gauge("last_step_timestamp_seconds", "UNIX time of the last step; at first that of the start")
        self._gpu_bytes = gauge("gpu_memory_bytes", "That PyTorch holds of this process's GPU", "device")
        gauge("epochs_planned", "Epochs asked for, at most").set(config.loop.epochs)
        Info("mvfoul_training", "The run", registry=registry).info(
            {"run": run, "backbone": config.model.backbone, "aggregation": config.model.aggregation}
        )
        self._last_step.set_to_current_time()
        self._counted: dict[Counter, float] = {}
        self._seconds = 0.0

    def watch(self, learner: Learner) -> None:
        """Count what `learner` counts, and read its rate and its GPU at each scrape."""
        self._learner = learner
        self._learning_rate.set_function(lambda: float(learner.optimizer.param_groups[0]["lr"]))
        if learner.device.type == "cuda":
            index = torch.cuda.current_device() if learner.device.index is None else learner.device.index
            self._gpu_bytes.labels(str(index)).set_function(lambda: float(torch.cuda.memory_reserved(index)))

    def epoch_starts(self, step: int, result: PassResult) -> None:
        """Take what the steps before `step` saw as counted: an epoch can go on in its middle."""
        self._step.set(step)
        self._seconds, self._counted[self._wait_s] = result.seconds, result.wait_seconds

    def step_done(self, step: int, result: PassResult) -> None:
        """Note a step; `result` is of the epoch so far."""
        self._step.set(step)
        self._steps.inc()
        self._last_step.set_to_current_time()
        self._step_s.observe(result.seconds - self._seconds)
        self._seconds = result.seconds
        self._raise(self._wait_s, result.wait_seconds)
        self._raise(self._actions, self._learner.actions_seen)
        self._raise(self._skipped, self._learner.skipped_steps)
        self._loss.labels("train").set(result.loss)

    def epoch_done(self, values: Mapping[str, float], epoch: int) -> None:
        """Note the figures of an epoch, named as trackers get them; `epoch` counts from 1."""
        self._epoch.set(epoch)
        self._step.set(0)
        for split in ("train", "valid"):
            self._loss.labels(split).set(values[f"{split}/loss"])
        self._score.set(values["valid/score"])
        for head in VOCABULARIES:
            self._balanced_accuracy.labels(head).set(values[f"valid/{head}/balanced_accuracy"])

    def _raise(self, counter: Counter, total: float) -> None:
        counter.inc(max(total - self._counted.get(counter, 0.0), 0.0))
        self._counted[counter] = total


@contextmanager
def served_metrics(config: TrainConfig, run: str) -> Iterator[RunMetrics]:
    """Serve the metrics of a run, called `run`, until the context ends.

    Raises:
        ConfigError: The address cannot be listened on.
    """
    registry = CollectorRegistry()
    metrics = RunMetrics(config, run, registry)
    ProcessCollector(registry=registry)
    port, host = config.metrics.port, config.metrics.host
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigError(
            f"--metrics.port is {port}: cannot listen on {host}:{port} ({error}). Another process may have it: use "
            "another port, or 0 for no metrics."
        ) from error
    # Workers that decode clips are forks and can outlive a killed run by seconds: they must not hold its port.
    os.register_at_fork(after_in_child=server.socket.close)
    try:
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
