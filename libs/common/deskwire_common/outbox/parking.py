"""Rows that Kafka doesn't take, set aside with their keys so that all the others go on.

A refused row is parked with Kafka's reason. Later rows of its key (topic and key of the record) are parked behind it
as they come, without a reason, so that none overtakes it. `redrive` puts a key's rows back with their ids, which are
lower than those of all later ones: so the relay takes them first, in their old order. What an operator does here and
what the relay does happen one after the other: both hold the row of the outbox's slot.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from deskwire_common import db as dbs
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.kafka import TOPIC_REASONS
from deskwire_common.outbox.rows import Outbox, among
from deskwire_common.ownership import slots_table

KIND: Final = "outbox"
"""The kind of the slot."""
_MOST: Final = 1_000


@dataclass(frozen=True, slots=True)
class ParkedRow:
    """An event that Kafka didn't take."""

    event_id: str
    topic: str
    key: str
    reason: str
    """Kafka's name of the error: `MSG_SIZE_TOO_LARGE`."""
    size: int
    """Bytes."""
    parked_at: datetime
    behind: int
    """Later events of the key that wait for this one."""


class Parking:
    """The parked rows of one outbox."""

    def __init__(self, db: Database, outbox: Outbox) -> None:
        self._db = db
        self._outbox = outbox
        self._table = outbox.parked
        self._slots = slots_table(dbs.metadata())

    async def count(self) -> int:
        """Return how many rows are parked, those behind others too."""
        async with self._db.read() as connection:
            query = sa.select(sa.func.count()).select_from(self._table)
            return int((await connection.execute(query)).scalar_one())

    async def refused(self) -> list[ParkedRow]:
        """Return the rows that Kafka refused, oldest first; the first 1,000."""
        c = self._table.c
        same = self._table.alias()
        behind = (
            sa.select(sa.func.count())
            .where(same.c.topic == c.topic, same.c.key == c.key, same.c.id > c.id)
            .scalar_subquery()
        )
        query = (
            sa.select(c.event_id, c.topic, c.key, c.reason, c.size, c.parked_at, behind)
            .where(c.reason != "")
            .order_by(c.id)
            .limit(_MOST)
        )
        async with self._db.read() as connection:
            rows = (await connection.execute(query)).all()
        return [
            ParkedRow(*row[:5], datetime.fromtimestamp(row[5] / 1e6, UTC), int(row[6]))
            for row in rows
        ]

    async def refused_topics(self) -> dict[str, str]:
        """Return the topics that Kafka refused as a whole, with the reason."""
        c = self._table.c
        query = sa.select(c.topic, c.reason).where(c.reason.in_(TOPIC_REASONS)).distinct()
        async with self._db.read() as connection:
            return {row.topic: row.reason for row in await connection.execute(query)}

    async def redrive(self, *, topic: str = "", event_id: str = "") -> int:
        """Put keys back into the outbox: all, those of a topic, or that of an event. Return how many rows.

        What Kafka still refuses is parked again.
        """

        async def work(uow: UnitOfWork) -> int:
            await self._lock(uow)
            return await self._put_back(uow, self._chosen(topic, event_id))

        return await self._db.run(work)

    async def drop(self, event_id: str) -> bool:
        """Delete a parked event for good, and put the rest of its key back. Return whether there was one."""

        async def work(uow: UnitOfWork) -> bool:
            await self._lock(uow)
            key = self._chosen("", event_id)
            ids = list((await uow.execute(sa.select(self._table.c.id).where(key))).scalars())
            found = sa.delete(self._table).where(self._table.c.event_id == event_id)
            if not (await uow.execute(found)).rowcount:
                return False
            rest = sa.select(self._table.c.id).where(among(self._table.c.id, ids))
            if left := list((await uow.execute(rest)).scalars()):
                await self._put_back(uow, among(self._table.c.id, left))
            return True

        return await self._db.run(work)

    async def reopen(self, topic: str, *, first: bool = False) -> int:
        """Put back the keys of a topic that Kafka refused as a whole; `first`: only the one that has waited longest."""
        c = self._table.c

        async def work(uow: UnitOfWork) -> int:
            await self._lock(uow)
            refused = sa.select(c.key).where(c.topic == topic, c.reason.in_(TOPIC_REASONS))
            refused = refused.order_by(c.id).limit(1) if first else refused
            keys = refused.subquery()  # as a derived table: see _chosen
            return await self._put_back(uow, (c.topic == topic) & c.key.in_(sa.select(keys.c.key)))

        return await self._db.run(work)

    async def park(
        self, uow: UnitOfWork, reasons: Mapping[int, str], waiting: Collection[int]
    ) -> int:
        """Set refused rows aside, by id with their reasons, and those of `waiting` whose keys are parked.

        Return how many. The transaction holds the term of the outbox.
        """
        table, now = self._outbox.table, self._outbox.now()
        count = 0
        for reason in sorted(set(reasons.values())):
            ids = [number for number, each in reasons.items() if each == reason]
            which = among(table.c.id, ids)
            count += await self._outbox.move(
                uow, table, self._table, which, reason=reason, parked_at=now
            )
        if waiting:
            # A key may have been put back since the rows were read.
            same = (self._table.c.topic == table.c.topic) & (self._table.c.key == table.c.key)
            query = sa.select(table.c.id).where(among(table.c.id, waiting), sa.exists().where(same))
            if ids := list((await uow.execute(query)).scalars()):
                which = among(table.c.id, ids)
                count += await self._outbox.move(
                    uow, table, self._table, which, reason="", parked_at=now
                )
        return count

    async def _lock(self, uow: UnitOfWork) -> None:
        slots = self._slots
        held = sa.select(slots.c.id).where(slots.c.kind == KIND).with_for_update()
        await uow.execute(held)

    async def _put_back(self, uow: UnitOfWork, which: sa.ColumnElement[bool]) -> int:
        return await self._outbox.move(uow, self._table, self._outbox.table, which)

    def _chosen(self, topic: str, event_id: str) -> sa.ColumnElement[bool]:
        c = self._table.c
        if not event_id:
            return c.topic == topic if topic else sa.true()
        one = self._table.alias()
        # As a derived table: MySQL deletes from no table that the condition reads directly.
        ids: Any = (
            sa.select(c.id)
            .join(one, (one.c.topic == c.topic) & (one.c.key == c.key))
            .where(one.c.event_id == event_id)
            .subquery()
        )
        return c.id.in_(sa.select(ids.c.id))
