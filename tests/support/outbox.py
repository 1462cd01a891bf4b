"""An outbox with a relay, as processes have them, and what is on its topic."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import sqlalchemy as sa

from deskwire.common.v1.actor_pb2 import Actor
from deskwire_common import db as dbs
from deskwire_common import events
from deskwire_common.clock import SystemClock
from deskwire_common.db import Database
from deskwire_common.events import DomainEvent
from deskwire_common.exact import json_object
from deskwire_common.ids import RandomIds
from deskwire_common.kafka import Producer, Reader
from deskwire_common.outbox import Outbox, OutboxRelay
from deskwire_common.ownership import Owner, members_table, slots_table
from deskwire_common.topics import Topic

METADATA: Final = dbs.metadata()
"""All tables of it, and `subjects`, whose rows callers lock."""
Outbox(METADATA)
members_table(METADATA)
slots_table(METADATA)
SUBJECTS: Final = sa.Table(
    "subjects",
    METADATA,
    sa.Column("name", dbs.Name, primary_key=True),
    sa.Column("version", dbs.UInt32, nullable=False),
)
Seen = dict[str, list[int]]
LEASE: Final = 3.0


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """A database with the tables."""
    database = await Database.open(url)
    async with database.engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
    yield database
    await database.close()


def outbox() -> Outbox:
    """Each process has its own, of the same table."""
    return Outbox(dbs.metadata())


def event(topic: Topic, subject: str, sequence: int, text: str = "") -> DomainEvent:
    return events.new_event(
        json_object({"text": text}),
        subject=subject,
        sequence=sequence,
        ids=RandomIds(),
        clock=SystemClock(),
        event_type="order_paid",
        tenant_id="acme",
        actor=Actor(subject="me"),
        topic=topic,
    )


@asynccontextmanager
async def relay(
    db: Database,
    box: Outbox,
    kafka: str,
    *,
    name: str = "relay",
    producer: Producer | None = None,
    **options: Any,
) -> AsyncIterator[tuple[OutboxRelay, asyncio.Task[None]]]:
    """A process with a relay, which ends without a word."""
    producer = producer or Producer(kafka, "relay", strict=True)
    await producer.start()
    made = OutboxRelay(db, box, producer, poll=0.05, **options)
    owner = Owner(db, SystemClock(), RandomIds().uuid7(), lease_seconds=LEASE, look_seconds=0.05)
    owner.employ(made.KIND, made.work)
    await owner.start(name, "")
    task = asyncio.create_task(owner.run())
    try:
        yield made, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await producer.purge_and_rebuild()  # the end of a process waits for nothing
        await producer.close()


async def published(kafka: str, topic: Topic) -> Seen:
    """The sequences of each subject as they stand on the topic, repetitions too."""
    reader = Reader(kafka, [topic.name])
    await reader.start()
    found: Seen = defaultdict(list)
    try:
        ends = await reader.end_offsets()
        async with asyncio.timeout(30):
            while any(reader.positions[place] < end for place, end in ends.items()):
                for record in await reader.read():
                    each = events.decode(topic, record.value, record.headers)
                    assert record.key.decode() == each.subject
                    found[each.subject].append(each.sequence)
    finally:
        await reader.close()
    return dict(found)
