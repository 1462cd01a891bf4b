"""GatewayService on gRPC, one row per RPC: Connect carries the same frames as the WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

import grpc

from deskwire.gateway.v1.gateway_service_pb2_grpc import GatewayServiceServicer as Gateway
from deskwire_common import rpc
from deskwire_common.auth import Role
from deskwire_common.errors import DeskwireError
from deskwire_common.metrics import METRICS
from deskwire_common.pagination import ANSWER_BYTES
from deskwire_common.rpc.table import Context, Service, Table, stream, unary
from deskwire_gateway.actions import GatewayActions
from deskwire_gateway.frames import slow_reader
from deskwire_gateway.protocol import Protocol
from deskwire_gateway.session import Session

SERVICE: Final = "deskwire.gateway.v1.GatewayService"
_MAX_BUFFERED: Final = 1_048_576
"""Bytes that may wait for one client to read; beyond them the connection is closed."""


class _Stream:
    """The transport of one Connect."""

    name = "grpc"

    def __init__(self) -> None:
        self.session: Session | None = None
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._closed = False
        self._rest = 0.0

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
        """End the stream after what is queued; the Goodbye in it gives the reason."""
        self._closed = True
        self._wake.set()

    def rest(self, seconds: float) -> None:
        """Read nothing more of the client for a while."""
        self._rest = seconds

    async def rested(self) -> None:
        """Wait until reading may go on."""
        pause, self._rest = self._rest, 0.0
        if pause:
            await asyncio.sleep(pause)

    async def batches(self) -> AsyncIterator[bytes]:
        """Yield the batches for the client, joined up to the size of one gRPC message."""
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


class Connections:
    """Connect: each call is a connection. Its batches stay bytes, which the protocol reads and writes."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    async def connect(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Serve one connection."""
        try:
            self._protocol.registry.check_room()
        except DeskwireError as error:
            await rpc.refuse(context, error)
        transport = _Stream()
        self._protocol.registry.open(transport)

        async def read() -> None:
            with contextlib.suppress(grpc.RpcError):
                async for data in requests:
                    if transport.session is not None:
                        self._protocol.receive(transport.session, data)
                        await transport.rested()
            transport.close(1000, "")

        reading = asyncio.create_task(read())
        try:
            async for data in transport.batches():
                yield data
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self._protocol.registry.disconnected(transport)


TABLE: Final = Table(
    Service(
        SERVICE,
        # The token is in the Hello, and the handshake checks it.
        stream(Gateway.Connect).by_bytes(
            Connections.connect,
            {Role.VISITOR, Role.AGENT, Role.BOT},
            # How long a batch may be is a setting (max_message_bytes), up to this.
            request_bytes=1024 * 1024,
        ),
        unary(Gateway.ListSessions).by(GatewayActions.list_sessions, {Role.OPERATOR, Role.SERVICE}),
    )
)

AUTHORIZATION: Final = TABLE.authorization
"""Who may call each method, as in the contract."""
