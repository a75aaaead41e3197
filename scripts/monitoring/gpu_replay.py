"""The metrics that exist on GPU machines only, played back: Triton's nv_gpu_* and a training process's GPU memory.

Names, labels and units are those of Triton's documentation (docs/user_guide/metrics.md) and of training/exposition.py;
the values are made up. It stands in for nothing else: whatever runs without a GPU is scraped from the real process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Gauge

from scripts.monitoring.served import served

METRICS = (
    "nv_gpu_utilization",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_memory_total_bytes",
    "mvfoul_training_gpu_memory_bytes",
)
_GPU = "GPU-00000000-replayed"


@contextmanager
def replayed_gpu() -> Iterator[str]:
    """Serve the metrics on a free port of loopback; yields host:port."""
    registry = CollectorRegistry()
    utilisation, used, total = (Gauge(name, "Replayed", ["gpu_uuid"], registry=registry) for name in METRICS[:3])
    training = Gauge(METRICS[3], "Replayed", ["device"], registry=registry)
    utilisation.labels(_GPU).set_function(lambda: 0.5 + 0.3 * math.sin(time.time() / 20))
    used.labels(_GPU).set(11 << 30)
    total.labels(_GPU).set(80 << 30)
    training.labels("0").set(31 << 30)
    with served(registry) as address:
        yield address
