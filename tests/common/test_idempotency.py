"""request_id on every database: a repeated call has the first one's result, and one effect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from google.protobuf.wrappers_pb2 import StringValue

from deskwire.tickets.v1 import ticket_service_pb2 as pb
from deskwire_common import db as dbs
from deskwire_common.auth import Principal, Role, acting_as
from deskwire_common.clock import ManualClock
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import InvalidArgument, RequestIdReused, Unavailable
from deskwire_common.idempotency import IdempotencyStore

METADATA = dbs.metadata()
CLOCK = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
STORE = IdempotencyStore(METADATA, CLOCK)
EFFECTS = sa.Table("effects", METADATA, sa.Column("name", dbs.Name))
ONLY = sa.Table("only", METADATA, sa.Column("name", dbs.Name, primary_key=True))
ALICE = Principal("acme", Role.AGENT, "alice")


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = await Database.open(database_url)
    async with database.transaction() as uow:
        await uow.connection.run_sync(METADATA.create_all)
        await uow.commit()
    yield database
    await database.close()


async def call(
    db: Database,
    request_id: str,
    subject: str = "Late",
    *,
    who: Principal = ALICE,
    method: str = "/x/Create",
    fails: bool = False,
) -> str:
    """A call with an effect; returns its result, which tells it from others."""

    async def once(uow: UnitOfWork) -> StringValue:
        async def work() -> StringValue:
            await uow.execute(sa.insert(EFFECTS).values(name=subject))
            if fails:
                raise Unavailable("not now")
            count = await uow.connection.scalar(sa.select(sa.func.count()).select_from(EFFECTS))
            return StringValue(value=f"{subject} {count}")

        request = pb.CreateTicketRequest(request_id=request_id, subject=subject)
        return await STORE.execute(uow, method=method, request=request, work=work)

    with acting_as(who):
        return (await db.run(once)).value


async def effects(db: Database) -> int:
    async with db.read() as connection:
        return int(await connection.scalar(sa.select(sa.func.count()).select_from(EFFECTS)) or 0)


async def test_a_repeated_call(db: Database) -> None:
    assert await call(db, "1") == "Late 1"
    assert await call(db, "1") == "Late 1"
    assert await call(db, "2") == "Late 2"
    assert await effects(db) == 2


async def test_what_a_call_was_answered_is_known_without_doing_it(db: Database) -> None:
    async def answered(subject: str, method: str = "/x/Create") -> StringValue | None:
        request = pb.CreateTicketRequest(request_id="1", subject=subject)
        with acting_as(ALICE):
            return await STORE.answered(
                db, method=method, request=request, response_class=StringValue
            )

    assert await answered("Late") is None
    await call(db, "1")
    assert await answered("Late") == StringValue(value="Late 1")
    assert await answered("Late", "/x/Other") is None
    with pytest.raises(RequestIdReused):
        await answered("Lost")
    assert await effects(db) == 1


async def test_another_body(db: Database) -> None:
    await call(db, "1")
    with pytest.raises(RequestIdReused) as caught:
        await call(db, "1", "Lost")
    assert caught.value.metadata == {"method": "/x/Create"}
    assert await effects(db) == 1


async def test_a_request_id_is_its_callers(db: Database) -> None:
    assert await call(db, "1") == "Late 1"
    others = [
        Principal("acme", Role.AGENT, "bob"),
        Principal("acme", Role.OPERATOR, "alice"),
        Principal("other", Role.AGENT, "alice"),
    ]
    for number, who in enumerate(others, 2):
        assert await call(db, "1", who=who) == f"Late {number}"
    assert await call(db, "1", method="/x/Other") == "Late 5"
    # Ids that differ by case or accent are two, whatever the database's collation.
    assert await call(db, "A") == "Late 6"
    assert await call(db, "a") == "Late 7"
    assert await call(db, "ä") == "Late 8"


async def test_a_call_that_failed_can_be_made_again(db: Database) -> None:
    with pytest.raises(Unavailable):
        await call(db, "1", fails=True)
    assert await effects(db) == 0
    assert await call(db, "1") == "Late 1"


async def test_the_same_call_many_times_at_once(db: Database) -> None:
    results = await asyncio.gather(*(call(db, "1") for _ in range(10)))
    assert results == ["Late 1"] * 10
    assert await effects(db) == 1


@pytest.mark.parametrize("request_id", ["", " ", "1 ", "x" * 129])
async def test_a_request_id_that_is_none(db: Database, request_id: str) -> None:
    with pytest.raises(InvalidArgument, match="request_id"):
        await call(db, request_id)
    assert await effects(db) == 0


async def test_old_ones_are_forgotten(db: Database) -> None:
    for number in range(5):
        await call(db, str(number))
    CLOCK.advance(3600)
    await call(db, "young")
    assert await STORE.purge(db, keep=1800) == 5
    assert await STORE.purge(db, keep=1800) == 0
    assert await call(db, "young") == "Late 6"
    assert await call(db, "0") == "Late 7"


async def test_what_another_caller_made_meanwhile_is_seen_by_the_next_try(db: Database) -> None:
    """Two calls look, find nothing, and make the same thing: the second one looks again."""
    looks = 0

    async def work(uow: UnitOfWork) -> StringValue:
        nonlocal looks
        looks += 1
        query = sa.select(ONLY.c.name).where(ONLY.c.name == "a")
        if looks > 1 and (await uow.execute(query)).scalar_one_or_none() is not None:
            return StringValue(value="there")
        await uow.execute(sa.insert(ONLY).values(name="a"))
        return StringValue(value="made")

    async def once(request_id: str) -> str:
        request = pb.CreateTicketRequest(request_id=request_id)
        with acting_as(ALICE):
            return (await STORE.once(db, method="/x/Make", request=request, work=work)).value

    assert await once("1") == "made"
    looks = 0
    assert await once("2") == "there"
    assert looks == 2
    assert await once("1") == "made"
    assert looks == 2
