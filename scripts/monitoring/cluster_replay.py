"""The metrics that exist in a cluster only, played back: what kube-state-metrics says of pods and jobs.

Names and labels are those of its documentation (docs/metrics/workload); the values are made up: a pod that runs, and a
job of which one pod has failed. It stands in for nothing else: what runs without a cluster is scraped from the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge

from scripts.monitoring.served import served

_POD, _CONTAINER, _JOB = "mvfoul-server-0", "kserve-container", "mvfoul-train"


@contextmanager
def replayed_cluster() -> Iterator[str]:
    """Serve the metrics on a free port of loopback; yields host:port."""
    registry = CollectorRegistry()
    phase = Gauge("kube_pod_status_phase", "Replayed", ["pod", "phase"], registry=registry)
    restarts = Counter("kube_pod_container_status_restarts_total", "Replayed", ["pod", "container"], registry=registry)
    failed = Gauge("kube_job_failed", "Replayed", ["job_name", "condition"], registry=registry)
    failed_pods = Gauge("kube_job_status_failed", "Replayed", ["job_name"], registry=registry)
    for name in ("Pending", "Running", "Succeeded", "Failed", "Unknown"):
        phase.labels(_POD, name).set(name == "Running")
    restarts.labels(_POD, _CONTAINER)
    for condition in ("true", "false", "unknown"):
        failed.labels(_JOB, condition).set(condition == "false")
    failed_pods.labels(_JOB).set(1)
    with served(registry) as address:
        yield address
