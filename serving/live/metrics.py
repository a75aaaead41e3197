"""The Prometheus metrics of a console, in base units; those of cameras are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from serving.live.camera import CameraHealth

STAGES: Final = ("wait", "cut", "request", "audit", "total")
TRIGGERS: Final = ("operator", "http", "timecode", "continuous", "review")
OUTCOMES: Final = ("decided", "abstained", "failed")
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class LiveMetrics:
    """Counters of decisions."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.decisions = Counter(
            "mvfoul_live_decisions", "Questions to the server that ended", ("trigger", "outcome"), registry=registry
        )
        self.stage_s = Histogram(
            "mvfoul_live_decision_duration_seconds",
            "From trigger to a decision on disk, by stage",
            ("stage",),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self.audit_failures = Counter(
            "mvfoul_live_audit_failures", "Decisions that could not be written to the audit log", registry=registry
        )
        for trigger in TRIGGERS:
            for outcome in OUTCOMES:
                self.decisions.labels(trigger, outcome)
        for stage in STAGES:
            self.stage_s.labels(stage)


_GAUGES: Final = (
    ("delay_seconds", "From the picture to its arrival", "delay_s"),
    ("jitter_seconds", "Spread of the arrival times", "jitter_s"),
    ("buffer_seconds", "Held in the ring buffer", "buffer_s"),
    ("buffer_bytes", "Held in the ring buffer", "buffer_bytes"),
)
_COUNTERS: Final = (
    ("frames", "Frames that arrived", "frames"),
    ("frames_dropped", "Frames that did not arrive", "dropped"),
    ("reconnects", "Connections after the first", "reconnects"),
    ("camera_clock_jumps", "Jumps of the timestamps", "clock_jumps"),
)


class CameraCollector(Collector):
    """Reads the health of all cameras at each scrape."""

    def __init__(self, healths: Callable[[], Sequence[CameraHealth]]) -> None:
        self._healths = healths

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the names are known without asking a camera."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Yield every camera's figures."""
        healths = self._healths()
        up = GaugeMetricFamily("mvfoul_live_camera_up", "1 if the camera delivers a usable picture", labels=["camera"])
        for health in healths:
            up.add_metric([health.name], float(health.state == "ok"))
        yield up
        for name, text, attribute in _GAUGES:
            prefix = "mvfoul_live_camera_" if attribute in ("delay_s", "jitter_s") else "mvfoul_live_"
            gauge = GaugeMetricFamily(prefix + name, text, labels=["camera"])
            for health in healths:
                gauge.add_metric([health.name], float(getattr(health, attribute)))
            yield gauge
        for name, text, attribute in _COUNTERS:
            counter = CounterMetricFamily("mvfoul_live_" + name, text, labels=["camera"])
            for health in healths:
                counter.add_metric([health.name], float(getattr(health, attribute)))
            yield counter
