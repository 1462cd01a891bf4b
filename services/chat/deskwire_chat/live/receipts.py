"""How far each user has got: receipts are gathered for a moment, stored together, and then pushed.

A receipt only moves forward, in the database too, so that neither a late one nor a second process moves it back.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from deskwire.gateway.v1 import frame_pb2
from deskwire.shard.v1 import shard_service_pb2 as pb
from deskwire_chat import domain, views
from deskwire_chat.domain.conversations import Conversation, participants
from deskwire_chat.domain.messages import Receipt
from deskwire_chat.live.audience import Audience
from deskwire_chat.live.lookups import REST, Lookups, too_much_waits
from deskwire_chat.live.stream import Connection
from deskwire_chat.live.unread_feed import UnreadFeed
from deskwire_chat.log.memory import Memory
from deskwire_chat.store import conversations, receipts
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import AWAY, Database, UnitOfWork
from deskwire_common.errors import DeskwireError, NotFound, PermissionDenied
from deskwire_common.ids import is_uuid
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_wire.batches import encoded
from deskwire_wire.errors import error_batch

_JOIN_SECONDS: Final = 0.1
_CHUNK: Final = 500
_WAITING: Final = 50_000
"""Receipts that may wait; more are dropped, as a client repeats its last one."""
_KNOWN: Final = 50_000
_RETRY_SECONDS: Final = 1.0

_Key = tuple[str, int, str]
"""Conversation, role, subject."""


@dataclass(slots=True)
class _Waiting:
    connection: Connection
    delivered: int
    read: int


class Receipts:
    """Stores and pushes receipts."""

    def __init__(
        self,
        db: Database,
        audience: Audience,
        unread_feed: UnreadFeed,
        memory: Memory,
        lookups: Lookups,
        clock: Clock,
    ) -> None:
        self._db = db
        self._audience = audience
        self._unread = unread_feed
        self._memory = memory
        self._lookups = lookups
        self._clock = clock
        self._waiting: dict[_Key, _Waiting] = {}
        self._known: OrderedDict[_Key, Receipt] = OrderedDict()
        self._wake = asyncio.Event()

    def take(self, connection: Connection, item: pb.LinkReceipt) -> None:
        """Take a client's report of how far its user has got."""
        if not is_uuid(item.conversation_id):
            self._refuse(
                connection,
                item.conversation_id,
                domain.conversations.conversation_not_found("of this id"),
            )
            return
        if not self._is_news(_key(connection, item), item.delivered_seq, item.read_seq):
            return
        try:
            conversation = self._lookups.known(connection, item.conversation_id)
            if conversation is not None:
                self._wait(connection, item, conversation)
                return
        except DeskwireError as error:
            self._refuse(connection, item.conversation_id, error)
            return
        work = partial(self._look, connection, item)
        if not connection.stream.turns.ask(connection.who.tenant, connection.user, work):
            self._refuse(connection, item.conversation_id, too_much_waits())

    async def _look(self, connection: Connection, item: pb.LinkReceipt) -> float:
        """Take a report about a conversation that isn't in memory."""
        if connection.is_gone:
            return 0
        conversation_id = item.conversation_id
        try:
            conversation = await self._lookups.find(connection, conversation_id)
            if conversation is None:
                raise domain.conversations.conversation_not_found(conversation_id)
            self._wait(connection, item, conversation)
        except (NotFound, PermissionDenied) as error:
            self._refuse(connection, conversation_id, error)
            return REST
        except AWAY:
            # `_store` looks again when the database is back.
            self._wait(connection, item, None)
        return 0

    def _wait(
        self, connection: Connection, item: pb.LinkReceipt, conversation: Conversation | None
    ) -> None:
        """Have a report stored. Raises PermissionDenied for who doesn't take part in the conversation."""
        if conversation is not None and not domain.conversations.takes_part(
            conversation, connection.who
        ):
            raise domain.conversations.not_a_participant()
        key = _key(connection, item)
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.connection = connection
            waiting.delivered = max(waiting.delivered, item.delivered_seq)
            waiting.read = max(waiting.read, item.read_seq)
        elif len(self._waiting) < _WAITING:
            self._waiting[key] = _Waiting(connection, item.delivered_seq, item.read_seq)
            self._wake.set()
        else:
            METRICS.receipts_dropped.inc()

    def _is_news(self, key: _Key, delivered: int, read: int) -> bool:
        known = self._known.get(key)
        return known is None or delivered > known.delivered_seq or read > known.read_seq

    async def run(self) -> None:
        """Store receipts until cancelled; outlasts a database that is away."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(_JOIN_SECONDS)
            while self._waiting:
                keys = list(self._waiting)[:_CHUNK]
                work = {key: self._waiting.pop(key) for key in keys}
                try:
                    await self._store(work)
                except (DeskwireError, SQLAlchemyError, OSError) as error:
                    get_logger().warning("receipts_not_stored", error=type(error).__name__)
                    # Receipts that arrived meanwhile are newer.
                    self._waiting = work | self._waiting
                    await asyncio.sleep(_RETRY_SECONDS)

    async def _store(self, work: dict[_Key, _Waiting]) -> None:
        found = await self._conversations({key[0] for key in work})
        wanted = self._wanted(work, found)
        if not wanted:
            return

        async def write(uow: UnitOfWork) -> list[Receipt]:
            now = to_micros(self._clock.now())
            return await receipts.raise_to(uow, list(wanted.values()), now=now)

        for now in await self._db.run(write):
            key = (now.conversation_id, now.role, now.subject)
            before = self._known.get(key)
            if before == now:
                continue
            if now.read_seq > (before.read_seq if before is not None else 0):
                self._unread.read_on(now.conversation_id, work[key].connection.user)
            self._known[key] = now
            self._known.move_to_end(key)
            if len(self._known) > _KNOWN:
                self._known.popitem(last=False)
            self._audience.deliver(
                participants(found[now.conversation_id]),
                encoded(push=frame_pb2.Push(receipt=views.messages.receipt(now))),
                without=work[key].connection,
            )

    def _wanted(
        self, work: dict[_Key, _Waiting], found: dict[str, Conversation]
    ) -> dict[_Key, Receipt]:
        """Return what is to be stored of some reports; refuse the others, unless they are no news."""
        wanted: dict[_Key, Receipt] = {}
        for key, waiting in work.items():
            conversation = found.get(key[0])
            who = waiting.connection.who
            if conversation is None or not domain.conversations.may_see(conversation, who):
                self._refuse(
                    waiting.connection, key[0], domain.conversations.conversation_not_found(key[0])
                )
            elif not domain.conversations.takes_part(conversation, who):
                self._refuse(waiting.connection, key[0], domain.conversations.not_a_participant())
            else:
                delivered = min(waiting.delivered, conversation.head_seq)
                read = min(waiting.read, conversation.head_seq)
                if self._is_news(key, delivered, read):
                    wanted[key] = Receipt(*key, delivered, read)
        return wanted

    async def _conversations(self, ids: set[str]) -> dict[str, Conversation]:
        """Return copies: the writer changes memory while this waits."""
        found = {
            each: known.copy() for each in ids if (known := self._memory.get(each)) is not None
        }
        missing = ids - found.keys()
        if missing:
            async with self._db.read() as c:
                loaded = await conversations.get_many(c, list(missing))
            found |= {each.conversation_id: each for each in loaded}
        return found

    @staticmethod
    def _refuse(connection: Connection, conversation_id: str, error: DeskwireError) -> None:
        connection.put(error_batch(error, conversation_id=conversation_id))


def _key(connection: Connection, item: pb.LinkReceipt) -> _Key:
    return item.conversation_id, int(connection.who.role), connection.who.subject
