"""The stream to chat: attachments and Sends up, ready bytes down; in batches both ways.

Whatever is without an answer when a stream breaks is sent again on the next one, in order: chat dedupes. A new stream
begins with a snapshot of all connections, so chat's presence is never older than the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any, Final

import grpc

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire.shard.v1 import shard_service_pb2 as pb
from deskwire_common import rpc
from deskwire_common.auth import TokenSigner
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_gateway.sessions import Close, Session, Sessions

METHOD: Final = "/deskwire.shard.v1.ShardService/Link"

_LINGER: Final = 0.002
_BATCH_ITEMS: Final = 200
_BATCH_BYTES: Final = 65_536
_QUEUE_ITEMS: Final = 500_000
_FIRST_BACKOFF: Final = 0.05
_MAX_BACKOFF: Final = 2.0


def _up(**kind: Any) -> bytes:
    """An encoded LinkRequest with one item; such bytes concatenate."""
    return pb.LinkRequest(items=[pb.LinkUpItem(**kind)]).SerializeToString()


class Link:
    """The link of this worker to one shard of chat."""

    def __init__(
        self, channel: grpc.aio.Channel, signer: TokenSigner, sessions: Sessions, worker_id: str
    ) -> None:
        """`channel` is a bare one: interceptors leak on long streams."""
        self._open: Any = channel.stream_stream(
            METHOD, request_serializer=None, response_deserializer=pb.LinkResponse.FromString
        )
        self._signer = signer
        self._sessions = sessions
        self._worker_id = worker_id
        self._generation = 0
        self._up: deque[bytes] | None = None
        self._wake = asyncio.Event()
        self._sends = 0
        self._pending: dict[int, tuple[Session, bytes]] = {}
        self.connected = asyncio.Event()

    @property
    def pending_count(self) -> int:
        """How many Sends have no answer yet."""
        return len(self._pending)

    # ------------------------------------------------------------------------------------------ up

    def attach(self, session: Session) -> None:
        """Tell chat of a connection that said Hello."""
        self._put(_attach(session))

    def detach(self, session: Session) -> None:
        """Tell chat that a connection is gone. Its Sends stay: they may have been stored."""
        self._put(_up(detach=pb.Detach(connection_id=session.number)))

    def send(self, session: Session, send: frame_pb2.Send) -> None:
        """Pass a message on; it is kept until its answer."""
        self._sends += 1
        item = _up(send=pb.LinkSend(connection_id=session.number, send_id=self._sends, send=send))
        self._pending[self._sends] = (session, item)
        self._put(item)

    def sync(self, session: Session, sync: frame_pb2.Sync) -> None:
        """Pass a Sync on. On a broken stream it is lost: the Heads of the next one make the client ask again."""
        self._put(_up(sync=pb.LinkSync(connection_id=session.number, sync=sync)))

    def park(self, session: Session) -> None:
        """Tell chat that a connection broke and may come back."""
        self._put(_up(park=pb.Park(connection_id=session.number)))

    def unpark(self, session: Session) -> None:
        """Tell chat that a connection is there again."""
        self._put(_up(unpark=pb.Unpark(connection_id=session.number)))

    def receipt(self, session: Session, conversation_id: str, *, delivered: int, read: int) -> None:
        """Pass on how far a user has got. On a broken stream it is lost; the client says the last one again."""
        receipt = pb.LinkReceipt(
            connection_id=session.number,
            conversation_id=conversation_id,
            delivered_seq=delivered,
            read_seq=read,
        )
        self._put(_up(receipt=receipt))

    def typing(self, session: Session, typing: frame_pb2.Typing) -> None:
        """Pass on that a user writes."""
        item = pb.LinkTyping(
            connection_id=session.number,
            conversation_id=typing.conversation_id,
            typing=typing.typing,
        )
        self._put(_up(typing=item))

    def _put(self, item: bytes) -> None:
        if self._up is None:
            return  # the snapshot of the next stream has it
        if len(self._up) >= _QUEUE_ITEMS:
            # Chat doesn't read: begin anew, with a snapshot instead of a queue without end.
            self._up = None
        else:
            self._up.append(item)
        self._wake.set()

    # ---------------------------------------------------------------------------------------- life

    async def run(self) -> None:
        """Keep a stream open until cancelled."""
        backoff = _FIRST_BACKOFF
        while True:
            try:
                if await self._stream():
                    backoff = _FIRST_BACKOFF
            except grpc.RpcError as error:
                code = error.code().name if isinstance(error, grpc.aio.AioRpcError) else "?"
                get_logger().warning("link_broken", code=code, pending=len(self._pending))
            finally:
                self._up = None
                self.connected.clear()
                METRICS.gateway_links.set(0)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, _MAX_BACKOFF)

    async def drain(self, seconds: float = 5.0) -> None:
        """Wait for the answers to what was sent, for a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._pending:
                    await asyncio.sleep(0.01)

    async def _stream(self) -> bool:
        """Serve one stream to its end; whether it worked for a while."""
        call = self._open(metadata=rpc.stream_metadata(self._signer.service_token()))
        self._generation += 1
        self._up = deque(self._snapshot())
        self._wake.set()
        writing = asyncio.create_task(self._write(call))
        worked = False
        try:
            while True:
                response = await call.read()
                if response is grpc.aio.EOF:
                    return worked
                worked = True
                if not self.connected.is_set():
                    self.connected.set()
                    METRICS.gateway_links.set(1)
                self._down(response)
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            call.cancel()

    def _snapshot(self) -> list[bytes]:
        hello = pb.LinkHello(worker_id=self._worker_id, generation=self._generation)
        # A connection that is gone is attached for its un-answered Sends, which then are stored as they should be.
        gone = {
            session.number: session
            for session, _ in self._pending.values()
            if session.number not in self._sessions.by_number
        }
        return [
            _up(hello=hello),
            _up(snapshot_begin=pb.SnapshotBegin()),
            *(_attach(session) for session in self._sessions.by_number.values()),
            *(_attach(session) for session in gone.values()),
            *(item for _, item in self._pending.values()),
            *(_up(detach=pb.Detach(connection_id=number)) for number in gone),
            _up(snapshot_end=pb.SnapshotEnd()),
        ]

    async def _write(self, call: Any) -> None:
        while True:
            queue = self._up
            if queue is None:
                await call.done_writing()
                return
            if not queue:
                self._wake.clear()
                await self._wake.wait()
                await asyncio.sleep(_LINGER)
                continue
            parts: list[bytes] = []
            size = 0
            while queue and len(parts) < _BATCH_ITEMS and size < _BATCH_BYTES:
                item = queue.popleft()
                size += len(item)
                parts.append(item)
            METRICS.gateway_link_items.observe(len(parts))
            await call.write(b"".join(parts))

    # ---------------------------------------------------------------------------------------- down

    def _down(self, response: pb.LinkResponse) -> None:
        """Hand bytes to connections: all of one batch in one write each."""
        by_number = self._sessions.by_number
        outgoing: dict[Session, list[bytes]] = {}
        refused: list[tuple[Session, pb.Refusal]] = []
        frames = 0
        for item in response.items:
            if item.send_id:
                self._answered(item)
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
        METRICS.gateway_frames.labels("out").inc(frames)
        size = 0
        for session, parts in outgoing.items():
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            size += len(data)
            self._sessions.push(session, data)
        METRICS.gateway_bytes.labels("out").inc(size)
        for session, refusal in refused:
            replaced = refusal.reason == reasons.ERROR_REASON_SESSION_REPLACED
            code = Close.REPLACED if replaced else Close.SHUT_OUT
            self._sessions.goodbye(session, code, refusal.reason, refusal.message)

    def _answered(self, item: pb.LinkDownItem) -> None:
        pending = self._pending.pop(item.send_id, None)
        if pending is not None:
            # A resumed session counts from 0 again.
            pending[0].unacked = max(0, pending[0].unacked - 1)


def _attach(session: Session) -> bytes:
    who = session.principal
    assert who is not None  # noqa: S101 - only sessions that said Hello
    attach = pb.Attach(
        connection_id=session.number,
        tenant_id=who.tenant,
        user=session.actor(),
        device_id=session.device_id,
        connect_micros=int(session.connected_at * 1_000_000),
        parked=session.parked > 0,
    )
    if who.profile is not None:
        attach.profile.email = who.profile.email
        attach.profile.mobile = who.profile.mobile
        for system, value in who.profile.ids:
            attach.profile.ids.add(namespace=system, value=value)
    return _up(attach=attach)
