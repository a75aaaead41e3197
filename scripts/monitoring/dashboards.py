"""Which panels the two dashboards have, in which rows. How Grafana wants them written: grafana.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scripts.monitoring import queries as q
from scripts.monitoring.queries import Query

Kind = Literal["timeseries", "stat", "heatmap"]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture. All its queries have one unit."""

    title: str
    queries: tuple[Query, ...]
    about: str = ""
    """Grafana shows it behind the panel's (i)."""
    kind: Kind = "timeseries"
    width: int = 8
    """Of 24 columns."""
    stacked: bool = False
    limit: float | None = None
    """A line to stay below, in the queries' unit; a stat turns red above it."""
    floor: float | None = None
    """A stat turns red below it."""
    named: bool = False
    """A stat that shows the names of its series, not their value."""

    @property
    def unit(self) -> str:
        """The one unit of its queries.

        Raises:
            ValueError: They have several.
        """
        units = {query.unit for query in self.queries}
        if len(units) != 1:
            raise ValueError(f"panel {self.title!r} mixes units {sorted(units)}: give each its own panel")
        return units.pop()


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Dashboard:
    """What one JSON file holds."""

    uid: str
    """Its address in Grafana."""
    title: str
    about: str
    namespaces: str
    """The metric whose namespaces can be chosen."""
    rows: tuple[Row, ...]


def _graph(title: str, *queries: Query, about: str = "", width: int = 8, limit: float | None = None) -> Panel:
    return Panel(title=title, queries=queries, about=about, width=width, limit=limit)


def _stack(title: str, query: Query, about: str = "", width: int = 8) -> Panel:
    return Panel(title=title, queries=(query,), about=about, width=width, stacked=True)


def _stat(
    title: str, query: Query, about: str = "", *, limit: float | None = None, floor: float | None = None
) -> Panel:
    return Panel(title=title, queries=(query,), about=about, kind="stat", width=4, limit=limit, floor=floor)


def _names(title: str, query: Query, width: int) -> Panel:
    return Panel(title=title, queries=(query,), kind="stat", width=width, named=True)


_GLANCE = Row(
    "At a glance",
    (
        _stat("Requests", q.REQUESTS),
        _stat("Answered", q.ANSWERED, "Share of requests that got a decision, whoever is to blame.", floor=0.95),
        _stat("Latency p95", q.LATENCY_P95, limit=1.0),
        _stat("Ready replicas", q.READY, floor=1),
        _stat("Latency budget burn", q.SLOW_BURN, "1: used up in exactly 30 days. 14.4 calls somebody.", limit=14.4),
        _stat("Error budget burn", q.FAILED_BURN, "1: used up in exactly 30 days. 14.4 calls somebody.", limit=14.4),
        _names("Artifacts", q.ARTIFACT, 24),
    ),
)
_TRAFFIC = Row(
    "Traffic and errors",
    (
        _stack("Requests by protocol", q.REQUESTS_BY_PROTOCOL),
        _stack("Errors by reason", q.ERRORS_BY_REASON, "What each reason means: docs/serving.md."),
        _graph(
            "Failed for a reason of ours", q.FAILED_RATIO, about="Objective: at most 0.1 % over 30 days.", limit=0.001
        ),
    ),
)
_LATENCY = Row(
    "Latency",
    (
        _graph("Request latency", *q.REQUEST_LATENCY, about="Answered requests, from arrival to answer.", limit=1.0),
        Panel(title="Request latency, distribution", queries=(q.LATENCY_HEATMAP,), kind="heatmap"),
        _graph("Slower than 1 s", q.SLOW_RATIO, about="Objective: at most 1 % over 30 days.", limit=0.01),
        *(_graph(f"Stages, {name}", query) for name, query in q.STAGE_LATENCY.items()),
    ),
)
_QUEUE = Row(
    "Queue and batches",
    (
        _graph("Requests in flight", q.IN_FLIGHT, q.MAX_IN_FLIGHT, about="One more than accepted is refused."),
        _graph(
            "Queue depth", q.QUEUE_DEPTH, about="decode: clips waiting or being decoded; encode: actions at the graphs."
        ),
        _graph("Refused as overloaded", q.OVERLOADED),
        _graph(
            "Views per encoder call",
            q.BATCH_MEAN,
            q.BATCH_P95,
            about="How well views of several requests share a batch.",
        ),
        _graph("Views per request", q.VIEWS_PER_REQUEST),
        _graph(
            "Self-tests",
            q.SELF_TESTS,
            about="Inferences of the golden inputs, while no request proves that the server is ready.",
            width=4,
        ),
        _graph("Self-test p95", q.SELF_TEST_P95, width=4),
    ),
)
_DECISIONS = Row(
    "Decisions",
    (
        _stack("Action classes", q.ACTIONS, "Most probable label, abstained ones included."),
        _stack("Offence severities", q.SEVERITIES, "Most probable label, abstained ones included."),
        _graph("Abstained", q.ABSTAINED, about="Best probability below the threshold.", limit=0.5),
        _graph("Confidence", q.CONFIDENCE_P50, q.CONFIDENCE_P10),
        _graph(
            "Drift (PSI)", q.DRIFT, about="Below 0.1: as in the evaluation. Above 0.25: another population.", limit=0.25
        ),
        _graph("Answers that drift looks at", q.DRIFT_ANSWERS),
    ),
)
_RELEASES = Row(
    "Sessions and releases",
    (
        _graph("Open sessions", q.SESSIONS, about="Actions whose views arrive one by one."),
        _graph("Sessions ended", q.SESSION_ENDS),
        _graph("Artifact swaps", q.SWAPS, about="Since each replica's start."),
        _stack("Requests by role", q.ROUTED, "primary, canary, shadow"),
        _graph("Shadow answers", q.SHADOW_ANSWERS),
        _graph("Shadow agrees", q.SHADOW_AGREEMENT),
    ),
)
_TRITON = Row(
    "Triton and GPU",
    (
        _graph("Triton requests", q.TRITON_REQUESTS),
        _graph("Failures and second tries", q.TRITON_FAILURES, q.TRITON_RETRIES),
        _graph("Waiting in Triton", q.TRITON_PENDING),
        _graph("Request time, mean", q.TRITON_REQUEST_MEAN),
        _graph("Queue and compute time, mean", q.TRITON_QUEUE_MEAN, q.TRITON_COMPUTE_MEAN),
        _graph("Batch size, mean", q.TRITON_BATCH),
        _graph("GPU utilisation", q.GPU_UTILISATION, width=12),
        _graph("GPU memory", q.GPU_MEMORY, q.GPU_MEMORY_LIMIT, width=12),
    ),
)
_LIVE = Row(
    "Live",
    (
        _graph("Cameras up", q.CAMERAS_UP),
        _graph("Camera delay", q.CAMERA_DELAY),
        _graph("Camera jitter", q.CAMERA_JITTER),
        _graph("Frames", q.CAMERA_FRAMES, q.CAMERA_DROPPED),
        _graph("Reconnects", q.CAMERA_RECONNECTS),
        _graph("Buffered time", q.CAMERA_BUFFER),
        _graph("Buffered bytes", q.CAMERA_BUFFER_BYTES),
        _graph("Live decisions", q.LIVE_DECISIONS),
        _graph("Live decision p95 by stage", q.LIVE_LATENCY),
        _graph("Decisions missing in the audit log", q.LIVE_AUDIT_FAILURES),
    ),
)
_PROCESSES = Row(
    "Server processes",
    (
        _graph("CPUs used", q.CPU),
        _graph("Memory", q.MEMORY),
        _graph("Open files of those allowed", q.FILES, limit=0.8),
    ),
)

SERVING = Dashboard(
    uid="mvfoul-serving-latency",
    title="Serving latency",
    about="Requests, errors, latency by stage, queues, batches, decisions, drift, releases, Triton, GPU, live.",
    namespaces="mvfoul_ready",
    rows=(_GLANCE, _TRAFFIC, _LATENCY, _QUEUE, _DECISIONS, _RELEASES, _TRITON, _LIVE, _PROCESSES),
)

TRAINING = Dashboard(
    uid="mvfoul-training",
    title="Training",
    about="Progress, losses, scores, speed, data, memory of a training run.",
    namespaces="mvfoul_training_epoch",
    rows=(
        Row(
            "Progress",
            (
                _stat("Epoch", q.EPOCH),
                _stat("Epochs planned", q.EPOCHS_PLANNED),
                _stat("Steps", q.STEPS),
                _stat("Score", q.SCORE, "Mean of the two balanced accuracies on the validation split."),
                _stat("Since the last step", q.SINCE_LAST_STEP, limit=1800),
                _stat("Actions per second", q.ACTION_RATE),
                _names("Run", q.RUN, 24),
            ),
        ),
        Row(
            "Quality",
            (
                _graph("Loss", q.LOSS),
                _graph("Balanced accuracy", q.BALANCED_ACCURACY, about="On the validation split."),
                _graph("Learning rate", q.LEARNING_RATE),
            ),
        ),
        Row(
            "Speed",
            (
                _graph("Step duration", *q.STEP_LATENCY),
                _graph(
                    "Steps and skipped steps",
                    q.STEP_RATE,
                    q.SKIPPED_STEPS,
                    about="Skipped: gradients that are no numbers.",
                ),
                _graph("Time spent waiting for clips", q.DATA_WAIT, limit=0.3),
                _graph("GPU memory", q.TRAINING_GPU_MEMORY),
                _graph("CPUs used", q.TRAINING_CPU),
                _graph("Memory", q.TRAINING_MEMORY),
            ),
        ),
    ),
)

DASHBOARDS = (SERVING, TRAINING)
