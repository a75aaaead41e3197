"""What the dashboards ask Prometheus, each query with the unit of its answer. Panels take them from here.

`$namespace` and `$__rate_interval` are Grafana's variables. Units are Grafana's names: s, bytes, percentunit (0 to 1),
short (a number), reqps (requests per second), cps (counts per second). A test derives the unit of each expression from
the names of its metrics and compares. Ratios with nothing below the line are NaN, which panels show as a gap.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Query:
    """One expression, the unit of what it gives, and how its series are called."""

    expr: str
    unit: str
    legend: str


_IN = 'namespace="$namespace"'
_SERVER = f'{_IN},job="mvfoul-server"'
_TRAINING = f'{_IN},job="mvfoul-training"'
_WINDOW = "[$__rate_interval]"
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def _rate(metric: str, *matchers: str, by: str = "") -> str:
    labels = ",".join((_IN, *matchers))
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{labels}}}{_WINDOW}))"


def _total(metric: str, *, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} ({metric}{{{_IN}}})"


def _quantile(quantile: float, metric: str, *matchers: str, by: str = "") -> str:
    return f"histogram_quantile({quantile}, {_rate(f'{metric}_bucket', *matchers, by=f'{by}, le' if by else 'le')})"


def _mean(histogram: str) -> str:
    return f"{_rate(f'{histogram}_sum')} / {_rate(f'{histogram}_count')}"


def _quantiles(metric: str, unit: str, *matchers: str) -> tuple[Query, ...]:
    return tuple(Query(_quantile(q, metric, *matchers), unit, name) for name, q in QUANTILES.items())


_REQUESTS = "mvfoul_request_duration_seconds"
_OK = 'outcome="ok"'

# The server at a glance.
REQUESTS = Query(_rate(f"{_REQUESTS}_count"), "reqps", "requests")
ANSWERED = Query(f"{_rate(f'{_REQUESTS}_count', _OK)} / {_rate(f'{_REQUESTS}_count')}", "percentunit", "answered")
LATENCY_P95 = Query(_quantile(0.95, _REQUESTS, _OK), "s", "p95")
READY = Query(_total("mvfoul_ready"), "short", "ready")
SLOW_BURN = Query(f"namespace:mvfoul_slow_requests:ratio_rate1h{{{_IN}}} / 0.01", "short", "latency")
FAILED_BURN = Query(f"namespace:mvfoul_failed_requests:ratio_rate1h{{{_IN}}} / 0.001", "short", "errors")
ARTIFACT = Query(
    _total("mvfoul_artifact_info", by="version, backbone, precision, role"), "short", "{{version}} {{role}}"
)

# Its traffic and errors.
REQUESTS_BY_PROTOCOL = Query(_rate(f"{_REQUESTS}_count", by="protocol"), "reqps", "{{protocol}}")
ERRORS_BY_REASON = Query(_rate("mvfoul_errors_total", by="reason"), "reqps", "{{reason}}")
FAILED_RATIO = Query(f"namespace:mvfoul_failed_requests:ratio_rate5m{{{_IN}}}", "percentunit", "failed (5 min)")
SLOW_RATIO = Query(f"namespace:mvfoul_slow_requests:ratio_rate5m{{{_IN}}}", "percentunit", "slower than 1 s (5 min)")
VIEWS_PER_REQUEST = Query(_mean("mvfoul_views_per_request"), "short", "mean")

# Its latency.
REQUEST_LATENCY = _quantiles(_REQUESTS, "s", _OK)
STAGE_LATENCY = {
    name: Query(_quantile(q, "mvfoul_stage_duration_seconds", by="stage"), "s", "{{stage}}")
    for name, q in QUANTILES.items()
}
LATENCY_HEATMAP = Query(_rate(f"{_REQUESTS}_bucket", _OK, by="le"), "reqps", "{{le}}")

# Its queue, batches, self-test.
IN_FLIGHT = Query(_total("mvfoul_requests_in_flight"), "short", "in flight")
MAX_IN_FLIGHT = Query(_total("mvfoul_max_in_flight"), "short", "accepted at most")
QUEUE_DEPTH = Query(_total("mvfoul_queue_depth", by="queue"), "short", "{{queue}}")
BATCH_MEAN = Query(_mean("mvfoul_encoder_batch_views"), "short", "mean")
BATCH_P95 = Query(_quantile(0.95, "mvfoul_encoder_batch_views"), "short", "p95")
OVERLOADED = Query(_rate("mvfoul_errors_total", 'reason="overloaded"'), "reqps", "overloaded")
SELF_TESTS = Query(_rate("mvfoul_self_tests_total", by="outcome"), "cps", "{{outcome}}")
SELF_TEST_P95 = Query(_quantile(0.95, "mvfoul_self_test_duration_seconds"), "s", "p95")

# Its decisions.
ACTIONS = Query(_rate("mvfoul_predictions_total", 'head="action"', by="label"), "cps", "{{label}}")
SEVERITIES = Query(_rate("mvfoul_predictions_total", 'head="offence_severity"', by="label"), "cps", "{{label}}")
ABSTAINED = Query(
    f"{_rate('mvfoul_abstentions_total', by='head')} / {_rate('mvfoul_predictions_total', by='head')}",
    "percentunit",
    "{{head}}",
)
CONFIDENCE_P50 = Query(_quantile(0.5, "mvfoul_confidence", by="head"), "percentunit", "{{head}} p50")
CONFIDENCE_P10 = Query(_quantile(0.1, "mvfoul_confidence", by="head"), "percentunit", "{{head}} p10")
DRIFT = Query(f"max by (head, of) (mvfoul_drift_psi{{{_IN}}})", "short", "{{head}}, {{of}}")
DRIFT_ANSWERS = Query(_total("mvfoul_drift_answers"), "short", "answers compared")

# Its sessions and releases.
SESSIONS = Query(_total("mvfoul_sessions"), "short", "open")
SESSION_ENDS = Query(_rate("mvfoul_session_ends_total", by="reason"), "cps", "{{reason}}")
SWAPS = Query(f"sum by (outcome) (mvfoul_artifact_swaps_total{{{_IN}}})", "short", "{{outcome}}")
ROUTED = Query(_rate("mvfoul_routed_requests_total", by="role"), "reqps", "{{role}}")
SHADOW_ANSWERS = Query(_rate("mvfoul_shadow_answers_total", by="outcome"), "cps", "{{outcome}}")
SHADOW_AGREEMENT = Query(
    _rate("mvfoul_shadow_agreements_total", 'agrees="true"', by="head")
    + f" / {_rate('mvfoul_shadow_agreements_total', by='head')}",
    "percentunit",
    "{{head}}",
)

# Triton: durations are counters in microseconds
TRITON_REQUESTS = Query(_rate("nv_inference_request_success", by="model"), "reqps", "{{model}}")
TRITON_FAILURES = Query(_rate("nv_inference_request_failure", by="model"), "reqps", "{{model}} failed")
TRITON_RETRIES = Query(_rate("mvfoul_triton_retries_total"), "reqps", "asked again")


def _triton_mean(duration: str) -> str:
    return f"{_rate(duration, by='model')} / {_rate('nv_inference_request_success', by='model')} / 1e6"


TRITON_REQUEST_MEAN = Query(_triton_mean("nv_inference_request_duration_us"), "s", "{{model}}")
TRITON_QUEUE_MEAN = Query(_triton_mean("nv_inference_queue_duration_us"), "s", "{{model}} queue")
TRITON_COMPUTE_MEAN = Query(_triton_mean("nv_inference_compute_infer_duration_us"), "s", "{{model}} compute")
TRITON_BATCH = Query(
    f"{_rate('nv_inference_count', by='model')} / {_rate('nv_inference_exec_count', by='model')}", "short", "{{model}}"
)
TRITON_PENDING = Query(_total("nv_inference_pending_request_count", by="model"), "short", "{{model}}")
GPU_UTILISATION = Query(f"max by (pod, gpu_uuid) (nv_gpu_utilization{{{_IN}}})", "percentunit", "{{pod}} {{gpu_uuid}}")
GPU_MEMORY = Query(_total("nv_gpu_memory_used_bytes", by="pod, gpu_uuid"), "bytes", "{{pod}} {{gpu_uuid}}")
GPU_MEMORY_LIMIT = Query(_total("nv_gpu_memory_total_bytes", by="pod, gpu_uuid"), "bytes", "{{pod}} installed")

# Processes of the server
CPU = Query(f"sum by (pod) (rate(process_cpu_seconds_total{{{_SERVER}}}{_WINDOW}))", "short", "{{pod}}")
MEMORY = Query(f"sum by (pod) (process_resident_memory_bytes{{{_SERVER}}})", "bytes", "{{pod}}")
FILES = Query(f"max by (pod) (process_open_fds{{{_SERVER}}} / process_max_fds{{{_SERVER}}})", "percentunit", "{{pod}}")

# Live
CAMERAS_UP = Query(f"min by (camera) (mvfoul_live_camera_up{{{_IN}}})", "short", "{{camera}}")
CAMERA_DELAY = Query(f"max by (camera) (mvfoul_live_camera_delay_seconds{{{_IN}}})", "s", "{{camera}}")
CAMERA_JITTER = Query(f"max by (camera) (mvfoul_live_camera_jitter_seconds{{{_IN}}})", "s", "{{camera}}")
CAMERA_FRAMES = Query(_rate("mvfoul_live_frames_total", by="camera"), "cps", "{{camera}}")
CAMERA_DROPPED = Query(_rate("mvfoul_live_frames_dropped_total", by="camera"), "cps", "{{camera}} dropped")
CAMERA_RECONNECTS = Query(_rate("mvfoul_live_reconnects_total", by="camera"), "cps", "{{camera}}")
CAMERA_BUFFER = Query(f"min by (camera) (mvfoul_live_buffer_seconds{{{_IN}}})", "s", "{{camera}}")
CAMERA_BUFFER_BYTES = Query(_total("mvfoul_live_buffer_bytes", by="camera"), "bytes", "{{camera}}")
LIVE_DECISIONS = Query(_rate("mvfoul_live_decisions_total", by="trigger, outcome"), "cps", "{{trigger}}, {{outcome}}")
LIVE_LATENCY = Query(_quantile(0.95, "mvfoul_live_decision_duration_seconds", by="stage"), "s", "{{stage}}")
LIVE_AUDIT_FAILURES = Query(_rate("mvfoul_live_audit_failures_total"), "cps", "not written")

# Training
EPOCH = Query(_total("mvfoul_training_epoch"), "short", "epoch")
EPOCHS_PLANNED = Query(_total("mvfoul_training_epochs_planned"), "short", "planned")
STEPS = Query(_total("mvfoul_training_step"), "short", "step")
RUN = Query(_total("mvfoul_training_info", by="run, backbone, aggregation"), "short", "{{run}} {{backbone}}")
SCORE = Query(f"max by (pod) (mvfoul_training_score{{{_IN}}})", "percentunit", "{{pod}}")
SINCE_LAST_STEP = Query(f"time() - max(mvfoul_training_last_step_timestamp_seconds{{{_IN}}})", "s", "since")
LOSS = Query(f"max by (split) (mvfoul_training_loss{{{_IN}}})", "short", "{{split}}")
BALANCED_ACCURACY = Query(f"max by (head) (mvfoul_training_balanced_accuracy{{{_IN}}})", "percentunit", "{{head}}")
LEARNING_RATE = Query(f"max by (pod) (mvfoul_training_learning_rate{{{_IN}}})", "none", "{{pod}}")
STEP_LATENCY = _quantiles("mvfoul_training_step_duration_seconds", "s")
STEP_RATE = Query(_rate("mvfoul_training_steps_total"), "cps", "steps")
ACTION_RATE = Query(_rate("mvfoul_training_actions_total"), "cps", "actions")
DATA_WAIT = Query(_rate("mvfoul_training_data_wait_seconds_total", by="pod"), "percentunit", "{{pod}}")
SKIPPED_STEPS = Query(_rate("mvfoul_training_skipped_steps_total"), "cps", "skipped")
TRAINING_GPU_MEMORY = Query(_total("mvfoul_training_gpu_memory_bytes", by="pod, device"), "bytes", "{{pod}} {{device}}")
TRAINING_CPU = Query(f"sum by (pod) (rate(process_cpu_seconds_total{{{_TRAINING}}}{_WINDOW}))", "short", "{{pod}}")
TRAINING_MEMORY = Query(f"sum by (pod) (process_resident_memory_bytes{{{_TRAINING}}})", "bytes", "{{pod}}")
