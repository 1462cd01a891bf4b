"""The link to one shard of chat: encoded items up, encoded frames down; in batches both ways.

A stream opens with a greeting, whose answer names the shard and who owns what (owner_map.OwnerMap). Then a snapshot of
all connections goes up, so that chat's presence is never older than the stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import grpc

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.shard.v1 import shard_service_pb2 as pb
from deskwire_common import rpc
from deskwire_common.auth import TokenSigner
from deskwire_common.fair import FairQueue
from deskwire_common.logging import get_logger
from deskwire_common.loops import Backoff
from deskwire_common.metrics import METRICS
from deskwire_common.pacing import link_pace
from deskwire_gateway.registry import Registry
from deskwire_gateway.session import Session
from deskwire_wire.codes import Close

METHOD: Final = "/deskwire.shard.v1.ShardService/Link"

_BATCH_ITEMS: Final = 200
_BATCH_BYTES: Final = 65_536
_FEW_BYTES: Final = 524_288
"""While no more than this waits to go up, connections don't take turns."""
_QUANTUM_BYTES: Final = 16_384
"""How much goes up for a tenant in its turn."""
_QUEUE_BYTES: Final = 256 * 1024 * 1024
"""More than the items of a worker's Sends and connections together (admission)."""
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0


class Pool(Protocol):
    """The pool that a link belongs to (link_pool.LinkPool)."""

    def greeting(self) -> bytes:
        """Return the first item of a stream, encoded."""
        ...

    def opened(self, link: Link, owners: pb.Owners) -> list[bytes] | None:
        """Return the first items for a shard that has answered; None when this link isn't needed."""
        ...

    def owners_changed(self, link: Link, owners: pb.Owners) -> None:
        """Take in a shard's report of who owns what now."""
        ...


class Link:
    """A link to one shard over one stream; it ends when the stream ends."""

    def __init__(
        self,
        target: str,
        connect: Callable[[str], grpc.aio.Channel],
        signer: TokenSigner,
        registry: Registry,
        pool: Pool,
        answered: Callable[[pb.LinkDownItem], None],
    ) -> None:
        """`target` is the address to call; `connect` makes bare channels, since interceptors leak on long streams.

        `answered` takes the answer to a Send or a Sync.
        """
        self.target = target
        self.address = ""
        """The shard that was reached; empty until it has answered."""
        self.is_open = False
        self.ended_with: grpc.StatusCode | None = None
        """How the stream ended, unless by half-close."""
        self._connect = connect
        self._signer = signer
        self._registry = registry
        self._pool = pool
        self._answered = answered
        self._pace = link_pace()
        self._first: deque[bytes] = deque()
        """What goes up before everything else: the greeting, and the snapshot."""
        self._up: FairQueue[bytes] | None = None
        """What waits to go up, None without a stream; what a connection brings keeps its order."""
        self._wake = asyncio.Event()
        self._frames_out = METRICS.gateway_frames.labels("out")
        self._bytes_out = METRICS.gateway_bytes.labels("out")

    def put(self, item: bytes, session: Session) -> None:
        """Queue an encoded item (items.up_item) of a session after its Hello.

        Before the stream is open it is dropped: the snapshot has it.
        """
        queue, who = self._up, session.principal
        if not self.is_open or queue is None or who is None:
            return
        queue.put(item, len(item), who.tenant, session.number)
        if queue.size > _QUEUE_BYTES:
            # Chat doesn't read. Start again with a snapshot, so that the queue doesn't grow without end.
            self._up = None
        self._wake.set()

    async def run(self, pause: float) -> None:
        """Call the shard until a stream opens, the first time after `pause` seconds; serve the stream to its end."""
        channel = self._connect(self.target)
        pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        try:
            await asyncio.sleep(pause)
            while True:
                try:
                    if await self._stream(channel):
                        return
                except grpc.aio.AioRpcError as error:
                    get_logger().warning("link_broken", code=error.code().name, target=self.target)
                    if self.address:
                        self.ended_with = error.code()
                        return
                await pauses.pause()
        finally:
            self.is_open = False
            self._up = None
            await channel.close()

    async def _stream(self, channel: grpc.aio.Channel) -> bool:
        """Serve one stream to its end; return whether the stream was needed."""
        method: Any = channel.stream_stream(
            METHOD, request_serializer=None, response_deserializer=pb.LinkResponse.FromString
        )
        call = method(metadata=rpc.stream_metadata(self._signer.service_token()))
        self._first = deque([self._pool.greeting()])
        self._up = FairQueue(few=_FEW_BYTES, quantum=_QUANTUM_BYTES)
        self._wake.set()
        writing = asyncio.create_task(self._write(call))
        try:
            while True:
                response = await call.read()
                if response is grpc.aio.EOF:
                    return bool(self.address)
                if not self._down(response):
                    return False
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            call.cancel()

    async def _write(self, call: Any) -> None:
        loop = asyncio.get_running_loop()
        while True:
            queue = self._up
            if queue is None:
                await call.done_writing()
                return
            if not queue and not self._first:
                self._wake.clear()
                await self._wake.wait()
                await asyncio.sleep(self._pace.pause(loop.time()))
                continue
            parts = self._next_first() or queue.take(_BATCH_ITEMS, _BATCH_BYTES)
            METRICS.gateway_link_items.observe(len(parts))
            self._pace.began(loop.time(), len(parts))
            await call.write(b"".join(parts))

    def _next_first(self) -> list[bytes]:
        parts: list[bytes] = []
        size = 0
        while self._first and len(parts) < _BATCH_ITEMS and size < _BATCH_BYTES:
            parts.append(self._first.popleft())
            size += len(parts[-1])
        return parts

    # ---------------------------------------------------------------------------------------- down

    def _owners(self, owners: pb.Owners) -> bool:
        self._pace = link_pace(max(1, owners.links))
        if self.address:
            self._pool.owners_changed(self, owners)
            return True
        first = self._pool.opened(self, owners)
        if first is None or self._up is None:
            return False
        self.address = owners.address
        self._first.extend(first)
        self._wake.set()
        self.is_open = True
        return True

    def _down(self, response: pb.LinkResponse) -> bool:
        """Hand bytes to connections, those of one batch in one write each; return False when the link isn't needed."""
        by_number = self._registry.by_number
        outgoing: dict[Session, list[bytes]] = {}
        refused: list[tuple[Session, pb.Refusal]] = []
        frames = 0
        for item in response.items:
            if item.send_id:
                self._answered(item)
            elif item.HasField("owners") and not self._owners(item.owners):
                return False
            for number in item.connection_ids:
                session = by_number.get(number)
                if session is None:
                    METRICS.gateway_dropped.labels("gone").inc()
                    continue
                if item.HasField("refusal"):
                    refused.append((session, item.refusal))
                    continue
                frames += 1
                if item.ephemeral:
                    session.transport.send(item.batch)
                    continue
                parts = outgoing.get(session)
                if parts is None:
                    outgoing[session] = [item.batch]
                else:
                    parts.append(item.batch)
        self._frames_out.inc(frames)
        size = 0
        for session, parts in outgoing.items():
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            size += len(data)
            self._registry.push(session, data)
        self._bytes_out.inc(size)
        self._end(refused)
        return True

    def _end(self, refused: Iterable[tuple[Session, pb.Refusal]]) -> None:
        for session, refusal in refused:
            replaced = refusal.reason == reasons.ERROR_REASON_SESSION_REPLACED
            code = Close.REPLACED if replaced else Close.SHUT_OUT
            self._registry.goodbye(session, code, refusal.reason, refusal.message)
