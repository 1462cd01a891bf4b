"""The hub's store on every database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from deskwire_common.db import Database, UnitOfWork
from deskwire_common.ids import RandomIds
from deskwire_common.migrations import check_schema, migrate
from deskwire_events import domain, store
from deskwire_events.domain import Adapter, AdapterState, Delivery, Outcome

IDS = RandomIds()
NOW = 1_767_268_800_654_321


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url, "deskwire_events")
    database = await Database.open(database_url)
    await check_schema(database, "deskwire_events")
    yield database
    await database.close()


def adapter(adapter_id: str = "crm-main", tenant: str = "demo") -> Adapter:
    return domain.register(
        None,
        tenant=tenant,
        adapter_id=adapter_id,
        system_id="crm:main",
        target="127.0.0.1:7410",
        event_types=["ticket_solved"],
        accepts=[],
        credentials={"password": "пароль\x00'"},
        now=NOW,
    )


async def save(db: Database, *adapters: Adapter) -> None:
    async def work(uow: UnitOfWork) -> None:
        for each in adapters:
            await store.adapters.save(uow, each)

    await db.run(work)


def end(outcome: Outcome = Outcome.DELIVERED, event_id: str = "") -> Delivery:
    return Delivery(
        event_id=event_id or IDS.uuid7(),
        event_type="ticket_solved",
        outcome=outcome,
        detail="нет 🙂",
        attempts=2,
        time=NOW,
        trace_id="0" * 32,
    )


async def add(db: Database, adapter_id: str, ends: Sequence[Delivery]) -> None:
    await db.run(lambda uow: store.deliveries.add(uow, "demo", adapter_id, ends))


async def found(db: Database, *, dead: bool = False, below: int | None = None) -> list[Delivery]:
    async with db.read() as connection:
        return await store.deliveries.page(
            connection, "demo", "crm-main", dead_only=dead, below=below, limit=50
        )


async def test_an_adapter_is_read_as_it_was_written(db: Database) -> None:
    one, two, other = adapter("a"), adapter("b"), adapter("a", "other")
    await save(db, one, two, other)
    gone = domain.remove(two, "b", "")
    await save(db, gone)
    async with db.read() as connection:
        assert await store.adapters.get(connection, "demo", "a") == one
        assert await store.adapters.get(connection, "demo", "b") == gone
        assert await store.adapters.get(connection, "demo", "A") is None
        assert await store.adapters.page(connection, "demo", after="", limit=9) == [one]
        assert await store.adapters.page(connection, "demo", after="a", limit=9) == []
        assert {each.tenant for each in await store.adapters.every(connection)} == {"demo", "other"}


async def test_trouble_is_that_of_one_registration(db: Database) -> None:
    one = adapter()
    await save(db, one)
    await db.run(lambda uow: store.adapters.set_trouble(uow, replace(one, registration=9), "old"))
    async with db.read() as connection:
        assert await store.adapters.get(connection, "demo", "crm-main") == one
    await db.run(lambda uow: store.adapters.set_trouble(uow, one, "away"))
    async with db.read() as connection:
        now = await store.adapters.get(connection, "demo", "crm-main")
    assert now == replace(one, state=AdapterState.RETRYING, last_error="away")


async def test_deliveries_are_listed_newest_first(db: Database) -> None:
    await save(db, adapter())
    ends = [end(), end(Outcome.REJECTED), end()]
    await add(db, "crm-main", ends)
    await add(db, "other", [end()])
    all_of_them = await found(db)
    assert [each.event_id for each in all_of_them] == [each.event_id for each in reversed(ends)]
    assert [replace(each, number=0) for each in all_of_them] == list(reversed(ends))
    assert [each.event_id for each in await found(db, dead=True)] == [ends[1].event_id]
    older = await found(db, below=all_of_them[1].number)
    assert [each.event_id for each in older] == [ends[0].event_id]


async def test_an_event_has_only_its_last_end(db: Database) -> None:
    first = end(Outcome.REJECTED)
    await add(db, "crm-main", [first, end()])
    known = await db.run(
        lambda uow: store.deliveries.dead_letters(
            uow, "demo", "crm-main", [first.event_id, IDS.uuid7()]
        )
    )
    assert known == {first.event_id}
    await add(db, "crm-main", [end(Outcome.DELIVERED, first.event_id)])
    listed = await found(db)
    assert len(listed) == 2
    assert listed[0].event_id == first.event_id
    assert not await found(db, dead=True)


async def test_trimming_keeps_the_newest_and_all_dead_letters(db: Database) -> None:
    ends = [end(Outcome.REJECTED), *(end() for _ in range(5))]
    await add(db, "crm-main", ends)
    removed = await db.run(lambda uow: store.deliveries.trim(uow, "demo", "crm-main", keep=2))
    assert removed == 3
    left = {each.event_id for each in await found(db)}
    assert left == {ends[0].event_id, ends[4].event_id, ends[5].event_id}


async def test_sequences_have_no_holes_under_concurrency(db: Database) -> None:
    async def draw(tenant: str, counts: dict[str, int]) -> dict[str, int]:
        return await db.run(lambda uow: store.subjects.draw_sequences(uow, tenant, counts))

    drawn = await asyncio.gather(
        *(draw("demo", {"a": 2, "b": 1} if i % 2 else {"b": 1, "a": 2}) for i in range(10))
    )
    assert sorted(each["a"] for each in drawn) == list(range(0, 20, 2))
    assert sorted(each["b"] for each in drawn) == list(range(10))
    assert await draw("other", {"a": 1, "A": 1}) == {"a": 0, "A": 0}
