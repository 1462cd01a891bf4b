"""Inbox: each event has one effect per consumer, in whatever way it comes again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from deskwire.events.v1.event_pb2 import Event
from deskwire_common import db as dbs
from deskwire_common.clock import ManualClock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import InvalidArgument
from deskwire_common.inbox import MAX_SUBJECT, Inbox

METADATA = dbs.metadata()
CLOCK = ManualClock()
INBOX = Inbox(METADATA, CLOCK)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = await Database.open(database_url)
    async with database.engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
    yield database
    await database.close()


def event(
    sequence: int, *, subject: str = "t-1", tenant: str = "acme", event_id: str = ""
) -> Event:
    return Event(
        event_id=event_id or f"e-{sequence}",
        event_type="ticket_solved",
        tenant_id=tenant,
        subject=subject,
        sequence=sequence,
    )


async def news(db: Database, each: Event, consumer: str = "hub", topic: str = "") -> bool:
    async def work(uow: UnitOfWork) -> bool:
        return await INBOX.accept(uow, consumer, each, topic=topic)

    return await db.run(work)


async def test_duplicates_and_older_ones_are_ignored(db: Database) -> None:
    asked = [1, 1, 2, 1, 5, 4, 3, 5, 6]
    assert [await news(db, event(number)) for number in asked] == [
        True, False, True, False, True, False, False, False, True,
    ]  # fmt: skip
    # The largest number of the contract.
    assert await news(db, event(2**32 - 1))
    assert not await news(db, event(7))


async def test_consumers_tenants_topics_and_subjects_count_for_themselves(db: Database) -> None:
    assert await news(db, event(3))
    assert await news(db, event(3), consumer="other")
    assert await news(db, event(3, tenant="other"))
    assert await news(db, event(1), topic="deskwire.messages")
    for subject in ("T-1", "t-1é", "t-1e", "李"):
        assert await news(db, event(1, subject=subject)), subject
        assert not await news(db, event(1, subject=subject)), subject
    assert not await news(db, event(3))


async def test_events_without_a_number_are_known_by_their_id(db: Database) -> None:
    assert await news(db, event(0, event_id="a"))
    assert not await news(db, event(0, event_id="a", subject="renamed"))
    assert await news(db, event(0, event_id="b"))
    assert await news(db, event(1, event_id="a"))


async def test_what_is_rolled_back_is_news_again(db: Database) -> None:
    for number in (1, 2):
        async with db.transaction() as uow:
            assert await INBOX.accept(uow, "hub", event(number))
        assert await news(db, event(number))
        assert not await news(db, event(number))


async def test_of_many_at_once_one_does_the_work(db: Database) -> None:
    for number in (1, 2):
        each = [event(number)] * 6
        assert sorted(await asyncio.gather(*(news(db, same) for same in each)))[-2:] == [
            False,
            True,
        ]
    assert sum(await asyncio.gather(*(news(db, event(0, event_id="x")) for _ in range(6)))) == 1


async def test_old_subjects_are_forgotten_and_young_ones_kept(db: Database) -> None:
    assert await news(db, event(5, subject="old"))
    CLOCK.advance(60)
    assert await news(db, event(5, subject="young"))
    before = to_micros(CLOCK.now())

    async def purge(uow: UnitOfWork) -> int:
        return await INBOX.purge(uow, before=before)

    assert await db.run(purge) == 1
    async with db.read() as connection:
        assert list(await connection.scalars(sa.select(INBOX.table.c.subject))) == ["young"]


async def test_a_subject_that_does_not_fit_is_refused(db: Database) -> None:
    assert await news(db, event(1, subject="李" * MAX_SUBJECT))
    with pytest.raises(InvalidArgument):
        await news(db, event(1, subject="s" * (MAX_SUBJECT + 1)))
