"""The stages that every call to a server passes; see the package."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
from google.protobuf.message import DecodeError, Message
from opentelemetry.trace import SpanKind
from structlog.contextvars import bind_contextvars

from deskwire.common.v1.error_reason_pb2 import ErrorReason
from deskwire_common import telemetry
from deskwire_common.auth import (
    Principal,
    TokenVerifier,
    set_current_peer,
    set_current_principal,
    token_expired,
)
from deskwire_common.errors import (
    DeadlineExceeded,
    DeskwireError,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    stopping,
)
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_common.rpc.access import (
    Access,
    Authorization,
    Metadata,
    authorize,
    bearer_token,
    metadata_value,
    peer_of,
    refuse,
)
from deskwire_common.rpc.transport import DEADLINE
from deskwire_common.validation import Validator

_OPEN_PREFIXES = ("/grpc.health.v1.", "/grpc.reflection.")


class _Caller(NamedTuple):
    """Whose call it is: the token, whom it names, and for how many seconds it is good."""

    token: str
    principal: Principal
    seconds: float


class OpenStream:
    """A stream that is served: what cuts short its wait for the next response, and why."""

    def __init__(self, caller: _Caller | None) -> None:
        self.token = caller.token if caller else ""
        # A stream ends when the token that opened it ends.
        self.timeout = asyncio.timeout(caller.seconds if caller else None)
        self._waiting = False
        self._error: DeskwireError | None = None

    def end(self, error: DeskwireError) -> None:
        """End it with an error, as soon as it waits."""
        self._error = self._error or error
        if self._waiting and not self.timeout.expired():
            self.timeout.reschedule(asyncio.get_running_loop().time())

    def waits(self) -> None:
        """Note that it waits for a response. Raises what it was ended with."""
        if self._error is not None:
            raise self._error
        self._waiting = True

    def writes(self) -> None:
        """Note that it writes: a write that is cut short would leave no status to send."""
        self._waiting = False

    def ended(self, error: TimeoutError) -> Exception:
        """Return what a timeout stands for: what it was ended with, the end of its token, or one of its own."""
        if not self.timeout.expired():
            return error
        return self._error or token_expired()


class Streams:
    """The open streams of one server, which end with an error of ours and not with whatever the transport says."""

    def __init__(self) -> None:
        self._open: set[OpenStream] = set()
        self._stopping = False

    def stop(self) -> None:
        """End all streams with SHUTTING_DOWN, and those that are still to come."""
        self._stopping = True
        for each in self._open:
            each.end(stopping())

    def recheck(self, check: Callable[[str], object]) -> None:
        """End the streams whose token doesn't pass `check` any more, with the error that it raises."""
        for each in self._open:
            try:
                if each.token:
                    check(each.token)
            except DeskwireError as error:
                each.end(error)

    @contextmanager
    def one(self, caller: _Caller | None) -> Iterator[OpenStream]:
        """Have one more stream during the block."""
        made = OpenStream(caller)
        if self._stopping:
            made.end(stopping())
        self._open.add(made)
        try:
            yield made
        finally:
            self._open.discard(made)


class Stages(grpc.aio.ServerInterceptor):
    """The stages around every handler."""

    def __init__(
        self,
        authorization: Authorization,
        verifier: TokenVerifier,
        validator: Validator,
        inline_auth: Collection[str],
        access: Access,
    ) -> None:
        self._authorization = authorization
        self._access = access
        self._verifier = verifier
        self._validator = validator
        self._inline = inline_auth
        self.streams = Streams()
        self._seen = self._generation()

    def recheck(self) -> None:
        """End the streams of callers whose key or who themselves are shut out since the last time."""
        if (generation := self._generation()) != self._seen:
            self._seen = generation
            self.streams.recheck(self._admitted)

    def _generation(self) -> tuple[int, int]:
        return self._verifier.generation(), self._access.admission.generation

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
        try:
            # Before gRPC receives the request: whoever isn't let in costs no memory.
            caller = self._enter(method, handler_call_details.invocation_metadata)
        except Exception as error:  # noqa: BLE001 - mapped, or logged as our fault
            return _refusing(method, error, streams=handler.response_streaming)
        parse = partial(self._request, method, handler.request_deserializer or bytes)
        if handler.response_streaming:
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            serve = self._stream(
                method, inner, parse, caller, streaming_request=handler.request_streaming
            )
        else:
            make = grpc.unary_unary_rpc_method_handler
            serve = self._unary(method, handler.unary_unary, parse, caller)
        # Parse here and not in gRPC, which reports bytes that are no message as a fault of the server.
        return make(serve, None, handler.response_serializer)

    def _unary(
        self, method: str, inner: Any, parse: Callable[[bytes], Any], caller: _Caller | None
    ) -> Any:
        async def unary(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            with _Serving(method, context) as serving:
                try:
                    _begin(caller, context)
                    request = parse(data)
                    async with asyncio.timeout(context.time_remaining() or DEADLINE):
                        return await inner(request, context)
                except Exception as error:  # noqa: BLE001 - mapped, or logged as our fault
                    await refuse(context, serving.failed(error))

        return unary

    def _stream(
        self,
        method: str,
        inner: Any,
        parse: Callable[[bytes], Any],
        caller: _Caller | None,
        *,
        streaming_request: bool,
    ) -> Any:
        async def stream(data: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            with _Serving(method, context) as serving, self.streams.one(caller) as open_stream:
                try:
                    _begin(caller, context)
                    request = _parsed_each(parse, data) if streaming_request else parse(data)
                    async with open_stream.timeout, aclosing(inner(request, context)) as responses:
                        try:
                            open_stream.waits()
                            async for response in responses:
                                open_stream.writes()
                                yield response
                                open_stream.waits()
                        finally:
                            open_stream.writes()
                except TimeoutError as error:
                    await refuse(context, serving.failed(open_stream.ended(error)))
                except Exception as error:  # noqa: BLE001 - mapped, or logged as our fault
                    await refuse(context, serving.failed(error))

        return stream

    def _enter(self, method: str, metadata: Metadata | None) -> _Caller | None:
        """Return the caller, who may make this call; None: anybody may. Raises what refuses it."""
        if method in self._access.public:
            return None
        token = bearer_token(metadata)
        principal, expires = self._admitted(token)
        authorize(method, self._authorization[method], principal, suite=self._access.suite)
        return _Caller(token, principal, self._verifier.seconds_until(expires))

    def _admitted(self, token: str) -> tuple[Principal, float]:
        """Return whom a token names and when it expires. Raises Unauthenticated, PermissionDenied."""
        principal, expires = self._verifier.verify_with_expiry(token)
        self._access.admission.admit(principal)
        return principal, expires

    def _request(self, method: str, parse: Callable[[bytes], Any], data: bytes) -> Any:
        """Return the message of some bytes. Raises ResourceExhausted (TOO_LARGE), InvalidArgument."""
        limit = self._access.limit_of(method)
        if len(data) > limit:
            raise ResourceExhausted(
                f"a request of {method.rpartition('/')[2]} has up to {limit} bytes, and this one {len(data)}",
                reason=ErrorReason.ERROR_REASON_TOO_LARGE,
                metadata={"limit_bytes": str(limit)},
            )
        try:
            request = parse(data)
        except DecodeError:
            raise InvalidArgument("the request is not an encoded message of its type") from None
        self._validator.check(request)
        return request


def _begin(caller: _Caller | None, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Let the use case know whose call it is, or of a call that anybody may make, from where it comes."""
    if caller is None:
        set_current_peer(peer_of(context))
    else:
        set_current_principal(caller.principal)


def _refusing(method: str, error: Exception, *, streams: bool) -> Any:
    """Return a handler that ends a call with an error. It never asks for a request, so gRPC receives none."""

    async def refused(_requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        with _Serving(method, context) as serving:
            await refuse(context, serving.failed(error))

    make = (
        grpc.stream_stream_rpc_method_handler if streams else grpc.stream_unary_rpc_method_handler
    )
    return make(refused)


async def _parsed_each(
    parse: Callable[[bytes], Message], requests: AsyncIterator[bytes]
) -> AsyncIterator[Message]:
    async for data in requests:
        yield parse(data)


class _Serving:
    """Request id, span, access line and metrics of one call."""

    def __init__(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._method = method
        self._context = context
        self._code = "OK"
        self._started = time.perf_counter()
        request_id = metadata_value(context.invocation_metadata(), "x-request-id")[
            :64
        ] or secrets.token_hex(8)
        bind_contextvars(request_id=request_id)
        self._span = telemetry.span(
            method.lstrip("/"),
            traceparent=metadata_value(context.invocation_metadata(), "traceparent"),
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
