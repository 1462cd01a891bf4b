"""GatewayService on gRPC: Connect carries the same frames as the WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import grpc

from deskwire.gateway.v1 import gateway_service_pb2 as pb
from deskwire_common.auth import Role
from deskwire_common.metrics import METRICS
from deskwire_common.pagination import ANSWER_BYTES
from deskwire_gateway.actions import GatewayActions
from deskwire_gateway.frames import slow_reader
from deskwire_gateway.protocol import Protocol
from deskwire_gateway.session import Session

SERVICE: Final = "deskwire.gateway.v1.GatewayService"
CONNECT: Final = f"/{SERVICE}/Connect"
_MAX_BUFFERED: Final = 1_048_576
"""Bytes that wait for one client to read; with more the connection is closed."""

#: Who may call each method. Connect's token is in its Hello, checked by the handshake.
AUTHORIZATION: Final[Mapping[str, frozenset[Role]]] = {
    CONNECT: frozenset({Role.VISITOR, Role.AGENT, Role.BOT}),
    f"/{SERVICE}/ListSessions": frozenset({Role.OPERATOR, Role.SERVICE}),
}

Context = grpc.aio.ServicerContext[Any, Any]


class _Stream:
    """The transport of one Connect."""

    name = "grpc"

    def __init__(self) -> None:
        self.session: Session | None = None
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._closed = False

    def send(self, data: bytes) -> None:
        """Queue one encoded Batch; a reader that is too slow is closed instead."""
        if self._closed:
            return
        if self._bytes > _MAX_BUFFERED:
            METRICS.gateway_closed.labels("slow_reader").inc()
            self._queue.clear()
            self._queue.append(slow_reader())
            self._closed = True
        else:
            self._bytes += len(data)
            self._queue.append(data)
        self._wake.set()

    def close(self, _code: int, _text: str) -> None:
        """End after what was sent, of which the Goodbye says why."""
        self._closed = True
        self._wake.set()

    async def batches(self) -> AsyncIterator[bytes]:
        """Yield what goes down, joined as far as a message of gRPC holds it."""
        while True:
            if self._queue:
                parts = [self._queue.popleft()]
                size = len(parts[0])
                while self._queue and size + len(self._queue[0]) <= ANSWER_BYTES:
                    parts.append(self._queue.popleft())
                    size += len(parts[-1])
                self._bytes -= size
                yield b"".join(parts)
            elif self._closed:
                return
            else:
                self._wake.clear()
                await self._wake.wait()


class GatewayApi:
    """The servicer. Connect's batches stay bytes: the protocol reads and writes them."""

    def __init__(self, protocol: Protocol, actions: GatewayActions) -> None:
        self._protocol = protocol
        self._actions = actions

    def register(self, server: grpc.aio.Server) -> None:
        """Add GatewayService to a server."""
        connect: Any = grpc.stream_stream_rpc_method_handler(
            self.connect, request_deserializer=bytes, response_serializer=bytes
        )
        list_sessions: Any = grpc.unary_unary_rpc_method_handler(
            self.list_sessions,
            request_deserializer=pb.ListSessionsRequest.FromString,
            response_serializer=pb.ListSessionsResponse.SerializeToString,
        )
        handlers = {"Connect": connect, "ListSessions": list_sessions}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def connect(
        self, requests: AsyncIterator[bytes], _context: Context
    ) -> AsyncIterator[bytes]:
        """Serve one connection."""
        stream = _Stream()
        self._protocol.registry.open(stream)

        async def read() -> None:
            with contextlib.suppress(grpc.RpcError):
                async for data in requests:
                    if stream.session is not None:
                        self._protocol.receive(stream.session, data)
            stream.close(1000, "")

        reading = asyncio.create_task(read())
        try:
            async for data in stream.batches():
                yield data
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self._protocol.registry.disconnected(stream)

    async def list_sessions(
        self, request: pb.ListSessionsRequest, _context: Context
    ) -> pb.ListSessionsResponse:
        """See the contract."""
        return await self._actions.list_sessions(request)
