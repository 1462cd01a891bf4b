"""The hub's store on every database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from deskwire_common.db import Database, UnitOfWork
from deskwire_common.ids import RandomIds
from deskwire_common.migrations import check_schema, migrate
from deskwire_events import domain, store
from deskwire_events.domain import Delivery, Outcome, Progress, SinkKind, State, Subscription
from deskwire_events.store.kept import Dead, Kept, Parked

IDS = RandomIds()
NOW = 1_767_268_800_654_321


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url, "deskwire_events")
    database = await Database.open(database_url)
    await check_schema(database, "deskwire_events")
    yield database
    await database.close()


def adapter(adapter_id: str = "crm-main", tenant: str = "demo") -> Subscription:
    return domain.register(
        None,
        tenant=tenant,
        adapter_id=adapter_id,
        incarnation=IDS.uuid7(),
        system_id="crm:main",
        target="127.0.0.1:7410",
        event_types=["ticket_solved"],
        accepts=[],
        credentials={"password": "пароль\x00'"},
        now=NOW,
    )


async def add(db: Database, *adapters: Subscription) -> None:
    async def work(uow: UnitOfWork) -> None:
        for each in adapters:
            assert await store.subscriptions.add(uow, each)
            assert not await store.subscriptions.add(uow, each)

    await db.run(work)


def end(outcome: Outcome = Outcome.DELIVERED) -> Delivery:
    return Delivery(
        event_id=IDS.uuid7(),
        event_type="ticket_solved",
        outcome=outcome,
        detail="нет 🙂",
        attempts=2,
        time=NOW,
        trace_id="0" * 32,
    )


def record(offset: int, key: bytes = b"k\xff\x00") -> Kept:
    return Kept(
        topic="deskwire.tickets",
        partition=3,
        offset=offset,
        key=key,
        value=b"\x00{}",
        headers=[("ce_type", b"ticket_solved"), ("ce_subject", "п".encode())],
        timestamp=NOW // 1000,
        event_id=IDS.uuid7(),
        event_type="ticket_solved",
    )


async def test_a_subscription_is_read_as_it_was_written(db: Database) -> None:
    one, two, other = adapter("a"), adapter("b"), adapter("a", "other")
    await add(db, one, two, other)
    gone = domain.remove(two, "b", "")
    await db.run(lambda uow: store.subscriptions.save(uow, gone))
    async with db.read() as connection:
        of = store.subscriptions
        assert await of.get(connection, "demo", "a") == one
        assert await of.get(connection, "demo", "b") == gone
        assert await of.get(connection, "demo", "A") is None
        assert await of.page(connection, "demo", after="", limit=9) == [one]
        assert await of.page(connection, "demo", after="a", limit=9) == []
        assert await of.count(connection, "demo", SinkKind.ADAPTER) == 1
        kind = SinkKind.ADAPTER
        running = {one.incarnation: (1, kind), other.incarnation: (1, kind)}
        assert await of.revisions(connection, range(domain.SLOTS)) == running
        assert await of.revisions(connection, {one.slot} - {other.slot} or {one.slot})
        assert {each.tenant for each in await of.load(connection, list(running))} == {
            "demo",
            "other",
        }
    stopped = replace(one, state=State.STOPPED, revision=2, seek={("t", 1): 7, ("t", 0): 0})
    await db.run(lambda uow: store.subscriptions.save(uow, stopped))
    async with db.read() as connection:
        assert await store.subscriptions.get(connection, "demo", "a") == stopped
        found = await store.subscriptions.revisions(connection, range(domain.SLOTS))
    assert set(found) == {other.incarnation}


async def test_progress_and_places_are_written_over(db: Database) -> None:
    first, second = Progress(3, 1, 1, failing=True, last_error="нет"), Progress(4, 1)
    for marks, each in (({("t", 0): 5, ("t", 1): 0, ("u", 0): 9}, first), ({("t", 0): 6}, second)):

        async def work(uow: UnitOfWork, marks=marks, each=each) -> None:
            await store.places.save(uow, {"i": marks}, {"i": 7})
            await store.subscriptions.save_progress(uow, {"i": each})

        await db.run(work)
    async with db.read() as connection:
        # A topic is written with all its partitions.
        assert await store.places.load(connection, ["i", "j"]) == {
            "i": {("t", 0): 6, ("u", 0): 9},
            "j": {},
        }
        assert await store.subscriptions.progress_of(connection, ["i", "j"]) == {"i": second}


async def test_parked_records_come_back_in_order_by_key(db: Database) -> None:
    rows = [
        Parked("i", record(offset, key), 2, 1, NOW, NOW + offset, "занято")
        for offset, key in ((7, b"a"), (5, b"a"), (6, b"b"))
    ]
    await db.run(lambda uow: store.kept.park(uow, rows))
    later = replace(rows[1], attempts=3, due=NOW + 99)
    await db.run(lambda uow: store.kept.park(uow, [later]))
    async with db.read() as connection:
        key = ("deskwire.tickets", b"a")
        assert await store.kept.of_lane(connection, "i", key, 9) == [later, rows[0]]
        assert await store.kept.of_lane(connection, "i", key, 1) == [later]
        lanes = await store.kept.lanes(connection, ["i", "j"])
        assert sorted(lanes["i"]) == [(key, 2, NOW + 99), (("deskwire.tickets", b"b"), 1, NOW + 6)]
        known = await store.kept.offsets(connection, {"i": {("deskwire.tickets", 3): 6}})
        assert known == {"i": {("deskwire.tickets", 3): {6, 7}}}
    await db.run(lambda uow: store.kept.unpark(uow, "i", [("deskwire.tickets", 3, 5)]))
    async with db.read() as connection:
        assert await store.kept.of_lane(connection, "i", key, 9) == [rows[0]]


async def test_dead_letters_keep_their_record(db: Database) -> None:
    ends = [end(Outcome.REJECTED), end(Outcome.CONFLICT)]
    rows = [
        Dead("i", replace(record(offset), event_id=each.event_id), each)
        for offset, each in enumerate(ends)
    ]
    for _ in range(2):
        await db.run(lambda uow: store.kept.bury(uow, rows))
    async with db.read() as connection:
        found = await store.kept.letters(connection, "i", below=None, limit=9)
        assert [(replace(each, number=0), kept) for each, kept in found] == [
            (row.end, row.record) for row in reversed(rows)
        ]
        older = await store.kept.letters(connection, "i", below=found[0][0].number, limit=9)
        assert older == found[1:]


async def test_ends_are_listed_newest_first_and_trimmed(db: Database) -> None:
    ends = [end(), end(Outcome.REJECTED), end()]
    await db.run(lambda uow: store.deliveries.add(uow, {"i": ends, "j": [end()]}))
    async with db.read() as connection:
        found = await store.deliveries.page(connection, "i", below=None, limit=9)
        assert [replace(each, number=0) for each in found] == list(reversed(ends))
        older = await store.deliveries.page(connection, "i", below=found[1].number, limit=9)
        assert older == found[2:]
        assert await store.deliveries.incarnations(connection, 2) == ["i"]
    assert await db.run(lambda uow: store.deliveries.trim(uow, "i", keep=2)) == 1
    async with db.read() as connection:
        assert await store.deliveries.page(connection, "i", below=None, limit=9) == found[:2]


async def test_hubs_share_a_key(db: Database) -> None:
    first = await db.run(lambda uow: store.keys.shared(uow, "cursors", b"one"))
    assert await db.run(lambda uow: store.keys.shared(uow, "cursors", b"two")) == first == b"one"


async def test_sequences_have_no_holes_under_concurrency(db: Database) -> None:
    async def draw(tenant: str, counts: dict[str, int]) -> dict[str, int]:
        return await db.run(lambda uow: store.subjects.draw_sequences(uow, tenant, counts))

    drawn = await asyncio.gather(
        *(draw("demo", {"a": 2, "b": 1} if i % 2 else {"b": 1, "a": 2}) for i in range(10))
    )
    assert sorted(each["a"] for each in drawn) == list(range(0, 20, 2))
    assert sorted(each["b"] for each in drawn) == list(range(10))
    assert await draw("other", {"a": 1, "A": 1}) == {"a": 0, "A": 0}


async def test_ids_of_events_are_known_for_a_while(db: Database) -> None:
    one, two = IDS.uuid7(), IDS.uuid7()

    async def add(source: str, *event_ids: str, now: int = NOW) -> set[str]:
        return await db.run(lambda uow: store.external_ids.add(uow, "demo", source, event_ids, now))

    assert await add("erp", one) == {one}
    assert await add("erp", one, two, now=NOW + 9) == {two}
    assert await add("crm", one, now=NOW + 9) == {one}
    assert await db.run(lambda uow: store.external_ids.forget(uow, NOW + 9)) == 1
    assert await add("erp", one, two) == {one}


async def test_what_is_left_of_a_deleted_one_is_found_and_nothing_else(db: Database) -> None:
    kept, gone = adapter("kept"), adapter("gone")
    await add(db, kept, gone)

    async def save(uow: UnitOfWork) -> None:
        for each in (kept, gone):
            await store.places.save(uow, {each.incarnation: {("t", 0): 7}}, {})
            await store.subscriptions.save_progress(uow, {each.incarnation: Progress(delivered=1)})
            await store.deliveries.add(uow, {each.incarnation: [end()]})

    await db.run(save)
    await db.run(lambda uow: store.subscriptions.remove(uow, gone))
    async with db.read() as connection:
        assert await store.subscriptions.left_over(connection) == set()
    # Its worker hasn't heard of it yet.
    await db.run(lambda uow: store.places.save(uow, {gone.incarnation: {("t", 0): 8}}, {}))
    async with db.read() as connection:
        assert await store.subscriptions.left_over(connection) == {gone.incarnation}
    await db.run(lambda uow: store.subscriptions.forget(uow, gone.incarnation))
    async with db.read() as connection:
        assert await store.subscriptions.left_over(connection) == set()
        assert (await store.places.load(connection, [kept.incarnation]))[kept.incarnation]
        assert await store.deliveries.page(connection, kept.incarnation, below=None, limit=5)
