"""The stages that every call to a server passes; see the package."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import DecodeError, Message
from opentelemetry.trace import SpanKind
from structlog.contextvars import bind_contextvars

from deskwire_common import telemetry
from deskwire_common.auth import TokenVerifier, set_current_principal, token_expired
from deskwire_common.errors import (
    DeadlineExceeded,
    DeskwireError,
    Internal,
    InvalidArgument,
    stopping,
)
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_common.rpc.access import (
    Access,
    Authorization,
    authorize,
    bearer_token,
    metadata_value,
    refuse,
)
from deskwire_common.rpc.transport import DEADLINE
from deskwire_common.validation import Validator

_OPEN_PREFIXES = ("/grpc.health.v1.", "/grpc.reflection.")


class Streams:
    """The open streams of one server, which end with SHUTTING_DOWN and not with whatever the transport says."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Timeout] = set()
        self.ended = False

    def end(self) -> None:
        """End all streams, and those that are still to come."""
        self.ended = True
        now = asyncio.get_running_loop().time()
        for timeout in self._waiting:
            if not timeout.expired():
                timeout.reschedule(now)

    def waits(self, timeout: asyncio.Timeout) -> None:
        """Let `end` cut short what a stream waits for. Raises Unavailable after `end`."""
        if self.ended:
            raise stopping()
        self._waiting.add(timeout)

    def writes(self, timeout: asyncio.Timeout) -> None:
        """Let a stream write: a write that is cut short would leave no status to send."""
        self._waiting.discard(timeout)


class Stages(grpc.aio.ServerInterceptor):
    """The stages around every handler."""

    def __init__(
        self,
        authorization: Authorization,
        verifier: TokenVerifier,
        validator: Validator,
        inline_auth: Collection[str],
        access: Access,
        streams: Streams,
    ) -> None:
        self._authorization = authorization
        self._access = access
        self._verifier = verifier
        self._validator = validator
        self._inline = inline_auth
        self._streams = streams

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method in self._inline or method.startswith(_OPEN_PREFIXES):
            return handler
        if handler.response_streaming:
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            return make(
                self._stream(method, inner, streaming_request=handler.request_streaming),
                handler.request_deserializer,
                handler.response_serializer,
            )
        # Parse here and not in gRPC, which reports bytes that are no message as a fault of the server.
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary, handler.request_deserializer or bytes),
            None,
            handler.response_serializer,
        )

    def _unary(self, method: str, inner: Any, parse: Callable[[bytes], Any]) -> Any:
        async def unary(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            with _Serving(method, context) as serving:
                try:
                    self._enter(method, context)
                    request = _parsed(parse, data)
                    self._validator.check(request)
                    async with asyncio.timeout(context.time_remaining() or DEADLINE):
                        return await inner(request, context)
                except Exception as error:  # noqa: BLE001 - mapped, or logged as our fault
                    await refuse(context, serving.failed(error))

        return unary

    def _stream(self, method: str, inner: Any, *, streaming_request: bool) -> Any:
        async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            with _Serving(method, context) as serving:
                try:
                    seconds = self._enter(method, context)
                    if streaming_request:
                        request = self._checked(request)
                    else:
                        self._validator.check(request)
                    # A stream ends when the token that opened it ends.
                    async with asyncio.timeout(seconds) as token:
                        async with aclosing(inner(request, context)) as responses:
                            try:
                                self._streams.waits(token)
                                async for response in responses:
                                    self._streams.writes(token)
                                    yield response
                                    self._streams.waits(token)
                            finally:
                                self._streams.writes(token)
                except TimeoutError as error:
                    ended = stopping() if self._streams.ended else token_expired()
                    await refuse(context, serving.failed(ended if token.expired() else error))
                except Exception as error:  # noqa: BLE001 - mapped, or logged as our fault
                    await refuse(context, serving.failed(error))

        return stream

    async def _checked(self, requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
        async for request in requests:
            self._validator.check(request)
            yield request

    def _enter(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
        """Let the caller in; return for how many seconds, None for no limit."""
        if method in self._access.public:
            return None
        principal, expires = self._verifier.verify_with_expiry(bearer_token(context))
        authorize(method, self._authorization[method], principal, suite=self._access.suite)
        self._access.admit(principal)
        set_current_principal(principal)
        return self._verifier.seconds_until(expires)


def _parsed(parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError:
        raise InvalidArgument("the request is not an encoded message of its type") from None


class _Serving:
    """Request id, span, access line and metrics of one call."""

    def __init__(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._method = method
        self._context = context
        self._code = "OK"
        self._started = time.perf_counter()
        request_id = metadata_value(context, "x-request-id")[:64] or secrets.token_hex(8)
        bind_contextvars(request_id=request_id)
        self._span = telemetry.span(
            method.lstrip("/"),
            traceparent=metadata_value(context, "traceparent"),
            kind=SpanKind.SERVER,
        )

    def __enter__(self) -> Self:
        self._span.__enter__()
        METRICS.rpc_in_flight.labels(self._method).inc()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and self._code == "OK":
            self._code = "CANCELLED"
        seconds = time.perf_counter() - self._started
        get_logger().info(
            "rpc", method=self._method, code=self._code, milliseconds=round(seconds * 1000, 2)
        )
        METRICS.rpc_seconds.labels(self._method, self._code).observe(seconds)
        METRICS.rpc_in_flight.labels(self._method).dec()
        # AbortError is how grpc.aio ends a call; the span's failure is the code.
        self._span.__exit__(None, None, None)

    def failed(self, error: Exception) -> DeskwireError:
        """Return the error that the caller gets. A fault of the server is logged with an id that the error has, too."""
        if isinstance(error, DeskwireError):
            mapped = error
        elif isinstance(error, TimeoutError):
            mapped = DeadlineExceeded("the call took longer than its deadline; repeat it")
        elif isinstance(error, grpc.aio.AbortError):
            raise error
        else:
            error_id = secrets.token_hex(8)
            get_logger().error("rpc_failed", method=self._method, error_id=error_id, exc_info=error)
            mapped = Internal(f"a fault of deskwire's; its error id is {error_id}")
        self._code = mapped.code.name
        return mapped
