"""What is told of each request: metrics, one line in the log, and a span where tracing is on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from serving.call import TRANSPORT, Call, Trace, Tracing
from serving.engine import Answer
from serving.json_log import fields
from serving.metrics import Metrics
from serving.status import INTERNAL, message_of, status_of

log = logging.getLogger("mvfoul.serving")


class Observer:
    """One per server."""

    def __init__(self, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self.metrics = metrics
        self._tracing = tracing

    @contextmanager
    def request(self, protocol: str, headers: Iterable[tuple[str, str | bytes]]) -> Iterator[Trace | None]:
        """Time, count, trace and log one request; errors pass through.

        Args:
            protocol: "grpc" or "rest".
            headers: Of the request, names in lower case; only those of the W3C's trace context are read.
        """
        tracing = self._tracing
        span = tracing.request(protocol, headers) if tracing else nullcontext()
        with self.metrics.request(protocol), span as trace:
            try:
                yield trace
            except BaseException as error:
                self._failed(protocol, error, trace)
                raise

    def answered(self, answer: Answer, call: Call) -> None:
        """Tell of an answer."""
        self.metrics.answered(answer)
        prediction = answer.prediction
        labels = {head.head: head.label for head in (prediction.action, prediction.offence_severity)}
        told: dict[str, Any] = {
            "request_id": call.request_id,
            "client": call.client,
            "artifact": answer.artifact.version,
            "role": answer.role,
            "views": len(prediction.view_weights),
            "new_views": answer.new_views,
            "labels": labels,
            "confidences": {
                head.head: round(head.confidence, 4) for head in (prediction.action, prediction.offence_severity)
            },
            "stages_ms": answer.stages_ms,
        }
        if call.trace is not None:
            call.trace.describe(told)
            told["trace_id"] = call.trace.trace_id
        stages = " ".join(f"{stage} {ms:.1f}" for stage, ms in answer.stages_ms.items())
        names = " ".join(map(repr, labels.values()))
        log.info(
            "answered id=%r views=%d %s ms: %s", call.request_id, told["views"], names, stages, extra=fields(**told)
        )

    @staticmethod
    def _failed(protocol: str, error: BaseException, trace: Trace | None) -> None:
        reason = status_of(error).reason
        transport = TRANSPORT.get()
        told = {"protocol": protocol, "request_id": transport.request_id, "client": transport.client, "reason": reason}
        if trace is not None:
            trace.failed(reason)
            told["trace_id"] = trace.trace_id
        # One line. Where a bug happened is logged by the server that ends the request, for every kind of call.
        if reason == INTERNAL.reason:
            log.error("%s request failed: %r id=%r", protocol, error, transport.request_id, extra=fields(**told))
        else:
            named = transport.request_id
            log.warning(
                "%s request refused: %s: %s id=%r", protocol, reason, message_of(error), named, extra=fields(**told)
            )
