"""The streams of the gateway's workers: who is connected, what they send, and what is pushed to them.

Presence is the stream: an Attach or a Detach is all that is known of a connection, and a stream that ends takes its
connections with it. Bytes go down in batches: written when the previous write is done, after a short linger.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Hashable, Iterable
from typing import Any, Final

import grpc
from sqlalchemy.exc import SQLAlchemyError

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire.shard.v1 import shard_service_pb2 as pb
from deskwire_chat import views
from deskwire_chat.domain import ActorRole, Conversation, Writer, conversation_not_found, may_see
from deskwire_chat.gate import Gate
from deskwire_chat.routing import Router
from deskwire_chat.shard import codec
from deskwire_chat.shard.commands import Store, Stored, UserKey
from deskwire_chat.shard.writer import ShardWriter
from deskwire_chat.store import conversations, messages
from deskwire_common import rpc, telemetry
from deskwire_common.auth import ANY_TENANT, Profile, Role, TokenVerifier
from deskwire_common.db import Database
from deskwire_common.errors import (
    DeskwireError,
    InvalidArgument,
    PermissionDenied,
    Unavailable,
)
from deskwire_common.ids import is_uuid
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_common.validation import Validator

SERVICE: Final = "deskwire.shard.v1.ShardService"
METHOD: Final = f"/{SERVICE}/Link"
ROLES: Final = frozenset({Role.SERVICE})

_LINGER: Final = 0.002
_BATCH_ITEMS: Final = 200
_BATCH_BYTES: Final = 65_536
_QUEUE_BYTES: Final = 64 * 1024 * 1024
_READS: Final = 8
_SYNC_LIMIT: Final = 200
_MAX_TEXT: Final = 8_000


class _Connection:
    """One connection of a worker: the `line` of its Sends. One that is `refused` only waits for its Detach."""

    __slots__ = ("held", "id", "link", "refused", "user", "who")

    def __init__(self, link: _Link, number: int, who: Writer) -> None:
        self.link = link
        self.id = number
        self.who = who
        self.user: UserKey = (who.tenant, int(who.role), who.subject)
        self.held: set[str] = set()
        self.refused: DeskwireError | None = None


class _Link:
    """One stream, and what waits to go down on it."""

    def __init__(self) -> None:
        self.worker_id = ""
        self.generation = 0
        self.connections: dict[int, _Connection] = {}
        self.closed = False
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._ended = False

    def put(self, item: bytes) -> None:
        """Queue an encoded LinkResponse with one item."""
        if self.closed:
            return
        self._bytes += len(item)
        if self._bytes > _QUEUE_BYTES:
            # The gateway doesn't read: it reconnects, and its clients Sync.
            get_logger().warning("link_too_slow", worker_id=self.worker_id, bytes=self._bytes)
            self.close()
            return
        self._queue.append(item)
        self._wake.set()

    def close(self) -> None:
        """End the stream at once."""
        self.closed = True
        self._queue.clear()
        self._wake.set()

    def end(self) -> None:
        """End the stream when everything that waits has gone down."""
        self._ended = True
        self._wake.set()

    async def batches(self) -> AsyncIterator[bytes]:
        """Encoded LinkResponses, ready to write."""
        while not self.closed:
            if not self._queue:
                if self._ended:
                    return
                self._wake.clear()
                await self._wake.wait()
                await asyncio.sleep(_LINGER)
                continue
            parts: list[bytes] = []
            size = 0
            while self._queue and len(parts) < _BATCH_ITEMS and size < _BATCH_BYTES:
                item = self._queue.popleft()
                size += len(item)
                parts.append(item)
            self._bytes -= size
            yield b"".join(parts)


class Links:
    """All streams of this shard."""

    def __init__(
        self,
        db: Database,
        router: Router,
        gate: Gate,
        verifier: TokenVerifier,
        validator: Validator,
    ) -> None:
        self._db = db
        self._router = router
        self._gate = gate
        self._verifier = verifier
        self._validator = validator
        self._writer: ShardWriter | None = None
        self._users: dict[UserKey, dict[int, _Connection]] = {}
        self._numbers = itertools.count(1)
        self._workers: dict[str, _Link] = {}
        self._open: set[_Link] = set()
        self._reads = asyncio.Semaphore(_READS)
        self._tasks: set[asyncio.Task[None]] = set()

    def bind(self, writer: ShardWriter) -> None:
        """Give it the writer, which in turn delivers through `deliver`."""
        self._writer = writer

    # ---------------------------------------------------------------------------------- delivering

    def deliver(self, users: Iterable[UserKey], batch: bytes, *, without: Hashable = None) -> None:
        """Send an encoded Batch to all connections of some users, but not to the connection `without`."""
        ids: dict[_Link, list[int]] = {}
        for user in users:
            for connection in self._users.get(user, {}).values():
                if connection is not without:
                    ids.setdefault(connection.link, []).append(connection.id)
        for link, numbers in ids.items():
            METRICS.deliveries.inc(len(numbers))
            link.put(codec.down_item(numbers, batch))

    def expel(self) -> None:
        """End the connections of all users whom the gate doesn't let in any more."""
        for user in list(self._users):
            refusal = self._gate.refusal_of(user)
            if refusal is not None:
                for connection in list(self._users[user].values()):
                    self._leave(connection)
                    self._refuse(connection, refusal)

    # ------------------------------------------------------------------------------------ the RPC

    def register(self, server: grpc.aio.Server) -> None:
        """Add ShardService to a server; responses are bytes that are encoded already."""
        handler: Any = grpc.stream_stream_rpc_method_handler(
            self.link,
            request_deserializer=pb.LinkRequest.FromString,
            response_serializer=bytes,
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Link": handler}),)
        )

    async def link(
        self,
        requests: AsyncIterator[pb.LinkRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[bytes]:
        """Serve one stream."""
        principal = await rpc.authenticate_stream(context, self._verifier, ROLES, METHOD)
        if principal.tenant != ANY_TENANT:
            await rpc.refuse(
                context, PermissionDenied("a link needs a service token of all tenants")
            )
        link = _Link()
        self._open.add(link)
        reading = asyncio.create_task(self._read(link, requests))
        try:
            async for batch in link.batches():
                yield batch
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self._open.discard(link)
            self._drop(link)

    async def drain(self) -> None:
        """End all streams; the gateway's workers open others, elsewhere or later."""
        for link in list(self._open):
            link.end()
        for task in list(self._tasks):
            task.cancel()

    async def _read(self, link: _Link, requests: AsyncIterator[pb.LinkRequest]) -> None:
        try:
            async for request in requests:
                attached: list[_Connection] = []
                for item in request.items:
                    self._handle(link, item, attached)
                if attached:
                    self._spawn(self._heads(attached))
        except Exception as error:  # noqa: BLE001 - the stream ends; the worker opens another one
            get_logger().warning("link_failed", worker_id=link.worker_id, exc_info=error)
        link.end()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _handle(self, link: _Link, item: pb.LinkUpItem, attached: list[_Connection]) -> None:
        kind = item.WhichOneof("kind")
        if kind == "send":
            self._send(link, item.send)
        elif kind == "sync":
            self._spawn(self._sync(link, item.sync))
        elif kind == "attach":
            connection = self._attach(link, item.attach)
            if connection is not None:
                attached.append(connection)
        elif kind == "detach":
            self._detach(link, item.detach.connection_id)
        elif kind == "hello":
            link.worker_id, link.generation = item.hello.worker_id, item.hello.generation
        elif kind == "snapshot_end":
            self._complete(link)

    # ----------------------------------------------------------------------------------- presence

    def _attach(self, link: _Link, attach: pb.Attach) -> _Connection | None:
        who = Writer(
            tenant=attach.tenant_id,
            role=ActorRole(attach.user.role),
            subject=attach.user.subject,
            name=attach.user.display_name,
            profile=_profile(attach.profile) if attach.HasField("profile") else None,
        )
        connection = _Connection(link, attach.connection_id, who)
        link.connections[connection.id] = connection
        METRICS.attached.inc()
        refusal = self._gate.refusal_of(connection.user)
        if refusal is not None:
            self._refuse(connection, refusal)
            return None
        self._users.setdefault(connection.user, {})[next(self._numbers)] = connection
        if who.role == ActorRole.AGENT:
            self._router.connected(who.tenant, who.subject)
        return connection

    def _detach(self, link: _Link, number: int) -> None:
        connection = link.connections.pop(number, None)
        if connection is None:
            return
        METRICS.attached.dec()
        if connection.refused is None:
            self._leave(connection)

    @staticmethod
    def _refuse(connection: _Connection, refusal: DeskwireError) -> None:
        """Have the gateway end a connection that nobody is reached at any more."""
        connection.refused = refusal
        connection.link.put(codec.refusal_item([connection.id], refusal.reason, refusal.message))

    def _leave(self, connection: _Connection) -> None:
        """Nobody is reached at a connection any more: no pushes, no routing."""
        here = self._users[connection.user]
        for key in [key for key, each in here.items() if each is connection]:
            del here[key]
        if not here:
            del self._users[connection.user]
        if connection.held and self._writer is not None:
            self._writer.forget_line(connection, connection.held)
        if connection.who.role == ActorRole.AGENT:
            self._router.disconnected(connection.who.tenant, connection.who.subject)

    def _complete(self, link: _Link) -> None:
        """A snapshot is complete: the worker's earlier stream is over."""
        earlier = self._workers.get(link.worker_id)
        if earlier is not None and earlier.generation >= link.generation:
            return
        self._workers[link.worker_id] = link
        if earlier is not None:
            self._drop(earlier)
            earlier.close()

    def _drop(self, link: _Link) -> None:
        link.closed = True
        for number in list(link.connections):
            self._detach(link, number)
        if self._workers.get(link.worker_id) is link:
            del self._workers[link.worker_id]

    async def _heads(self, attached: list[_Connection]) -> None:
        """Answer Attaches: where the user's open conversations stand, read after the attaching took effect."""
        groups: dict[tuple[str, ActorRole], list[_Connection]] = {}
        for connection in attached:
            groups.setdefault((connection.who.tenant, connection.who.role), []).append(connection)
        for (tenant, role), members in groups.items():
            if role not in {ActorRole.VISITOR, ActorRole.AGENT}:
                continue
            subjects = list({each.who.subject for each in members})
            try:
                async with self._reads, self._db.read() as c:
                    read = (
                        conversations.open_of_visitors
                        if role == ActorRole.VISITOR
                        else conversations.open_of_agents
                    )
                    found = await read(c, tenant, subjects)
            except (DeskwireError, SQLAlchemyError) as error:
                # Without a head a client couldn't see what it missed: its worker must come again.
                get_logger().warning("heads_not_read", error=type(error).__name__)
                for link in {each.link for each in members}:
                    link.end()
                continue
            by_user: dict[str, list[Conversation]] = {}
            for conversation in found:
                owner = (
                    conversation.visitor_id if role == ActorRole.VISITOR else conversation.agent_id
                )
                by_user.setdefault(owner, []).append(conversation)
            for connection in members:
                frames = [views.head(each) for each in by_user.get(connection.who.subject, ())]
                if frames:
                    batch = frame_pb2.Batch(frames=frames).SerializeToString()
                    connection.link.put(codec.down_item([connection.id], batch))

    # ------------------------------------------------------------------------------------- frames

    def _send(self, link: _Link, item: pb.LinkSend) -> None:
        connection = link.connections.get(item.connection_id)
        if connection is None:
            return  # it left before its Send came
        send = item.send
        send_id = item.send_id

        def reply(result: Stored | DeskwireError) -> None:
            if isinstance(result, Stored):
                connection.held.discard(send.conversation_id)
                batch = codec.send_ack(
                    result.message, result.epoch, result.encoded_time, duplicate=result.duplicate
                )
            else:
                if result.temporary:
                    connection.held.add(send.conversation_id)
                batch = views.error_frame(
                    result,
                    client_msg_id=send.client_msg_id,
                    conversation_id=send.conversation_id,
                )
            link.put(
                codec.down_item(
                    [connection.id], batch, send_id=send_id, stored=isinstance(result, Stored)
                )
            )

        try:
            if connection.refused is not None:
                raise connection.refused
            self._check_send(send)
            if self._writer is None:
                raise Unavailable("the shard is not ready", retry_after=0.5)
            self._writer.submit(
                Store(
                    who=connection.who,
                    conversation_id=send.conversation_id,
                    client_msg_id=send.client_msg_id,
                    body=send.content.SerializeToString(),
                    reply=reply,
                    traceparent=send.traceparent if telemetry.sampled(send.traceparent) else "",
                    line=connection,
                )
            )
        except DeskwireError as error:
            METRICS.messages_refused.labels(error.reason_name).inc()
            reply(error)

    def _check_send(self, send: frame_pb2.Send) -> None:
        """The contract's rules by hand, as this is the hot path; the validator words what they find."""
        check_client_msg_id(send.client_msg_id)
        if not (
            is_uuid(send.conversation_id)
            and 0 < len(send.client_msg_id) <= 64
            and send.content.WhichOneof("kind") == "text"
            and 0 < len(send.content.text) <= _MAX_TEXT
            and len(send.traceparent) <= 55
        ):
            self._validator.check(send)
            if not is_uuid(send.conversation_id):
                raise InvalidArgument(
                    "write conversation_id in lower case", field="conversation_id"
                )

    async def _sync(self, link: _Link, item: pb.LinkSync) -> None:
        connection = link.connections.get(item.connection_id)
        if connection is None:
            return
        sync = item.sync
        try:
            if connection.refused is not None:
                raise connection.refused
            self._validator.check(sync)
            async with self._reads, self._db.read() as c:
                conversation = await conversations.get(
                    c, connection.who.tenant, sync.conversation_id
                )
                if conversation is None or not may_see(conversation, connection.who):
                    raise conversation_not_found(sync.conversation_id)
                run = await messages.after_seq(
                    c, sync.conversation_id, seq=sync.after_seq, limit=sync.limit or _SYNC_LIMIT
                )
            if run:
                conversation.head_seq = max(conversation.head_seq, run[-1].seq)
            batch = views.synced(conversation, run)
        except DeskwireError as error:
            batch = views.error_frame(error, conversation_id=sync.conversation_id)
        except SQLAlchemyError:
            get_logger().exception("sync_failed")
            batch = views.error_frame(
                Unavailable("history can't be read now; Sync again", retry_after=1.0),
                conversation_id=sync.conversation_id,
            )
        link.put(codec.down_item([connection.id], batch))


def check_client_msg_id(client_msg_id: str) -> None:
    """Raise InvalidArgument for what isn't the same id on every database: MariaDB ignores blanks at the end."""
    if not client_msg_id.isprintable() or client_msg_id.endswith(" "):
        raise InvalidArgument(
            "client_msg_id may hold printable characters only, the last one no blank",
            field="client_msg_id",
            reason=reasons.ERROR_REASON_INVALID_FIELD,
        )


def _profile(profile: pb.Profile) -> Profile:
    ids = tuple((each.namespace, each.value) for each in profile.ids)
    return Profile(profile.email, profile.mobile, ids)
