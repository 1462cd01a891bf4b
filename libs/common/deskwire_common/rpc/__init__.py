"""gRPC servers and channels: the one place where they are made.

Every call to a server passes, in this order: authentication and the authorisation table, before its request is
received; request id, tracing, access log, metrics; the request's size, validation, error mapping. The stages are one
wrapper and not seven interceptors: a unary call costs ~400 µs in grpc.aio and each interceptor adds to it. Batched
streams of the message path (`inline_auth`) have no wrapper at all (interceptors leak there, grpc/grpc#25449): they call
`authenticate_stream` and `refuse` themselves.
"""

from __future__ import annotations

from deskwire_common.rpc.access import (
    REQUEST_BYTES,
    Access,
    Authorization,
    authenticate_stream,
    bearer_token,
    metadata_value,
    refuse,
)
from deskwire_common.rpc.channel import caller_tenant, domain_errors, make_channel, stream_metadata
from deskwire_common.rpc.server import RunningServer, methods_of, start_server
from deskwire_common.rpc.transport import DEADLINE, MAX_MESSAGE_BYTES, ServerLimits, Tls

__all__ = [
    "DEADLINE",
    "MAX_MESSAGE_BYTES",
    "REQUEST_BYTES",
    "Access",
    "Authorization",
    "RunningServer",
    "ServerLimits",
    "Tls",
    "authenticate_stream",
    "bearer_token",
    "caller_tenant",
    "domain_errors",
    "make_channel",
    "metadata_value",
    "methods_of",
    "refuse",
    "start_server",
    "stream_metadata",
]
