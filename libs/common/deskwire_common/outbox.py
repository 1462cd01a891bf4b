"""Outbox: the events of a transaction are rows of the same transaction, and a relay publishes them.

**The rule for callers:** lock the aggregate's row (an UPDATE of its version, or SELECT … FOR UPDATE) *before*
`Outbox.add`. Ids become visible out of order, but for one key they are then drawn in commit order, and the relay
keeps that order: it always takes the lowest unpublished rows, never "what is above the last id" (which lost 31 % of
events in a measurement), publishes them, and deletes them after their delivery reports. A relay with `keep`
moves them to `outbox_published` instead, for a while: for a broker that forgets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Protocol

import sqlalchemy as sa

from deskwire_common import db as dbs
from deskwire_common import events as codec
from deskwire_common import telemetry
from deskwire_common.clock import Clock, SystemClock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import DeskwireError, InvalidArgument
from deskwire_common.events import DomainEvent
from deskwire_common.kafka import MAX_RECORD_BYTES, Headers, Producer
from deskwire_common.logging import get_logger
from deskwire_common.loops import Backoff
from deskwire_common.metrics import METRICS
from deskwire_common.ownership import Held, TermOver

#: Rows per round of the relay.
BATCH: Final = 500
#: Seconds between looks at the table when nothing wakes the relay (another process wrote).
POLL: Final = 0.5
#: Pauses after failures, in seconds.
FIRST_BACKOFF: Final = 0.2
MAX_BACKOFF: Final = 5.0
#: Seconds between clean-ups of the kept rows.
FORGET_EVERY: Final = 600.0


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("topic", dbs.ascii_text(249), nullable=False),
        sa.Column("key", dbs.binary_text(512), nullable=False),
        sa.Column("event_id", dbs.Id, nullable=False),
        sa.Column("headers", dbs.Blob, nullable=False),
        sa.Column("value", dbs.Blob, nullable=False),
        sa.Column("traceparent", dbs.ascii_text(64), nullable=False),
        sa.Column("created_at", dbs.Micros, nullable=False),
    ]


def published_table(metadata: sa.MetaData) -> sa.Table:
    """The table `outbox_published` of a service: rows of `outbox` that a relay with `keep` has published."""
    return sa.Table(
        "outbox_published",
        metadata,
        sa.Column("id", sa.BigInteger(), primary_key=True, autoincrement=False),
        *_columns(),
        sa.Column("published_at", dbs.Micros, nullable=False, index=True),
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
        self._clock = clock or SystemClock()
        self.wake = asyncio.Event()

    async def add(self, uow: UnitOfWork, events: Sequence[DomainEvent]) -> None:
        """Write `events` in their order, encoded, in the transaction `uow`; wakes the relay after its commit.

        The caller has locked the aggregate's row before (see the module). Raises InvalidArgument for an event
        that no topic carries or that is larger than a record may be.
        """
        if not events:
            return
        now = to_micros(self._clock.now())
        rows = [self._row(event, now) for event in events]
        await uow.execute(sa.insert(self.table), rows)
        uow.after_commit(self.wake.set)

    @staticmethod
    def _row(event: DomainEvent, now: int) -> dict[str, Any]:
        topic = event.target
        value = codec.encode(event, topic)
        if len(value) > MAX_RECORD_BYTES:
            # Such an event would stay at the head of the outbox for ever.
            raise InvalidArgument(f"the event has {len(value)} bytes, more than {MAX_RECORD_BYTES}")
        headers = [
            [name, item.decode()] for name, item in codec.headers(event) if name != "traceparent"
        ]
        return {
            "topic": topic.name,
            "key": event.partition_key,
            "event_id": event.event_id,
            "headers": json.dumps(headers, separators=(",", ":")).encode(),
            "value": value,
            "traceparent": event.traceparent,
            "created_at": now,
        }

    async def pending(self, db: Database) -> tuple[int, int]:
        """Return how many rows wait, and when the oldest was written (microseconds; 0 when none waits)."""
        async with db.read() as connection:
            statement = sa.select(
                sa.func.count(), sa.func.min(self.table.c.created_at)
            ).select_from(self.table)
            count, oldest = (await connection.execute(statement)).one()
        return int(count), int(oldest or 0)

    async def remove(self, db: Database, ids: Sequence[int], held: Held, *, keep: bool) -> None:
        """Take published rows out; with `keep` they go to `outbox_published`. Raises TermOver."""
        table, kept = self.table, self.kept
        now = to_micros(self._clock.now())
        # The rows of a round are mostly one range, but a lower id may become visible meanwhile: by id.
        these = table.c.id.in_(ids)

        async def work(uow: UnitOfWork) -> None:
            await held.fence(uow)
            if keep:
                rows = sa.select(*table.c, sa.literal(now, dbs.Micros)).where(these)
                names = [*table.c.keys(), "published_at"]
                await uow.execute(sa.insert(kept).from_select(names, rows))
            await uow.execute(sa.delete(table).where(these))

        await db.run(work)

    async def forget(self, db: Database, *, keep: float) -> int:
        """Remove rows that were published more than `keep` seconds ago from `outbox_published`; return how many."""
        before = to_micros(self._clock.now()) - int(keep * 1_000_000)

        async def work(uow: UnitOfWork) -> int:
            old = sa.delete(self.kept).where(self.kept.c.published_at < before)
            return int((await uow.execute(old)).rowcount)

        return await db.run(work)


class Faults(Protocol):
    """Named seams for tests; production sets none."""

    async def before_publish(self, rows: Sequence[Any]) -> None:
        """Called after rows were read and before they are handed to Kafka."""

    async def after_publish_before_delete(self, rows: Sequence[Any]) -> None:
        """Called when Kafka has acknowledged the rows, which are still in the table."""


class OutboxRelay:
    """Publishes the outbox of one database: the work of one slot."""

    KIND: Final = "outbox"

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        producer: Producer,
        *,
        batch: int = BATCH,
        poll: float = POLL,
        faults: Faults | None = None,
        keep: float = 0.0,
    ) -> None:
        """`keep`: seconds for which published rows stay in `outbox_published`; 0: not at all."""
        self._db = db
        self._outbox = outbox
        self._producer = producer
        self._batch = batch
        self._poll = poll
        self._faults = faults
        self._keep = keep
        self._forgotten_at = 0.0
        self.published = 0

    async def work(self, held: Held) -> None:
        """Publish while the slot is held; outlasts a database or a broker that is away.

        The producer is the relay's own: on a failure everything in it is purged. A relay whose term is over deletes no
        row. Until it notices, it may publish rows a second time, since its successor begins at the lowest row.
        """
        pauses = Backoff(FIRST_BACKOFF, MAX_BACKOFF, sleep=held.wait)
        try:
            while held.is_held:
                # Clear it before reading: a commit after the read sets it again.
                self._outbox.wake.clear()
                try:
                    count = await self._round(held)
                except TermOver:
                    raise
                except (DeskwireError, ConnectionError) as error:
                    get_logger().warning("outbox_round_failed", error=str(error))
                    # No later row of a key may overtake the one that failed.
                    await self._producer.purge_and_rebuild()
                    await pauses.pause()
                    continue
                pauses.reset()
                if count < self._batch:
                    await held.wait(self._poll, self._outbox.wake)
        except BaseException:
            # The successor publishes the rows that are under way.
            await self._producer.purge_and_rebuild()
            raise

    async def drain(self, timeout: float = 10.0) -> bool:
        """Wait up to `timeout` seconds until the outbox is empty; return whether it is. A relay must be at work."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while (await self._outbox.pending(self._db))[0]:
                    self._outbox.wake.set()
                    await asyncio.sleep(0.02)
                return True
        return False

    async def _round(self, held: Held) -> int:
        table = self._outbox.table
        now = asyncio.get_running_loop().time()
        if self._keep and now - self._forgotten_at >= FORGET_EVERY:
            await self._outbox.forget(self._db, keep=self._keep)
            self._forgotten_at = now
        async with self._db.read() as connection:
            statement = sa.select(table).order_by(table.c.id).limit(self._batch)
            rows = (await connection.execute(statement)).all()
        if not rows:
            return 0
        if self._faults is not None:
            await self._faults.before_publish(rows)
        held.ensure()
        await self._producer.send_batch([_record(row) for row in rows])
        if self._faults is not None:
            await self._faults.after_publish_before_delete(rows)
        await self._outbox.remove(self._db, [row.id for row in rows], held, keep=self._keep > 0)
        self.published += len(rows)
        for topic, count in Counter(row.topic for row in rows).items():
            METRICS.outbox_published.labels(topic).inc(count)
        return len(rows)


def _record(row: Any) -> tuple[str, bytes, bytes, Headers]:
    headers: Headers = [(name, value.encode()) for name, value in json.loads(bytes(row.headers))]
    traceparent: str = row.traceparent
    if traceparent and telemetry.sampled(traceparent):
        with telemetry.span(
            "outbox.publish",
            traceparent=traceparent,
            attributes={"messaging.destination.name": row.topic, "deskwire.event_id": row.event_id},
        ):
            traceparent = telemetry.current_traceparent() or traceparent
    if traceparent:
        headers.append(("traceparent", traceparent.encode()))
    return row.topic, row.key.encode(), bytes(row.value), headers
