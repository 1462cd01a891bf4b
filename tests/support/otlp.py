"""A real OTLP receiver: services export to it over gRPC, tests read spans from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)


@dataclass(frozen=True, slots=True)
class Span:
    """One span as it was received; ids in hex, times in nanoseconds since 1970."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    attributes: dict[str, str]

    def __str__(self) -> str:
        took = (self.end - self.start) / 1e6
        return (
            f"{self.service}: {self.name} {self.span_id} ← {self.parent_id or '-'} ({took:.1f} ms)"
        )


@dataclass(slots=True)
class Receiver(TraceServiceServicer):
    """All received spans, in the order of arrival. Example: `receiver.of_trace(trace_id)`."""

    target: str = ""
    spans: list[Span] = field(default_factory=list)

    async def Export(  # noqa: N802 - the method's name in the proto
        self, request: ExportTraceServiceRequest, context: object
    ) -> ExportTraceServiceResponse:
        for resource in request.resource_spans:
            names = {
                attribute.key: attribute.value.string_value
                for attribute in resource.resource.attributes
            }
            for scope in resource.scope_spans:
                self.spans.extend(
                    Span(
                        service=names.get("service.name", ""),
                        name=span.name,
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        start=span.start_time_unix_nano,
                        end=span.end_time_unix_nano,
                        attributes={
                            attribute.key: attribute.value.string_value
                            for attribute in span.attributes
                        },
                    )
                    for span in scope.spans
                )
        return ExportTraceServiceResponse()

    def of_trace(self, trace_id: str) -> dict[str, Span]:
        """Return a trace's spans by span_id."""
        return {span.span_id: span for span in self.spans if span.trace_id == trace_id}

    def way_up(self, span: Span) -> list[Span]:
        """Return a span and its ancestors, nearest first, as far as they were received."""
        spans = self.of_trace(span.trace_id)
        way = [span]
        while (parent := spans.get(way[-1].parent_id)) is not None:
            way.append(parent)
        return way


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """Run a receiver on a free loopback port while the block runs."""
    found = Receiver()
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    add_TraceServiceServicer_to_server(found, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    found.target = f"127.0.0.1:{port}"
    try:
        yield found
    finally:
        await server.stop(None)
