"""OpenTelemetry: a span for each event that was pushed, as a part of the trace that deskwire began."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator


class Tracing:
    """`endpoint` is a collector's gRPC address (`http://host:4317`); "" sends nothing."""

    def __init__(self, endpoint: str = "") -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "demo-crm"}), shutdown_on_exit=False
        )
        if endpoint:
            exporter = OTLPSpanExporter(
                endpoint=endpoint, insecure=not endpoint.startswith("https://"), timeout=3
            )
            self._provider.add_span_processor(
                BatchSpanProcessor(exporter, schedule_delay_millis=500)
            )
        self._tracer = self._provider.get_tracer("demo_crm")

    @contextmanager
    def span(self, name: str, traceparent: str) -> Iterator[Span]:
        """Run a block in a span that is a child of `traceparent` (W3C)."""
        context = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
        with self._tracer.start_as_current_span(name, context, kind=SpanKind.SERVER) as span:
            yield span

    def close(self) -> None:
        """Send what is buffered, at the most three seconds long."""
        self._provider.force_flush(3000)
        self._provider.shutdown()
