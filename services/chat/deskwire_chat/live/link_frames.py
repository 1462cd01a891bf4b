"""The frames of connections: messages to store, requests for history, typing."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire.shard.v1 import shard_service_pb2 as pb
from deskwire_chat import views
from deskwire_chat.domain.actors import ActorRole
from deskwire_chat.domain.conversations import (
    Conversation,
    conversation_not_found,
    may_see,
    participants,
    takes_part,
)
from deskwire_chat.live.audience import Audience
from deskwire_chat.live.connections import Connections
from deskwire_chat.live.lookups import REST, Lookups, too_much_waits
from deskwire_chat.live.presence import Presence
from deskwire_chat.live.receipts import Receipts
from deskwire_chat.live.stream import Connection
from deskwire_chat.log import codec
from deskwire_chat.log.commands import Put, Stored
from deskwire_chat.log.writer import LogWriter
from deskwire_chat.owners.errors import NotOwner
from deskwire_chat.routing.router import Router
from deskwire_chat.store import conversations, messages, receipts
from deskwire_chat.store.unread import unread_by
from deskwire_common import telemetry
from deskwire_common.db import Database
from deskwire_common.errors import (
    DeskwireError,
    Internal,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from deskwire_common.ids import is_uuid
from deskwire_common.lines import MOST, OwnLines
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_common.validation import Validator
from deskwire_wire.batches import encoded
from deskwire_wire.errors import error_batch

_MAX_TYPED: Final = 100
_SYNC_LIMIT: Final = 200
_MAY_NOT_OPEN: Final = frozenset(
    {reasons.ERROR_REASON_TOO_MANY_CONVERSATIONS, reasons.ERROR_REASON_TOO_MANY_OPENINGS}
)
_OPENING_SECONDS: Final = 1.0
"""For how long a visitor's openings aren't looked at again after one that was refused."""
_TYPING_SECONDS: Final = 2.0
"""For how long the same Typing of a connection isn't passed on again."""


class LinkFrames:
    """Serves the frames of connections."""

    def __init__(
        self,
        db: Database,
        audience: Audience,
        connections: Connections,
        writer: LogWriter,
        router: Router,
        receipts: Receipts,
        presence: Presence,
        lookups: Lookups,
        validator: Validator,
        reads: asyncio.Semaphore,
    ) -> None:
        """`reads` bounds how many reads for links run at once."""
        self._db = db
        self._audience = audience
        self._connections = connections
        self._writer = writer
        self._router = router
        self._receipts = receipts
        self._presence = presence
        self._validator = validator
        self._lookups = lookups
        self._reads = reads

    def handle(self, connection: Connection, kind: str, payload: Any) -> None:
        """Serve one frame; `kind` is the name of its field in LinkUpItem, and `payload` is the value of that field."""
        if kind == "send":
            self._send(connection, payload)
        elif kind == "sync":
            self._sync(connection, payload.sync, payload.send_id)
        elif kind == "detach":
            self._connections.remove(connection)
        elif kind == "park":
            self._connections.park(connection)
        elif kind == "unpark":
            self._connections.unpark(connection)
            self._presence.reconnected(connection)
        elif connection.refused is None and kind == "receipt":
            self._receipts.take(connection, payload)
        elif connection.refused is None and kind == "typing":
            self._typing(connection, payload)

    # ---------------------------------------------------------------------------------------- send

    def _send(self, connection: Connection, item: pb.LinkSend) -> None:
        send = item.send
        reply = partial(
            _answer,
            self._writer,
            connection,
            item.send_id,
            send.conversation_id,
            send.client_msg_id,
        )
        try:
            if connection.refused is not None:
                raise connection.refused
            if connection.may_not_open is not None:
                self._check_opening(connection, send.conversation_id)
            kind, target_seq = views.content.checked(send, self._validator, lower_case=True)
            traceparent = send.traceparent
            self._writer.submit(
                Put(
                    who=connection.who,
                    conversation_id=send.conversation_id,
                    client_msg_id=send.client_msg_id,
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

    def _check_opening(self, connection: Connection, conversation_id: str) -> None:
        """Raise for a conversation that isn't in memory, while its visitor was just told that they may open no more.

        To refuse it in the writer costs everybody a transaction instead of one statement.
        """
        assert connection.may_not_open is not None  # noqa: S101 - the caller has looked
        told, until = connection.may_not_open
        pause = until - asyncio.get_running_loop().time()
        if pause <= 0:
            connection.may_not_open = None
        elif self._writer.memory.get(conversation_id) is None:
            raise ResourceExhausted(
                told.message, reason=told.reason, metadata=told.metadata, retry_after=pause
            )

    # ------------------------------------------------------------------------------------- history

    def _sync(self, connection: Connection, sync: frame_pb2.Sync, sync_id: int) -> None:
        """Answer a Sync when its user's turn comes."""
        work = partial(self._answer_sync, connection, sync, sync_id)
        if not connection.stream.turns.ask(connection.who.tenant, connection.user, work):
            refused = error_batch(too_much_waits(), conversation_id=sync.conversation_id)
            connection.put_item(codec.down_item([connection.id], refused, send_id=sync_id))

    async def _answer_sync(
        self, connection: Connection, sync: frame_pb2.Sync, sync_id: int
    ) -> float:
        if connection.is_gone:
            return 0
        # A stream that asks for more than goes down waits here, and no messages wait behind it.
        await connection.stream.room()
        rest = 0.0
        try:
            batch = await self._synced(connection, sync)
            if batch is None:
                rest = REST
                batch = error_batch(
                    conversation_not_found(sync.conversation_id),
                    conversation_id=sync.conversation_id,
                )
        except DeskwireError as error:
            batch = error_batch(error, conversation_id=sync.conversation_id)
        except Exception as error:  # noqa: BLE001 - without an answer the gateway would ask again for ever
            get_logger().error("sync_failed", exc_info=error)
            batch = error_batch(
                Unavailable("history can't be read now; Sync again", retry_after=1.0),
                conversation_id=sync.conversation_id,
            )
        connection.put_item(codec.down_item([connection.id], batch, send_id=sync_id))
        return rest

    async def _synced(self, connection: Connection, sync: frame_pb2.Sync) -> bytes | None:
        """Return the encoded answer to a Sync; None when its conversation was looked up in vain."""
        if connection.refused is not None:
            raise connection.refused
        self._validator.check(sync)
        self._lookups.known(connection, sync.conversation_id)
        async with self._reads, self._db.read() as c:
            conversation = await conversations.get(c, connection.who.tenant, sync.conversation_id)
            if conversation is None or not may_see(conversation, connection.who):
                return None
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
            count = await unread_by(c, conversation, connection.who)
        return views.frames.synced(conversation, run, got, connection.who, count)

    # -------------------------------------------------------------------------------------- typing

    def _typing(self, connection: Connection, item: pb.LinkTyping) -> None:
        """Pass a Typing on to the others, unless the same one went out just now.

        A sender who may not type is ignored: the frame isn't worth an answer. Nor is it worth a wait: a conversation
        that isn't in memory is looked up only for a user who waits for nothing else.
        """
        turns, tenant = connection.stream.turns, connection.who.tenant
        with contextlib.suppress(NotFound):
            found = self._lookups.known(connection, item.conversation_id)
            if found is not None:
                self._pass_on(connection, item, found)
            elif is_uuid(item.conversation_id) and turns.is_idle(tenant, connection.user):
                turns.ask(tenant, connection.user, partial(self._look, connection, item))

    async def _look(self, connection: Connection, item: pb.LinkTyping) -> float:
        with contextlib.suppress(DeskwireError, SQLAlchemyError):
            found = await self._lookups.find(connection, item.conversation_id)
            return 0 if found and self._pass_on(connection, item, found) else REST
        return 0

    def _pass_on(
        self, connection: Connection, item: pb.LinkTyping, conversation: Conversation
    ) -> bool:
        """Return whether the connection's user takes part, so that it may be passed on."""
        if not takes_part(conversation, connection.who):
            return False
        typed = connection.typed = connection.typed or {}
        now = asyncio.get_running_loop().time()
        if len(typed) > _MAX_TYPED:
            typed.clear()
        was, at = typed.get(item.conversation_id, (False, 0.0))
        if was == item.typing and now - at < _TYPING_SECONDS:
            return True
        typed[item.conversation_id] = item.typing, now
        batch = encoded(
            typing=frame_pb2.Typing(
                conversation_id=item.conversation_id,
                typing=item.typing,
                user=views.messages.actor(connection.who),
            )
        )
        others = [each for each in participants(conversation) if each != connection.user]
        self._audience.deliver(others, batch, ephemeral=True)
        return True


def _answer(
    writer: LogWriter,
    connection: Connection,
    send_id: int,
    conversation_id: str,
    client_msg_id: str,
    result: Stored | DeskwireError,
) -> None:
    """Tell the gateway how a Send ended."""
    if isinstance(result, Stored):
        if connection.held:
            connection.held.discard(conversation_id)
        ack = codec.send_ack(
            result.message, result.epoch, result.encoded_time, duplicate=result.duplicate
        )
        item = codec.down_item([connection.id], ack, send_id=send_id, stored=True)
    elif isinstance(result, NotOwner):
        item = codec.not_owner_item(send_id)
    else:
        held = False
        if result.temporary:
            visits = connection.who.role == ActorRole.VISITOR
            connection.held = connection.held or OwnLines(MOST if visits else None)
            writer.forget_line(connection, connection.held.add(conversation_id))
            held = result.reason != reasons.ERROR_REASON_LINE_HELD
        if result.reason in _MAY_NOT_OPEN and connection.may_not_open is None:
            until = asyncio.get_running_loop().time() + _OPENING_SECONDS
            connection.may_not_open = result, until
        error = error_batch(result, client_msg_id=client_msg_id, conversation_id=conversation_id)
        item = codec.down_item([connection.id], error, send_id=send_id, held=held)
    connection.put_item(item)


def refusal(kind: str, payload: Any) -> bytes | None:
    """Return the item that answers a frame which failed for a fault of ours; None: nobody waits for an answer."""
    if kind not in {"send", "sync"}:
        return None
    asked = getattr(payload, kind)
    batch = error_batch(
        Internal("a fault of deskwire's"),
        client_msg_id=asked.client_msg_id if kind == "send" else "",
        conversation_id=asked.conversation_id,
    )
    return codec.down_item([payload.connection_id], batch, send_id=payload.send_id)
