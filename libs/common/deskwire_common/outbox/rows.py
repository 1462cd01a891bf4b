"""The tables of an outbox, what use cases write into them, and what the relay takes out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, Final

import sqlalchemy as sa

from deskwire_common import db as dbs
from deskwire_common import events as codec
from deskwire_common.clock import Clock, SystemClock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import InvalidArgument
from deskwire_common.events import DomainEvent
from deskwire_common.kafka import MAX_RECORD_BYTES

_RUNS: Final = 20


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("topic", dbs.ascii_text(249), nullable=False),
        sa.Column("key", dbs.binary_text(512), nullable=False),
        sa.Column("event_id", dbs.Id, nullable=False),
        sa.Column("headers", dbs.Blob, nullable=False),
        sa.Column("value", dbs.Blob, nullable=False),
        # Bytes of a row, so that a round finds its end without reading the values of others.
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("traceparent", dbs.ascii_text(64), nullable=False),
        sa.Column("created_at", dbs.Micros, nullable=False),
    ]


def _moved_table(metadata: sa.MetaData, name: str, *more: sa.Column[Any] | sa.Index) -> sa.Table:
    return sa.Table(
        name,
        metadata,
        sa.Column("id", sa.BigInteger(), primary_key=True, autoincrement=False),
        *_columns(),
        *more,
    )


def published_table(metadata: sa.MetaData) -> sa.Table:
    """The table `outbox_published` of a service: rows of `outbox` that a relay with `keep` has published."""
    return _moved_table(
        metadata,
        "outbox_published",
        sa.Column("published_at", dbs.Micros, nullable=False, index=True),
    )


def parked_table(metadata: sa.MetaData) -> sa.Table:
    """The table `outbox_parked` of a service: rows that Kafka doesn't take, and later ones of their keys."""
    return _moved_table(
        metadata,
        "outbox_parked",
        sa.Column("reason", dbs.ascii_text(64), nullable=False),
        sa.Column("parked_at", dbs.Micros, nullable=False),
        sa.Index("ix_outbox_parked_topic_key", "topic", "key"),
    )


def outbox_table(metadata: sa.MetaData) -> sa.Table:
    """The table `outbox` of a service."""
    return sa.Table(
        "outbox",
        metadata,
        sa.Column("id", dbs.AutoId, primary_key=True, autoincrement=True),
        *_columns(),
        # AUTOINCREMENT: SQLite would hand out the id of a deleted last row again.
        sqlite_autoincrement=True,
    )


class Outbox:
    """The place where use cases put their events."""

    def __init__(self, metadata: sa.MetaData, clock: Clock | None = None) -> None:
        self.table = outbox_table(metadata)
        self.kept = published_table(metadata)
        self.parked = parked_table(metadata)
        self.clock = clock or SystemClock()
        self.wake = asyncio.Event()

    async def add(self, uow: UnitOfWork, events: Sequence[DomainEvent]) -> None:
        """Write `events` in their order, encoded, in the transaction `uow`; wakes the relay after its commit.

        The caller has locked the aggregate's row before (see the package). Raises InvalidArgument for an event
        that no topic carries or that is larger than a record may be.
        """
        if not events:
            return
        now = to_micros(self.clock.now())
        rows = [self._row(event, now) for event in events]
        await uow.execute(sa.insert(self.table), rows)
        uow.after_commit(self.wake.set)

    @staticmethod
    def _row(event: DomainEvent, now: int) -> dict[str, Any]:
        topic = event.target
        value = codec.encode(event, topic)
        if len(value) > MAX_RECORD_BYTES:
            # Nobody could read it, and it would only be parked.
            raise InvalidArgument(f"the event has {len(value)} bytes, more than {MAX_RECORD_BYTES}")
        headers = [
            [name, item.decode()] for name, item in codec.headers(event) if name != "traceparent"
        ]
        encoded = json.dumps(headers, separators=(",", ":")).encode()
        return {
            "topic": topic.name,
            "key": event.partition_key,
            "event_id": event.event_id,
            "headers": encoded,
            "value": value,
            "size": len(value) + len(encoded),
            "traceparent": event.traceparent,
            "created_at": now,
        }

    async def lowest(self, db: Database, rows: int, size: int, *, parked: bool) -> Sequence[Any]:
        """Return the lowest rows: at most `rows`, at least one, and no more once they have `size` bytes.

        With `parked` each has `waits`: whether its key is parked, as of the same moment.
        """
        table = self.table
        first = sa.select(table.c.id, table.c.size).order_by(table.c.id).limit(rows).subquery()
        before = sa.func.sum(first.c.size).over(order_by=first.c.id) - first.c.size
        counted = sa.select(first.c.id, before.label("before")).subquery()
        waits: sa.ColumnElement[bool] = sa.false()
        if parked:
            same = (self.parked.c.topic == table.c.topic) & (self.parked.c.key == table.c.key)
            waits = sa.exists().where(same)
        query = (
            sa.select(*table.c, waits.label("waits"))
            .join(counted, counted.c.id == table.c.id)
            .where(counted.c.before < size)
            .order_by(table.c.id)
        )
        async with db.read() as connection:
            return (await connection.execute(query)).all()

    async def pending(self, db: Database) -> tuple[int, int]:
        """Return how many rows wait, and when the oldest was written (microseconds; 0 when none waits)."""
        async with db.read() as connection:
            statement = sa.select(
                sa.func.count(), sa.func.min(self.table.c.created_at)
            ).select_from(self.table)
            count, oldest = (await connection.execute(statement)).one()
        return int(count), int(oldest or 0)

    async def take_out(self, uow: UnitOfWork, ids: Collection[int], *, keep: bool) -> None:
        """Take published rows out; with `keep` they go to `outbox_published`."""
        these = among(self.table.c.id, ids)
        if keep:
            await self.move(uow, self.table, self.kept, these, published_at=self.now())
        else:
            await uow.execute(sa.delete(self.table).where(these))

    @staticmethod
    async def move(
        uow: UnitOfWork,
        source: sa.Table,
        target: sa.Table,
        which: sa.ColumnElement[bool],
        **more: Any,
    ) -> int:
        """Move rows between two of the tables, with their ids; `more`: columns that the target has. Return how many."""
        names = ["id", *(column.name for column in _columns())]
        added = [sa.literal(value, target.c[name].type) for name, value in more.items()]
        rows = sa.select(*(source.c[name] for name in names), *added).where(which)
        await uow.execute(sa.insert(target).from_select([*names, *more], rows))
        return int((await uow.execute(sa.delete(source).where(which))).rowcount)

    async def forget(self, db: Database, *, keep: float) -> int:
        """Remove rows that were published more than `keep` seconds ago from `outbox_published`; return how many."""
        before = self.now() - int(keep * 1_000_000)

        async def work(uow: UnitOfWork) -> int:
            old = sa.delete(self.kept).where(self.kept.c.published_at < before)
            return int((await uow.execute(old)).rowcount)

        return await db.run(work)

    def now(self) -> int:
        """The time in microseconds."""
        return to_micros(self.clock.now())


def among(column: sa.Column[Any], ids: Collection[int]) -> sa.ColumnElement[bool]:
    """`column IN ids`; the rows of a round are mostly a few unbroken runs, which are found and said faster."""
    ordered = sorted(ids)
    starts = [ordered[0], *(later for earlier, later in pairwise(ordered) if later != earlier + 1)]
    if len(starts) > _RUNS:
        return column.in_(ordered)
    ends = [*(earlier for earlier, later in pairwise(ordered) if later != earlier + 1), ordered[-1]]
    return sa.or_(*(column.between(start, end) for start, end in zip(starts, ends, strict=True)))
