"""Channels: deadline, token, trace and retries of outgoing calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc

from deskwire_common import telemetry
from deskwire_common.auth import current_principal
from deskwire_common.errors import Unauthenticated, from_rpc_error
from deskwire_common.rpc.transport import DEADLINE, KEEPALIVE, SIZES, Tls

# Every mutating RPC of the contract is idempotent, by request_id or an id of its own; all others only read.
_RETRIES: Final = (
    '{"methodConfig":[{"name":[{}],"retryPolicy":{"maxAttempts":4,"initialBackoff":"0.1s","maxBackoff":"2s",'
    '"backoffMultiplier":2,"retryableStatusCodes":["UNAVAILABLE"]}}]}'
)


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
    authority: str = "",
) -> grpc.aio.Channel:
    """A channel to `target` (host:port or dns:///name:port).

    Unary calls get a deadline of ten seconds, the bearer token, the trace, and retries when the server is away.
    `bare`: none of it, for long streams; give those `stream_metadata(token)` yourself. `server_name`: what the server's
    certificate must name, where it isn't the target's host. `authority`: the host:port that a target of checked
    addresses stands for (`targets.grpc_target`); such a channel goes nowhere else, not through a proxy either.
    """
    options: list[tuple[str, Any]] = [*KEEPALIVE, *SIZES]
    if bare:
        options.append(("grpc.enable_retries", 0))
    else:
        options += [
            ("grpc.service_config", _RETRIES),
            ("grpc.lb_policy_name", "round_robin"),
        ]
    options.append(("grpc.initial_reconnect_backoff_ms", 100))
    options.append(("grpc.max_reconnect_backoff_ms", 3_000))
    if authority:
        options += [("grpc.default_authority", authority), ("grpc.enable_http_proxy", 0)]
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
    """Raise the domain error that a failed outgoing call stands for."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
