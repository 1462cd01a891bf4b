"""Traces: W3C context, OpenTelemetry spans, OTLP export where an endpoint is set.

The provider is deskwire's own, not OpenTelemetry's process-wide one, which can be set only once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
)
from opentelemetry.util.types import AttributeValue

from deskwire_common.ids import random_trace_id

__all__ = [
    "SpanKind",
    "Telemetry",
    "context_of",
    "current_trace_id",
    "current_traceparent",
    "sampled",
    "setup_telemetry",
    "span",
    "start_span",
    "traceparent_of",
    "tracer",
]

_NAME = "deskwire"
_FLUSH_MILLIS = 3000
_EXPORT_SECONDS = 3
# https://www.w3.org/TR/trace-context/#traceparent-header; a later version may append fields.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

_tracer: Tracer = trace.NoOpTracer()


class Telemetry:
    """The running export; close it last."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider

    async def close(self) -> None:
        """Send the buffered spans, for 3 seconds at the most, and stop. An unreachable collector is no error."""
        global _tracer  # noqa: PLW0603 (one tracer per process, like one log)
        _tracer = trace.NoOpTracer()
        await asyncio.to_thread(self._provider.force_flush, _FLUSH_MILLIS)
        await asyncio.to_thread(self._provider.shutdown)


def setup_telemetry(
    service: str,
    *,
    otlp_endpoint: str = "",
    sample_ratio: float = 1.0,
    processor: SpanProcessor | None = None,
) -> Telemetry:
    """Start tracing for this process. A trace that comes with a decision keeps it; a new one is sampled by
    `sample_ratio`.

    `otlp_endpoint` is a collector's gRPC address (`http://host:4317`, `https://…` for TLS, host:port is plaintext);
    "" exports nothing. `processor` receives the spans as well (tests).
    """
    global _tracer  # noqa: PLW0603 (one tracer per process, like one log)
    # When nobody takes spans, new traces begin unsampled: ids travel, nothing is recorded.
    ratio = sample_ratio if otlp_endpoint or processor else 0.0
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(ratio)),
        resource=Resource.create({"service.name": service, "service.namespace": _NAME}),
        shutdown_on_exit=False,
    )
    if processor is not None:
        provider.add_span_processor(processor)
    if otlp_endpoint:
        # Import here: it takes a fifth of a command's start, and only those who export need it.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )

        exporter = OTLPSpanExporter(
            endpoint=otlp_endpoint,
            insecure=not otlp_endpoint.startswith("https://"),
            timeout=_EXPORT_SECONDS,
        )
        provider.add_span_processor(
            BatchSpanProcessor(
                exporter, schedule_delay_millis=500, export_timeout_millis=_FLUSH_MILLIS
            )
        )
    _tracer = provider.get_tracer(_NAME)
    return Telemetry(provider)


def tracer() -> Tracer:
    """Return the process's tracer; one that records nothing before `setup_telemetry`."""
    return _tracer


def current_traceparent() -> str:
    """Return the W3C traceparent of the current span, or "" where there is none."""
    return traceparent_of(trace.get_current_span())


def traceparent_of(span: Span) -> str:
    """Return the W3C traceparent of a span, or "" when it is none."""
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"


def start_span(name: str, traceparent: str, *, kind: SpanKind = SpanKind.INTERNAL) -> Span:
    """Begin a span as a child of `traceparent`, for work that isn't one block; the caller ends it."""
    return _tracer.start_span(name, context=context_of(traceparent), kind=kind)


def current_trace_id() -> str:
    """Return the trace id of the current span, 32 hex digits; a random one where there is no span."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else random_trace_id()


def _parse(traceparent: str) -> SpanContext:
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return INVALID_SPAN_CONTEXT
    return SpanContext(
        trace_id=int(match[1], 16),
        span_id=int(match[2], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(match[3], 16) & TraceFlags.SAMPLED),
    )


def sampled(traceparent: str) -> bool:
    """Return whether `traceparent` is valid and its trace is recorded."""
    if not traceparent:
        return False
    context = _parse(traceparent)
    return context.is_valid and context.trace_flags.sampled


def context_of(traceparent: str) -> Context | None:
    """Return the context that makes a span a child of `traceparent`; None (the current one) when it's not valid."""
    context = _parse(traceparent)
    if not context.is_valid:
        return None
    return trace.set_span_in_context(NonRecordingSpan(context))


@contextmanager
def span(
    name: str,
    *,
    traceparent: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Iterator[Span]:
    """Run a block in a span: a child of `traceparent` where it is valid, else of the current span.

    An exception marks the span as failed (by its type: messages may hold what doesn't belong into traces)
    and passes on.
    """
    current = _tracer.start_span(
        name,
        context=context_of(traceparent) if traceparent else None,
        kind=kind,
        attributes=attributes,
    )
    with trace.use_span(
        current, end_on_exit=True, record_exception=False, set_status_on_exception=False
    ):
        try:
            yield current
        except Exception as error:
            current.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
