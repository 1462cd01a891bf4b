"""The streams of the gateway's workers: who comes and goes, and what they say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from typing import Any, Final

import grpc
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire.shard.v1 import shard_service_pb2 as pb
from deskwire_chat import views
from deskwire_chat.domain.actors import Actor, ActorRole
from deskwire_chat.domain.conversations import (
    PARTITIONS,
    Conversation,
    conversation_not_found,
    may_see,
    participants,
    takes_part,
)
from deskwire_chat.domain.customers import Customer
from deskwire_chat.domain.messages import Kind, check_client_msg_id
from deskwire_chat.live.connections import Connection, Connections, Stream
from deskwire_chat.live.offer_feed import OfferFeed
from deskwire_chat.live.presence import Presence
from deskwire_chat.live.queue_feed import QueueFeed
from deskwire_chat.live.receipts import Receipts
from deskwire_chat.log import codec
from deskwire_chat.log.commands import NotOwner, Put, Stored
from deskwire_chat.log.writer import LogWriter
from deskwire_chat.owners.ownership import Ownership
from deskwire_chat.routing.router import Router
from deskwire_chat.store import conversations, customers, messages, receipts
from deskwire_common import rpc, telemetry
from deskwire_common.auth import ANY_TENANT, Profile, Role, TokenVerifier
from deskwire_common.db import Database
from deskwire_common.errors import (
    DeskwireError,
    Internal,
    InvalidArgument,
    PermissionDenied,
    Unavailable,
)
from deskwire_common.ids import is_uuid
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_common.pacing import link_pace
from deskwire_common.pagination import fit
from deskwire_common.validation import Validator
from deskwire_wire.batches import encoded
from deskwire_wire.errors import error_batch
from deskwire_wire.limits import MAX_CLIENT_MSG_ID, MAX_TEXT, MAX_TRACEPARENT

SERVICE: Final = "deskwire.shard.v1.ShardService"
METHOD: Final = f"/{SERVICE}/Link"
ROLES: Final = frozenset({Role.SERVICE})

_READS: Final = 8
_MAX_TYPED: Final = 100
_HEADS_CHUNK: Final = 500
_SYNC_LIMIT: Final = 200
_BATCH_BYTES: Final = 65_536
_DOWN_SECONDS: Final = 0.02
"""Batches of a stream aren't further apart: commits are (writer), and what one brings waits for no second pause."""
_TYPING_SECONDS: Final = 2.0
"""So soon the same Typing of a connection isn't told again."""


class Links:
    """All streams of this shard."""

    def __init__(
        self,
        db: Database,
        connections: Connections,
        presence: Presence,
        receipts: Receipts,
        feeds: QueueFeed,
        offers: OfferFeed,
        router: Router,
        verifier: TokenVerifier,
        validator: Validator,
    ) -> None:
        self._db = db
        self._connections = connections
        self._presence = presence
        self._receipts = receipts
        self._feeds = feeds
        self._offers = offers
        self._router = router
        self._verifier = verifier
        self._validator = validator
        self._writer: LogWriter | None = None
        self._ownership: Ownership | None = None
        self._workers: dict[str, Stream] = {}
        self._open: set[Stream] = set()
        self._reads = asyncio.Semaphore(_READS)
        self._tasks: set[asyncio.Task[None]] = set()
        connections.freed = self._freed

    def bind(self, writer: LogWriter, ownership: Ownership) -> None:
        """Give it the writer, which in turn delivers to the connections."""
        self._writer = writer
        self._ownership = ownership

    # --------------------------------------------------------------------------------- partitions

    def gained(self, numbers: Collection[int]) -> None:
        """Tell those who are here how the conversations of these partitions stand: the last owner may have died."""
        here = [each for stream in self._open for each in stream.connections.values()]
        for start in range(0, len(here), _HEADS_CHUNK):
            self._spawn(self._heads(here[start : start + _HEADS_CHUNK], set(numbers)))

    def owners_changed(self) -> None:
        """Tell the gateways who owns what, once this process is there for others."""
        if self._ownership is not None and self._ownership.address:
            item = self._owners()
            for stream in self._open:
                if stream.worker_id:
                    stream.put(item)

    def _owners(self) -> bytes:
        assert self._ownership is not None  # noqa: S101 - callers have looked
        owners = pb.Owners(
            address=self._ownership.address,
            partition_count=PARTITIONS,
            links=len(self._open),
        )
        for shard, theirs in self._ownership.owners():
            told = owners.shards.add(name=shard.name, address=shard.address)
            for number, term in theirs:
                told.partitions.add(number=number, term=term)
        return pb.LinkResponse(items=[pb.LinkDownItem(owners=owners)]).SerializeToString()

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
        stream = Stream()
        self._open.add(stream)
        self._keep_pace()
        reading = asyncio.create_task(self._read(stream, requests))
        try:
            async for batch in stream.batches():
                yield batch
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self._open.discard(stream)
            self._drop(stream)
            self._keep_pace()

    def _keep_pace(self) -> None:
        """There is a stream more, or less: both sides of all are to know."""
        for stream in self._open:
            stream.pace = link_pace(len(self._open), longest=_DOWN_SECONDS)
        self.owners_changed()

    async def drain(self) -> None:
        """End all streams; the gateway's workers open others, elsewhere or later."""
        for stream in list(self._open):
            stream.end()
        for task in list(self._tasks):
            task.cancel()

    async def _read(self, stream: Stream, requests: AsyncIterator[pb.LinkRequest]) -> None:
        try:
            async for request in requests:
                attached: list[Connection] = []
                for item in request.items:
                    try:
                        self._handle(stream, item, attached)
                    except Exception as error:  # noqa: BLE001 - only this item fails: said again, it would fail again
                        get_logger().error(
                            "item_failed", kind=item.WhichOneof("kind"), exc_info=error
                        )
                        self._refuse(stream, item)
                if attached:
                    self._spawn(self._heads(attached))
        except Exception as error:  # noqa: BLE001 - the stream ends; the worker opens another one
            get_logger().warning("link_failed", worker_id=stream.worker_id, exc_info=error)
        stream.end()

    @staticmethod
    def _refuse(stream: Stream, item: pb.LinkUpItem) -> None:
        """Answer what could not be handled, for our own fault, where an answer is waited for."""
        kind = item.WhichOneof("kind")
        if kind not in {"send", "sync"}:
            return
        said = getattr(item, kind)
        asked = getattr(said, kind)
        batch = error_batch(
            Internal("a fault of deskwire's"),
            client_msg_id=asked.client_msg_id if kind == "send" else "",
            conversation_id=asked.conversation_id,
        )
        stream.put(codec.down_item([said.connection_id], batch, send_id=said.send_id))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _handle(self, stream: Stream, item: pb.LinkUpItem, attached: list[Connection]) -> None:
        kind = item.WhichOneof("kind")
        if kind == "attach":
            connection = self._attach(stream, item.attach)
            if connection is not None:
                attached.append(connection)
        elif kind == "hello":
            stream.worker_id, stream.generation = item.hello.worker_id, item.hello.generation
            # Otherwise the first word of the owners is that of the beginning.
            if self._ownership is not None and self._ownership.address:
                stream.put(self._owners())
        elif kind == "snapshot_end":
            self._complete(stream)
        elif kind is not None and kind != "snapshot_begin":
            said = getattr(item, kind)
            # One that isn't there has left before what it said came.
            connection = stream.connections.get(said.connection_id)
            if connection is not None:
                self._frame(connection, kind, said)

    def _frame(self, connection: Connection, kind: str, said: Any) -> None:
        if kind == "send":
            self._send(connection, said)
        elif kind == "sync":
            self._spawn(self._sync(connection, said.sync, said.send_id))
        elif kind == "detach":
            self._connections.remove(connection)
        elif kind == "park":
            self._connections.park(connection)
        elif kind == "unpark":
            self._connections.unpark(connection)
            self._spawn(self._presence.came_back(connection))
        elif connection.refused is None and kind == "receipt":
            self._receipts.told(connection, said)
        elif connection.refused is None and kind == "typing":
            self._spawn(self._typing(connection, said))

    # -------------------------------------------------------------------------------- connections

    def _attach(self, stream: Stream, attach: pb.Attach) -> Connection | None:
        who = Actor(
            tenant=attach.tenant_id,
            role=ActorRole(attach.user.role),
            subject=attach.user.subject,
            name=attach.user.display_name,
            profile=_profile(attach.profile) if attach.HasField("profile") else None,
        )
        connection = Connection(
            stream,
            attach.connection_id,
            who,
            device_id=attach.device_id,
            connected_at=attach.connect_micros,
            parked=attach.parked,
        )
        return connection if self._connections.add(connection) else None

    def _freed(self, connection: Connection) -> None:
        if self._writer is not None and connection.held:
            self._writer.forget_line(connection, connection.held)

    def _complete(self, stream: Stream) -> None:
        """A snapshot is complete: the worker's earlier stream is over."""
        earlier = self._workers.get(stream.worker_id)
        if earlier is not None and earlier.generation >= stream.generation:
            return
        self._workers[stream.worker_id] = stream
        if earlier is not None:
            self._drop(earlier)
            earlier.close()

    def _drop(self, stream: Stream) -> None:
        stream.closed = True
        for connection in list(stream.connections.values()):
            self._connections.remove(connection)
        if self._workers.get(stream.worker_id) is stream:
            del self._workers[stream.worker_id]

    async def _heads(
        self, attached: list[Connection], gained: Collection[int] | None = None
    ) -> None:
        """Answer Attaches: where the user's open conversations stand, read after the attaching took effect.

        Only of this process's partitions: the others' owners tell of theirs. `gained`: only of these.
        """
        groups: dict[tuple[str, ActorRole], list[Connection]] = {}
        for connection in attached:
            groups.setdefault((connection.who.tenant, connection.who.role), []).append(connection)
        for (tenant, role), members in groups.items():
            subjects = list({each.who.subject for each in members})
            try:
                async with self._reads, self._db.read() as c:
                    found = await conversations.open_of(c, tenant, role, subjects)
                    known = await self._customers_of(c, tenant, role, found)
            except (DeskwireError, SQLAlchemyError) as error:
                # Without a head a client couldn't see what it missed: its worker must come again.
                get_logger().warning("heads_not_read", error=type(error).__name__)
                for stream in {each.stream for each in members}:
                    stream.end()
                continue
            for connection in members:
                theirs = [
                    each
                    for each in found.get(connection.who.subject, [])
                    if self._is_told(each.partition, gained)
                ]
                frames: list[frame_pb2.Frame] = []
                for each in theirs:
                    frames += views.frames.heads(each, known.get(each.customer_id))
                frames += self._presence.frames(connection, theirs)
                while frames:
                    # A visitor may have opened any number of conversations.
                    some = fit(frames, _BATCH_BYTES)
                    del frames[: len(some)]
                    connection.put(frame_pb2.Batch(frames=some).SerializeToString())
                if gained is not None:
                    continue
                if not connection.parked:
                    self._presence.came(connection, theirs)
                self._feeds.came(connection)
                self._offers.came(connection)

    def _is_told(self, partition: int, gained: Collection[int] | None) -> bool:
        if gained is not None and partition not in gained:
            return False
        return self._ownership is not None and self._ownership.term_of(partition) > 0

    @staticmethod
    async def _customers_of(
        c: AsyncConnection, tenant: str, role: ActorRole, found: dict[str, list[Conversation]]
    ) -> dict[str, Customer]:
        """The customers whom agents have conversations with."""
        ids = {each.customer_id for theirs in found.values() for each in theirs}
        if role == ActorRole.VISITOR or not ids:
            return {}
        return await customers.get_many(c, tenant, sorted(ids))

    # ------------------------------------------------------------------------------------- frames

    def _send(self, connection: Connection, item: pb.LinkSend) -> None:
        send, send_id = item.send, item.send_id
        conversation_id, client_msg_id = send.conversation_id, send.client_msg_id

        def reply(result: Stored | DeskwireError) -> None:
            held = False
            if isinstance(result, NotOwner):
                connection.stream.put(codec.not_owner_item(send_id))
                return
            if isinstance(result, Stored):
                if connection.held:
                    connection.held.discard(conversation_id)
                batch = codec.send_ack(
                    result.message, result.epoch, result.encoded_time, duplicate=result.duplicate
                )
            else:
                if result.temporary:
                    connection.held = connection.held or set()
                    connection.held.add(conversation_id)
                    held = result.reason != reasons.ERROR_REASON_LINE_HELD
                batch = error_batch(
                    result,
                    client_msg_id=client_msg_id,
                    conversation_id=conversation_id,
                )
            connection.stream.put(
                codec.down_item(
                    [connection.id],
                    batch,
                    send_id=send_id,
                    stored=isinstance(result, Stored),
                    held=held,
                )
            )

        try:
            if connection.refused is not None:
                raise connection.refused
            kind, target_seq = self._check_send(send)
            traceparent = send.traceparent
            if self._writer is None:
                raise Unavailable("the shard is not ready", retry_after=0.5)
            self._writer.submit(
                Put(
                    who=connection.who,
                    conversation_id=conversation_id,
                    client_msg_id=client_msg_id,
                    body=send.content.SerializeToString(),
                    reply=reply,
                    traceparent=traceparent if telemetry.sampled(traceparent) else "",
                    line=connection,
                    kind=kind,
                    target_seq=target_seq,
                    term=item.term,
                )
            )
            if connection.who.role == ActorRole.AGENT:
                self._router.agent_active(connection.who.tenant, connection.who.subject)
        except DeskwireError as error:
            METRICS.messages_refused.labels(error.reason_name).inc()
            reply(error)

    def _check_send(self, send: frame_pb2.Send) -> tuple[Kind, int]:
        """The contract's rules by hand, as this is the hot path; the validator words what they find.

        Returns what is to be written, and the seq that it changes.
        """
        client_msg_id, conversation_id = send.client_msg_id, send.conversation_id
        content = send.content
        check_client_msg_id(client_msg_id)
        if not (
            is_uuid(conversation_id)
            and 0 < len(client_msg_id) <= MAX_CLIENT_MSG_ID
            and content.WhichOneof("kind") == "text"
            and 0 < len(content.text) <= MAX_TEXT
            and len(send.traceparent) <= MAX_TRACEPARENT
        ):
            self._validator.check(send)
            if not is_uuid(conversation_id):
                raise InvalidArgument(
                    "write conversation_id in lower case", field="conversation_id"
                )
            return views.content.kind_of(content)
        return Kind.TEXT, 0

    async def _sync(self, connection: Connection, sync: frame_pb2.Sync, sync_id: int) -> None:
        async with connection.stream.answers:
            # Whoever asks for more than goes down waits here, and nobody's messages wait behind it.
            await connection.stream.room()
            batch = await self._synced(connection, sync)
            connection.stream.put(codec.down_item([connection.id], batch, send_id=sync_id))

    async def _synced(self, connection: Connection, sync: frame_pb2.Sync) -> bytes:
        """Return the encoded answer to a Sync, or the Error that refuses it."""
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
                    c,
                    sync.conversation_id,
                    seq=sync.after_seq,
                    limit=sync.limit or _SYNC_LIMIT,
                    max_bytes=views.frames.SYNCED_BYTES,
                )
                got = await receipts.of_conversation(c, sync.conversation_id)
            if run:
                conversation.head_seq = max(conversation.head_seq, run[-1].seq)
            return views.frames.synced(conversation, run, got, connection.who)
        except DeskwireError as error:
            return error_batch(error, conversation_id=sync.conversation_id)
        except Exception as error:  # noqa: BLE001 - without an answer the gateway would ask again for ever
            get_logger().error("sync_failed", exc_info=error)
            return error_batch(
                Unavailable("history can't be read now; Sync again", retry_after=1.0),
                conversation_id=sync.conversation_id,
            )

    async def _typing(self, connection: Connection, item: pb.LinkTyping) -> None:
        """Tell the others, unless they were told just now. Whoever may not is not answered: it is worth nothing."""
        typed = connection.typed = connection.typed or {}
        now = asyncio.get_running_loop().time()
        if len(typed) > _MAX_TYPED:
            typed.clear()
        was, at = typed.get(item.conversation_id, (False, 0.0))
        if was == item.typing and now - at < _TYPING_SECONDS:
            return
        typed[item.conversation_id] = item.typing, now
        conversation = await self._known(connection, item.conversation_id)
        if conversation is None or not takes_part(conversation, connection.who):
            return
        batch = encoded(
            typing=frame_pb2.Typing(
                conversation_id=item.conversation_id,
                typing=item.typing,
                user=views.messages.actor(connection.who),
            )
        )
        others = [each for each in participants(conversation) if each != connection.user]
        self._connections.deliver(others, batch, ephemeral=True)

    async def _known(self, connection: Connection, conversation_id: str) -> Conversation | None:
        """A conversation that somebody may see, from memory or the database."""
        found = self._writer.memory.get(conversation_id) if self._writer is not None else None
        if found is None and is_uuid(conversation_id):
            with contextlib.suppress(DeskwireError, SQLAlchemyError):
                async with self._reads, self._db.read() as c:
                    found = await conversations.get(c, connection.who.tenant, conversation_id)
        return found if found is not None and may_see(found, connection.who) else None


def _profile(profile: pb.Profile) -> Profile:
    ids = tuple((each.namespace, each.value) for each in profile.ids)
    return Profile(profile.email, profile.mobile, ids)
