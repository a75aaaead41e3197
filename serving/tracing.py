"""OpenTelemetry spans: one per request, one per stage below it; Triton's own become children of the stage that asks it.

Imported only with `--trace-endpoint`. A thread sends the spans in batches (OTLP over HTTP, protobuf); a collector that
is away costs spans, never a request. They say who was slow and what was answered: no clips, no tokens, no headers of
the client but the W3C's trace context, whose trace the spans join.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from mvfoul.errors import ConfigError
from serving.call import Trace

try:
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, format_trace_id, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as error:
    raise ConfigError(
        f"--trace-endpoint needs OpenTelemetry ({error}). Install it: pip install 'vars-platform[tracing]'"
    ) from error

_HEADERS: Final = ("traceparent", "tracestate")
_SERVICE: Final = "mvfoul-serving"
_EXPORT_S: Final = 5.0
_LAST_EXPORT_S: Final = 3.0

_propagator: Final = TraceContextTextMapPropagator()


class OpenTelemetry:
    """See `serving.call.Tracing`."""

    def __init__(self, endpoint: str, ratio: float) -> None:
        """Start the thread that sends.

        Args:
            endpoint: http://host:port of a collector.
            ratio: Share of the traces that begin here; those of a client are followed where it samples them.
        """
        sampler = ParentBased(TraceIdRatioBased(ratio))
        self._provider = TracerProvider(
            sampler=sampler, resource=Resource.create({"service.name": _SERVICE}), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(_SERVICE)

    @contextmanager
    def request(self, protocol: str, headers: Iterable[tuple[str, str | bytes]]) -> Iterator[Trace]:
        """See `serving.call.Tracing`."""
        carrier = {name: value for name, value in headers if name in _HEADERS and isinstance(value, str)}
        span = self._tracer.start_span("classify", _propagator.extract(carrier, Context()), SpanKind.SERVER)
        span.set_attribute("mvfoul.protocol", protocol)
        try:
            yield _RequestTrace(self._tracer, span)
        finally:
            span.end()

    def close(self) -> None:
        """Send what is left, within seconds: a collector that is away must not hold up the end of the process."""
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(_LAST_EXPORT_S)


class _RequestTrace:
    """See `serving.call.Trace`. The stages of a request come one after the other, on any thread."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._context = set_span_in_context(span, Context())
        self._stage = self._context

    @property
    def trace_id(self) -> str:
        return format_trace_id(self._span.get_span_context().trace_id)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        span = self._tracer.start_span(name, self._context)
        self._stage = set_span_in_context(span, Context())
        try:
            yield
        except BaseException:
            span.set_status(StatusCode.ERROR)
            raise
        finally:
            self._stage = self._context
            span.end()

    def past_stage(self, name: str, seconds: float) -> None:
        end = time.time_ns()
        self._tracer.start_span(name, self._context, start_time=end - int(seconds * 1e9)).end(end)

    def headers(self) -> tuple[tuple[str, str], ...]:
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, self._stage)
        return tuple(carrier.items())

    def describe(self, facts: Mapping[str, Any]) -> None:
        for name, value in facts.items():
            for key, item in value.items() if isinstance(value, Mapping) else [("", value)]:
                self._span.set_attribute(f"mvfoul.{name}.{key}".rstrip("."), item)

    def failed(self, reason: str) -> None:
        self._span.set_status(StatusCode.ERROR, reason)
        self._span.set_attribute("mvfoul.reason", reason)
