"""Outbox: what was committed is on the real Kafka, in order per key, whatever happens to a relay."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from deskwire_common import db as dbs
from deskwire_common import topics
from deskwire_common.clock import SystemClock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import InvalidArgument, Unavailable
from deskwire_common.kafka import ensure_topics
from deskwire_common.outbox import Faults, Outbox, OutboxRelay
from deskwire_common.ownership import spread
from deskwire_common.topics import Topic
from support import eventually
from support.outbox import SUBJECTS, Seen, event, opened, outbox, published, relay


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with opened(database_url) as database:
        yield database


@pytest.fixture
async def topic(kafka: str) -> Topic:
    made = replace(topics.EXTERNAL, name=f"test-{uuid.uuid4().hex}", partitions=3)
    await ensure_topics(kafka, [made])
    return made


async def happen(db: Database, box: Outbox, topic: Topic, subject: str, count: int) -> None:
    """One transaction in which `count` things happen to a subject, whose row is locked first."""

    async def work(uow: UnitOfWork) -> None:
        key = SUBJECTS.c.name == subject
        await dbs.insert_if_absent(uow, SUBJECTS, {"name": subject, "version": 0})
        await uow.execute(sa.update(SUBJECTS).where(key).values(version=SUBJECTS.c.version + count))
        last = (await uow.execute(sa.select(SUBJECTS.c.version).where(key))).scalar_one()
        numbers = range(last - count + 1, last + 1)
        await box.add(uow, [event(topic, subject, number) for number in numbers])

    await db.run(work)


def first_ones(seen: Seen) -> Seen:
    """Without the repetitions, which at-least-once allows."""
    return {subject: list(dict.fromkeys(numbers)) for subject, numbers in seen.items()}


async def test_only_what_was_committed_is_published(db: Database, kafka: str, topic: Topic) -> None:
    box = outbox()
    async with relay(db, box, kafka) as (made, _):
        async with db.transaction() as uow:
            await box.add(uow, [event(topic, "never", 1)])
        with pytest.raises(ZeroDivisionError):
            async with db.transaction() as uow:
                await box.add(uow, [event(topic, "never", 2)])
                raise ZeroDivisionError
        await happen(db, box, topic, "kept", 2)
        assert await made.drain(30)
        await eventually(lambda: made.published == 2)
    assert await published(kafka, topic) == {"kept": [1, 2]}


async def test_each_key_is_in_order_under_concurrent_writers(
    db: Database, kafka: str, topic: Topic
) -> None:
    box = outbox()
    subjects = ["a", "b", "c"]

    async def write(subject: str) -> None:
        for count in (1, 5, 2, 9, 3):
            await happen(db, box, topic, subject, count)

    async with relay(db, box, kafka, batch=7) as (made, _):
        # Two writers a subject: the row's lock puts them in order.
        await asyncio.gather(*(write(subject) for subject in subjects * 2))
        assert await made.drain(30)
    # Nothing failed, so there is no repetition either.
    assert await published(kafka, topic) == {each: list(range(1, 41)) for each in subjects}


class Fault(Faults):
    """Fails or stands still, once, at a seam."""

    def __init__(self, seam: str, *, hang: bool) -> None:
        self._seam, self._hang = seam, hang
        self.reached = asyncio.Event()

    async def _at(self, seam: str) -> None:
        if seam == self._seam and not self.reached.is_set():
            self.reached.set()
            if self._hang:
                await asyncio.Event().wait()
            raise Unavailable("a fault of the test")

    async def before_publish(self, rows: Sequence[Any]) -> None:
        await self._at("before")

    async def after_publish_before_delete(self, rows: Sequence[Any]) -> None:
        await self._at("after")


@pytest.mark.parametrize("seam", ["before", "after"])
async def test_a_relay_that_fails_or_dies_loses_nothing(
    seam: str, db: Database, kafka: str, topic: Topic
) -> None:
    box = outbox()
    for subject in ("a", "b"):
        await happen(db, box, topic, subject, 4)
    dying = Fault(seam, hang=True)
    async with relay(db, box, kafka, batch=3, faults=dying), asyncio.timeout(30):
        await dying.reached.wait()
    assert await box.pending(db) != (0, 0)
    failing = Fault(seam, hang=False)
    async with relay(db, box, kafka, batch=3, faults=failing) as (made, _):
        await happen(db, box, topic, "a", 4)
        assert await made.drain(30)
    assert failing.reached.is_set()
    seen = await published(kafka, topic)
    assert first_ones(seen) == {"a": list(range(1, 9)), "b": [1, 2, 3, 4]}
    # What the seam is about: after publishing, rows came twice; before it, none did.
    assert (seen != first_ones(seen)) is (seam == "after")


async def test_a_broker_that_is_away_delays_and_loses_nothing(
    db: Database, kafka: str, topic: Topic
) -> None:
    box = outbox()
    await happen(db, box, topic, "a", 5)
    async with relay(db, box, "127.0.0.1:1") as (made, task):
        await happen(db, box, topic, "a", 5)
        assert not await made.drain(0.3)
        assert not task.done()
    assert (await box.pending(db))[0] == 10
    async with relay(db, box, kafka) as (made, _):
        assert await made.drain(30)
    assert await published(kafka, topic) == {"a": list(range(1, 11))}


async def test_of_two_relays_one_publishes_and_the_other_follows(
    db: Database, kafka: str, topic: Topic
) -> None:
    box, other_db, other_box = outbox(), await Database.open(db.url), outbox()
    # Of two who live the first one should have it.
    names = {"left", "right"}
    owner = spread(OutboxRelay.KIND, ["all"], names)["all"]
    try:
        async with relay(db, box, kafka, name=owner) as (first, running):
            await happen(db, box, topic, "a", 1)
            assert await first.drain(30)
            async with relay(other_db, other_box, kafka, name=(names - {owner}).pop()) as (
                second,
                _,
            ):
                for _ in range(10):
                    await happen(other_db, other_box, topic, "a", 2)
                assert await first.drain(30)
                await eventually(lambda: first.published == 21)
                assert second.published == 0
                running.cancel()
                await asyncio.wait([running])
                await happen(db, box, topic, "a", 1)
                await eventually(lambda: second.published == 1, timeout=30)
    finally:
        await other_db.close()
    assert await published(kafka, topic) == {"a": list(range(1, 23))}


async def test_an_event_that_no_record_can_hold_is_refused_at_once(
    db: Database, topic: Topic
) -> None:
    box = outbox()
    with pytest.raises(InvalidArgument):
        async with db.transaction() as uow:
            await box.add(uow, [event(topic, "a", 1, "x" * 900_001)])
    assert await box.pending(db) == (0, 0)


async def test_what_is_published_is_kept_where_the_broker_forgets(
    db: Database, kafka: str, topic: Topic
) -> None:
    box = outbox()

    async def kept() -> list[tuple[int, str, int]]:
        async with db.read() as connection:
            rows = await connection.execute(sa.select(box.kept).order_by(box.kept.c.id))
            return [(row.id, row.event_id, row.published_at) for row in rows]

    async def empty() -> bool:
        return (await box.pending(db))[0] == 0

    async with relay(db, box, kafka):
        await happen(db, box, topic, "a", 2)
        await eventually(empty)
    assert await kept() == []

    before = to_micros(SystemClock().now())
    async with relay(db, box, kafka, keep=3600.0):
        await happen(db, box, topic, "a", 3)
        await eventually(empty)
    rows = await kept()
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert len({row[1] for row in rows}) == 3
    assert all(row[2] >= before for row in rows)

    assert await box.forget(db, keep=3600.0) == 0
    assert await box.forget(db, keep=-1.0) == 3
    assert await kept() == []
