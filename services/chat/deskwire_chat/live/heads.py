"""Heads: a user who connects learns the state of their open conversations, and so sees what they missed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire.gateway.v1 import frame_pb2
from deskwire_chat import views
from deskwire_chat.domain.actors import ActorRole
from deskwire_chat.domain.conversations import Conversation
from deskwire_chat.domain.customers import Customer
from deskwire_chat.live.offer_feed import OfferPushes
from deskwire_chat.live.presence import Presence
from deskwire_chat.live.queue_feed import QueueFeed
from deskwire_chat.live.stream import Connection, Stream
from deskwire_chat.owners.ownership import Ownership
from deskwire_chat.store import conversations, customers
from deskwire_chat.store.unread import Reader, unread
from deskwire_common.db import Database
from deskwire_common.errors import DeskwireError
from deskwire_common.logging import get_logger
from deskwire_common.pagination import fit

_BATCH_BYTES: Final = 65_536
_CONVERSATIONS: Final = 100
_MEMBERS: Final = 10
"""Connections that get their heads before other work has a turn."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What goes with heads: the customers (by id) with whom agents have conversations, and what isn't read of each."""

    customers: dict[str, Customer]
    unread: dict[str, int]


class Heads:
    """Sends the heads of conversations in this process's partitions; other owners send those of theirs."""

    def __init__(
        self,
        db: Database,
        ownership: Ownership,
        presence: Presence,
        queue_feed: QueueFeed,
        offers: OfferPushes,
        reads: asyncio.Semaphore,
    ) -> None:
        """`reads` bounds how many reads for links run at once."""
        self._db = db
        self._ownership = ownership
        self._presence = presence
        self._queue_feed = queue_feed
        self._offers = offers
        self._reads = reads

    def send(
        self,
        stream: Stream,
        attached: Iterable[Connection],
        gained: Collection[int] | None = None,
    ) -> None:
        """Answer the Attaches of a stream with the heads of the users' open conversations, read from now on.

        `gained`: the connections are here already; send only the heads of these partitions. The users of one role and
        tenant are read together, and wait behind those of the same that came before.
        """
        groups: dict[tuple[str, ActorRole], list[Connection]] = {}
        for connection in attached:
            groups.setdefault((connection.who.tenant, connection.who.role), []).append(connection)
        for (tenant, role), members in groups.items():
            work = partial(self._send, stream, tenant, role, members, gained)
            stream.turns.ask(tenant, role, work, always=True)

    async def _send(
        self,
        stream: Stream,
        tenant: str,
        role: ActorRole,
        members: Sequence[Connection],
        gained: Collection[int] | None,
    ) -> float:
        subjects = list({each.who.subject for each in members})
        try:
            async with self._reads, self._db.read() as c:
                found = {
                    subject: [each for each in theirs if self._is_sent(each.partition, gained)]
                    for subject, theirs in (
                        await conversations.open_of(c, tenant, role, subjects)
                    ).items()
                }
                known = await _known_of(c, tenant, role, found)
        except (DeskwireError, SQLAlchemyError) as error:
            # Without a head a client couldn't see what it missed: its worker must open a new stream.
            get_logger().warning("heads_not_read", error=type(error).__name__)
            stream.end()
            return 0
        for number, connection in enumerate(members, start=1):
            theirs = found.get(connection.who.subject, [])
            await self._put(connection, theirs, known)
            if gained is None:
                self._welcome(connection, theirs)
            if number % _MEMBERS == 0:
                await asyncio.sleep(0)
        return 0

    async def _put(
        self, connection: Connection, theirs: Sequence[Conversation], known: _Known
    ) -> None:
        """Send a connection its heads. A bot may have thousands of them, so other work gets turns in between."""
        for start in range(0, len(theirs), _CONVERSATIONS):
            if start:
                await connection.stream.room()
                await asyncio.sleep(0)
            some = theirs[start : start + _CONVERSATIONS]
            frames: list[frame_pb2.Frame] = []
            for each in some:
                frames += views.frames.heads(
                    each,
                    known.customers.get(each.customer_id),
                    known.unread[each.conversation_id],
                )
            frames += self._presence.frames(connection, some)
            while frames:
                batch = fit(frames, _BATCH_BYTES)
                del frames[: len(batch)]
                connection.put(frame_pb2.Batch(frames=batch).SerializeToString())

    def _welcome(self, connection: Connection, theirs: Iterable[Conversation]) -> None:
        if not connection.parked:
            self._presence.connected(connection, theirs)
        self._queue_feed.connected(connection)
        self._offers.connected(connection)

    def _is_sent(self, partition: int, gained: Collection[int] | None) -> bool:
        if gained is not None and partition not in gained:
            return False
        return self._ownership.term_of(partition) > 0


async def _known_of(
    c: AsyncConnection, tenant: str, role: ActorRole, found: dict[str, list[Conversation]]
) -> _Known:
    """Return what goes with the heads of some users' conversations."""
    readers = [
        Reader(each.conversation_id, int(role), subject, each.head_seq)
        for subject, theirs in found.items()
        for each in theirs
    ]
    counts = await unread(c, readers)
    ids = {each.customer_id for theirs in found.values() for each in theirs}
    if role == ActorRole.VISITOR:
        ids.clear()
    return _Known(
        await customers.get_many(c, tenant, sorted(ids)) if ids else {},
        {reader.conversation_id: count for reader, count in counts.items()},
    )
