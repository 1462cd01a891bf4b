"""Calls of clients that can't speak gRPC: an Rpc frame is a unary call to chat, as its user.

Bytes in, bytes out, with the user's own token: chat decides who may call what. The gateway decides only which services
a connection can reach, and how many calls it may make at once. It keeps the tokens of agents and bots, who are few; a
visitor sends theirs with each call, so that a hundred thousand idle visitors cost nothing.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any, Final

import grpc
from grpc_status import rpc_status
from opentelemetry.trace import SpanKind

from deskwire.chat.v1 import (
    agent_service_pb2,
    attachment_service_pb2,
    conversation_service_pb2,
    customer_service_pb2,
)
from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire_common import rpc, telemetry
from deskwire_common.auth import TokenVerifier
from deskwire_common.errors import (
    DeadlineExceeded,
    DeskwireError,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
)
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_common.validation import Validator
from deskwire_gateway.in_flight import InFlight
from deskwire_gateway.registry import Registry
from deskwire_gateway.session import Session, same_user
from deskwire_wire.batches import encoded
from deskwire_wire.errors import error_frame

METHODS: Final = frozenset(
    f"/{service.full_name}/{method.name}"
    for file in (
        agent_service_pb2,
        attachment_service_pb2,
        conversation_service_pb2,
        customer_service_pb2,
    )
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if not method.client_streaming and not method.server_streaming
)
"""The services that clients may call: those that the desk works with. Add a new service of chat here for clients."""

_MAX_SECONDS: Final = 30.0
_KEPT_BYTES: Final = 16_384
"""Larger results aren't kept for a Resume: they would push everything else out of the ring. The client asks again."""
_AWAY: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


class Calls:
    """Makes unary calls to chat for this worker's connections."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        in_flight: InFlight,
        registry: Registry,
        verifier: TokenVerifier,
        validator: Validator,
        *,
        max_result_bytes: int,
        trace: bool = False,
    ) -> None:
        """`channel` leads to chat, with no token of its own. `trace`: begin a trace for calls that bring none."""
        self._in_flight = in_flight
        self._registry = registry
        self._verifier = verifier
        self._validator = validator
        self._max_result = max_result_bytes
        self._trace = trace
        self._methods: dict[str, Any] = {name: channel.unary_unary(name) for name in METHODS}

    def call(self, session: Session, frame: frame_pb2.Rpc) -> None:
        """Begin a call; its result is pushed. Raises DeskwireError when it isn't made."""
        self._validator.check(frame)
        if frame.id in self._in_flight.of(session):
            return  # repeated after a break: the first call's result will come
        self._in_flight.check_room(session)
        method = self._methods.get(frame.method)
        if method is None:
            raise InvalidArgument(
                "no unary method of a service that is called over a connection", field="method"
            )
        work = self._run(session, frame, method, self._token(session, frame.token))
        self._in_flight.begin(session, frame.id, work)

    def _token(self, session: Session, given: str) -> str:
        if not given:
            if not session.token:
                raise Unauthenticated(
                    "a visitor's token isn't kept: give it in Rpc.token",
                    reason=reasons.ERROR_REASON_TOKEN_MISSING,
                )
            return session.token
        if not same_user(session.principal, self._verifier.verify(given)):
            raise PermissionDenied("the token is another user's; connect with it instead")
        return given

    async def _run(self, session: Session, frame: frame_pb2.Rpc, method: Any, token: str) -> None:
        result = frame_pb2.RpcResult(id=frame.id)
        try:
            result.response = await self._response(frame, method, token)
        except DeskwireError as error:
            METRICS.gateway_refused.labels(error.reason_name).inc()
            result.error.CopyFrom(error_frame(error))
        except Exception as error:  # noqa: BLE001 - our fault; the client hears of it, and its connection stays
            get_logger().error("call_failed", method=frame.method, exc_info=error)
            result.error.CopyFrom(error_frame(Internal("a fault of deskwire's")))
        data = encoded(rpc_result=result)
        if len(data) <= _KEPT_BYTES:
            self._registry.push(session, data)
        else:
            session.transport.send(data)

    async def _response(self, frame: frame_pb2.Rpc, method: Any, token: str) -> bytes:
        traceparent = frame.traceparent
        traced = telemetry.sampled(traceparent) if traceparent else self._trace
        span = telemetry.span("gateway.rpc", traceparent=traceparent or None, kind=SpanKind.SERVER)
        metadata = grpc.aio.Metadata(("authorization", f"Bearer {token}"))
        if not traced and telemetry.context_of(traceparent) is not None:
            metadata.add("traceparent", traceparent)
        timeout = frame.timeout.ToMilliseconds() / 1000 or rpc.DEADLINE
        began = time.perf_counter()
        code = grpc.StatusCode.CANCELLED
        try:
            with span if traced else nullcontext():
                response: bytes = await method(
                    frame.request, metadata=metadata, timeout=min(timeout, _MAX_SECONDS)
                )
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            code = error.code()
            raise _domain_error(error) from None
        finally:
            seconds = time.perf_counter() - began
            METRICS.rpc_client_seconds.labels(frame.method, code.name).observe(seconds)
        if len(response) > self._max_result:
            raise _too_large(self._max_result)
        return response


def _domain_error(error: grpc.aio.AioRpcError) -> DeskwireError:
    """Return the error that the client gets. gRPC's own messages name addresses, which clients mustn't see."""
    if rpc_status.from_call(error) is not None:  # type: ignore[arg-type] # as its own docstring does
        return from_rpc_error(error)
    code = error.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(
            "it took longer than its timeout; say it again, with the same request_id"
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return _too_large(rpc.MAX_MESSAGE_BYTES)
    if code in _AWAY:
        return Unavailable("chat doesn't answer; say it again", retry_after=1.0)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Unavailable("chat doesn't know this method yet", retry_after=10.0)
    return Internal(f"chat failed with {code.name}")


def _too_large(limit: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"the response has more than {limit} bytes: ask for a smaller page",
        reason=reasons.ERROR_REASON_TOO_LARGE,
    )
