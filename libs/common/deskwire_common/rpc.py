"""gRPC servers and channels: the one place where they are made.

Every call to a server passes, in this order: request id, tracing, access log, metrics, authentication and the
authorisation table, validation, error mapping. The stages are one wrapper and not seven interceptors: a unary call
costs ~400 µs in grpc.aio and each interceptor adds to it. Batched streams of the message path (`inline_auth`) have no
wrapper at all (interceptors leak there, grpc/grpc#25449): they call `authenticate_stream` and `refuse` themselves.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from opentelemetry.trace import SpanKind
from structlog.contextvars import bind_contextvars

from deskwire_common import telemetry
from deskwire_common.auth import (
    ANY_TENANT,
    Principal,
    Role,
    TokenVerifier,
    current_principal,
    set_current_principal,
    token_expired,
)
from deskwire_common.errors import (
    DeadlineExceeded,
    DeskwireError,
    Internal,
    InvalidArgument,
    PermissionDenied,
    Unauthenticated,
    to_status,
)
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_common.validation import Validator

Authorization = Mapping[str, Collection[Role]]
"""Full method name (`/deskwire.chat.v1.AgentService/GetAgent`) → who may call it."""


@dataclass(frozen=True, slots=True)
class Access:
    """What the authorisation table can't say.

    `public` methods take no token: the request itself says who calls. `suite` methods are for operators of all tenants,
    who may call nothing else. `admit` looks at each verified caller and raises for one that isn't let in.
    """

    public: Collection[str] = frozenset()
    suite: Collection[str] = frozenset()
    admit: Callable[[Principal], None] = field(default=lambda _principal: None)


#: Seconds that a call may take when its caller doesn't say.
DEADLINE: Final = 10.0
#: Largest message in either direction.
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
_MAX_STREAMS: Final = 10_000
_OPEN_PREFIXES: Final = ("/grpc.health.v1.", "/grpc.reflection.")

# A ping every 20 s of silence is answered within 10 s, or the connection is dead; the server allows one per 10 s.
_KEEPALIVE: Final = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_SIZES: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)
_SERVER_OPTIONS: Final = (
    *_KEEPALIVE,
    *_SIZES,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 5),
    ("grpc.max_concurrent_streams", _MAX_STREAMS),
)
# Every mutating RPC of the contract is idempotent by request_id or an id of its own, every other one reads.
_RETRIES: Final = (
    '{"methodConfig":[{"name":[{}],"retryPolicy":{"maxAttempts":4,"initialBackoff":"0.1s","maxBackoff":"2s",'
    '"backoffMultiplier":2,"retryableStatusCodes":["UNAVAILABLE"]}}]}'
)


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: this process's certificate and key, and who it trusts."""

    cert: Path
    key: Path
    ca: Path
    require_client_certificate: bool = False

    def server(self) -> grpc.ServerCredentials:
        """For listening."""
        return grpc.ssl_server_credentials(
            [(self.key.read_bytes(), self.cert.read_bytes())],
            root_certificates=self.ca.read_bytes(),
            require_client_auth=self.require_client_certificate,
        )

    def channel(self) -> grpc.ChannelCredentials:
        """For calling."""
        return grpc.ssl_channel_credentials(
            self.ca.read_bytes(), self.key.read_bytes(), self.cert.read_bytes()
        )


def metadata_value(context: grpc.aio.ServicerContext[Any, Any], name: str) -> str:
    """The first value of a call's metadata, "" when there is none."""
    for key, value in context.invocation_metadata() or ():
        if key == name and isinstance(value, str):
            return value
    return ""


def bearer_token(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The token of `authorization: Bearer …`, "" when there is none."""
    scheme, _, token = metadata_value(context, "authorization").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _authorize(
    method: str, roles: Collection[Role], principal: Principal, *, suite: Collection[str] = ()
) -> None:
    name = method.rpartition("/")[2]
    if principal.role not in roles:
        raise PermissionDenied(f"role {principal.role.value} may not call {name}")
    if principal.runs_the_suite and method not in suite:
        raise PermissionDenied(f"{name} needs a token of one tenant, not of tenant {ANY_TENANT}")
    if method in suite and not principal.runs_the_suite:
        raise PermissionDenied(f"{name} is for operators of the suite: tenant {ANY_TENANT}")


async def authenticate_stream(
    context: grpc.aio.ServicerContext[Any, Any],
    verifier: TokenVerifier,
    roles: Collection[Role],
    method: str,
) -> Principal:
    """For `inline_auth` handlers: the caller, or the call ends with the status that says why not."""
    try:
        principal = verifier.verify(bearer_token(context))
        _authorize(method, roles, principal)
    except DeskwireError as error:
        await refuse(context, error)
    return principal


async def refuse(context: grpc.aio.ServicerContext[Any, Any], error: DeskwireError) -> NoReturn:
    """End a call with an error's Status and details."""
    await context.abort_with_status(rpc_status.to_status(to_status(error)))


class _Stages(grpc.aio.ServerInterceptor):
    """The stages around every handler; see the module."""

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
        # Parsed here and not by gRPC, to whom bytes that are no message are a fault of the server's.
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
                    # A stream doesn't outlive the token that opened it.
                    async with asyncio.timeout(seconds) as token:
                        async for response in inner(request, context):
                            yield response
                except TimeoutError as error:
                    expired = token_expired() if token.expired() else error
                    await refuse(context, serving.failed(expired))
                except Exception as error:  # noqa: BLE001 - mapped, or logged as our fault
                    await refuse(context, serving.failed(error))

        return stream

    async def _checked(self, requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
        async for request in requests:
            self._validator.check(request)
            yield request

    def _enter(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
        """Let the caller in; return for how many seconds, None without an end."""
        if method in self._access.public:
            return None
        principal, expires = self._verifier.verify_with_expiry(bearer_token(context))
        _authorize(method, self._authorization[method], principal, suite=self._access.suite)
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
        """What the caller is told of an exception; a fault of ours is logged with an id that they are given."""
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


class RunningServer:
    """A started server: health says NOT_SERVING until `set_serving`."""

    def __init__(
        self, server: grpc.aio.Server, port: int, servicer: Any, services: Sequence[str]
    ) -> None:
        self._server = server
        self._health = servicer
        self._services = services
        self.port = port

    async def set_serving(self, serving: bool) -> None:
        """Tell load balancers and probes."""
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", *self._services):
            await self._health.set(name, status)

    async def stop(self, grace: float = 5.0) -> None:
        """Take no more calls, give those in flight `grace` seconds."""
        await self._server.stop(grace)


def methods_of(services: Sequence[str]) -> list[str]:
    """The full names of all methods of some services, from their descriptors."""
    from google.protobuf.descriptor_pool import Default  # noqa: PLC0415 (keeps the module's names few)

    return [
        f"/{name}/{method.name}"
        for name in services
        for method in Default().FindServiceByName(name).methods
    ]


async def start_server(
    *,
    listen: str,
    registrars: Sequence[Callable[[grpc.aio.Server], None]],
    services: Sequence[str],
    authorization: Authorization,
    verifier: TokenVerifier,
    validator: Validator,
    tls: Tls | None = None,
    inline_auth: Collection[str] = frozenset(),
    access: Access | None = None,
    reuse_port: bool = False,
) -> RunningServer:
    """Serve on `listen` (host:port; port 0 takes a free one), with `reuse_port` beside others.

    Raises ValueError for a method without an entry in `authorization`, OSError for a port that is taken.
    """
    missing = sorted(set(methods_of(services)).difference(authorization))
    if missing:
        raise ValueError(f"no authorisation rule for {', '.join(missing)}")
    server = grpc.aio.server(
        interceptors=[_Stages(authorization, verifier, validator, inline_auth, access or Access())],
        # By default a second server on a taken port starts without an error.
        options=[*_SERVER_OPTIONS, ("grpc.so_reuseport", int(reuse_port))],
    )
    servicer: Any = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for register in registrars:
        register(server)
    reflection.enable_server_reflection(
        [*services, health.SERVICE_NAME, reflection.SERVICE_NAME], server
    )
    try:
        port = (
            server.add_secure_port(listen, tls.server())
            if tls
            else server.add_insecure_port(listen)
        )
    except RuntimeError as error:
        raise OSError(
            f"can't listen on {listen}: the port is taken, or the address isn't ours"
        ) from error
    running = RunningServer(server, port, servicer, services)
    await running.set_serving(False)
    await server.start()
    return running


# ------------------------------------------------------------------------------------------- calling


class _Outgoing(
    grpc.aio.UnaryUnaryClientInterceptor,
    grpc.aio.UnaryStreamClientInterceptor,
):
    """Deadline, token, trace and request id of outgoing calls."""

    def __init__(self, token: Callable[[], str] | None) -> None:
        self._token = token

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(self._with(details, DEADLINE), request)

    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(self._with(details, None), request)

    def _with(self, details: Any, deadline: float | None) -> Any:
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        given = set(metadata.keys())
        if self._token is not None and "authorization" not in given:
            metadata.add("authorization", f"Bearer {self._token()}")
        traceparent = telemetry.current_traceparent()
        if traceparent and "traceparent" not in given:
            metadata.add("traceparent", traceparent)
        return grpc.aio.ClientCallDetails(
            method=details.method,
            timeout=details.timeout if details.timeout is not None else deadline,
            metadata=metadata,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )


def make_channel(
    target: str,
    *,
    tls: Tls | None = None,
    token: Callable[[], str] | None = None,
    bare: bool = False,
    server_name: str = "",
) -> grpc.aio.Channel:
    """A channel to `target` (host:port or dns:///name:port).

    Unary calls get a deadline of ten seconds, the bearer token, the trace, and retries when the server is away.
    `bare`: none of it, for long streams; give those `stream_metadata(token)` yourself. `server_name`: what the server's
    certificate must name, where it isn't the target's host.
    """
    options: list[tuple[str, Any]] = [*_KEEPALIVE, *_SIZES]
    if bare:
        options.append(("grpc.enable_retries", 0))
    else:
        options += [
            ("grpc.service_config", _RETRIES),
            ("grpc.lb_policy_name", "round_robin"),
        ]
    options.append(("grpc.initial_reconnect_backoff_ms", 100))
    options.append(("grpc.max_reconnect_backoff_ms", 3_000))
    if tls is not None and server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    interceptors = None if bare else [_Outgoing(token)]
    if tls is not None:
        return grpc.aio.secure_channel(
            target, tls.channel(), options=options, interceptors=interceptors
        )
    return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)


def stream_metadata(token: str) -> grpc.aio.Metadata:
    """The metadata of a call on a bare channel."""
    metadata = grpc.aio.Metadata(("authorization", f"Bearer {token}"))
    traceparent = telemetry.current_traceparent()
    if traceparent:
        metadata.add("traceparent", traceparent)
    return metadata


def caller_tenant(default: str) -> str:
    """The tenant of the call that is being served; `default` outside of one."""
    try:
        return current_principal().tenant
    except Unauthenticated:
        return default


@contextmanager
def domain_errors() -> Iterator[None]:
    """Turn the failure of an outgoing call into the domain error that it stands for."""
    from deskwire_common.errors import from_rpc_error  # noqa: PLC0415 (used here only)

    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
