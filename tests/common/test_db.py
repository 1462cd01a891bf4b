"""Databases: what is written, what is not, and what is tried again, on each of the three."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from deskwire_common import db as dbs
from deskwire_common.db import (
    CommitInDoubt,
    ConnectionLost,
    Database,
    UnitOfWork,
    WriteConflict,
)
from deskwire_common.errors import FailedPrecondition, InvalidArgument, Unavailable
from support import eventually
from support.servers import DatabaseServer

METADATA = dbs.metadata()
ITEMS = sa.Table(
    "items",
    METADATA,
    sa.Column("name", dbs.binary_text(64), primary_key=True),
    sa.Column("amount", dbs.Micros, nullable=False),
    sa.Column("note", dbs.LongText, nullable=False, default=""),
)
TAGS = sa.Table("tags", METADATA, sa.Column("name", dbs.Name, primary_key=True))


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = await Database.open(database_url)
    async with database.engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
    yield database
    await database.close()


async def items(db: Database) -> dict[str, int]:
    async with db.read() as connection:
        rows = await connection.execute(sa.select(ITEMS.c.name, ITEMS.c.amount))
        return {row.name: row.amount for row in rows}


async def put(uow: UnitOfWork, name: str, amount: int) -> None:
    await dbs.upsert(uow, ITEMS, {"name": name, "amount": amount, "note": ""}, ["name"])


async def add(uow: UnitOfWork, name: str) -> None:
    await uow.execute(
        sa.update(ITEMS).where(ITEMS.c.name == name).values(amount=ITEMS.c.amount + 1)
    )


@pytest.fixture
async def pg(postgres: DatabaseServer) -> AsyncIterator[Database]:
    """PostgreSQL, where the others have nothing of the kind."""
    url = postgres.fresh()
    database = await Database.open(url)
    async with database.engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
    yield database
    await database.close()
    postgres.drop(url)


async def test_text_that_postgresql_does_not_store_is_the_callers_fault(pg: Database) -> None:
    with pytest.raises(InvalidArgument, match="NUL"):
        await pg.run(lambda uow: put(uow, "a\0b", 1))
    with pytest.raises(InvalidArgument, match="NUL"):
        async with pg.read() as connection:
            await connection.execute(sa.select(ITEMS).where(ITEMS.c.name == "a\0b"))
    with pytest.raises(sa.exc.SQLAlchemyError, match="NUL"):
        dbs.array(["a", "b\0", "c"])


async def test_arrays_hold_what_was_put_in(pg: Database) -> None:
    texts = ["", "NULL", "a,b", "{}", '"', "\\", '\\"', " 李 🙂 ", "a\nb\tc", "'"]
    async with pg.read() as connection:
        for kind, values in (("text", texts), ("text", [""]), ("bigint", [0, -1, 2**62])):
            statement = f"SELECT * FROM unnest(%s::{kind}[])"
            rows = await connection.exec_driver_sql(statement, (dbs.array(values),))
            assert [row[0] for row in rows] == values


async def test_single_statements_commit_themselves(pg: Database) -> None:
    statements = pg.statements()
    insert = (
        "INSERT INTO items (name, amount, note) SELECT *, '' FROM unnest(%s::text[], %s::bigint[])"
    )
    for number in range(8):  # psycopg prepares it meanwhile
        names = dbs.array([f"{number}a", f"{number}b"])
        assert await statements.run(insert, [names, dbs.array([number, number])]) == 2
    # What fails writes nothing, and the connection goes on.
    with pytest.raises(IntegrityError) as failed:
        await statements.run(insert, [dbs.array(["new", "1a"]), dbs.array([1, 1])])
    assert dbs.is_unique_violation(failed.value)
    with pytest.raises(DataError) as failed_too:
        await statements.run("SELECT 1 / %s", [0])
    assert dbs.is_division_by_zero(failed_too.value)
    # One that breaks is replaced, and what it was at is in doubt.
    with pytest.raises(CommitInDoubt):
        await statements.run("SELECT pg_terminate_backend(pg_backend_pid())", [])
    assert await statements.run(insert, [dbs.array(["last"]), dbs.array([9])]) == 1
    await statements.close()
    await statements.close()
    assert len(await items(pg)) == 17
    assert "checked out connections: 0" in pg.engine.pool.status().lower()


async def test_single_statements_are_postgresqls(tmp_path: Path) -> None:
    database = await Database.open(f"sqlite:///{tmp_path / 'a.db'}")
    with pytest.raises(FailedPrecondition):
        database.statements()
    await database.close()


async def test_without_a_commit_nothing_is_written(db: Database) -> None:
    heard: list[str] = []
    async with db.transaction() as uow:
        uow.after_commit(lambda: heard.append("forgotten"))
        await put(uow, "forgotten", 1)
    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as uow:
            uow.after_commit(lambda: heard.append("failed"))
            await put(uow, "failed", 1)
            raise ZeroDivisionError
    assert await items(db) == {}
    async with db.transaction() as uow:
        uow.after_commit(lambda: heard.append("kept"))
        await put(uow, "kept", 1)
        assert heard == []
        await uow.commit()
        assert heard == ["kept"]
    assert await items(db) == {"kept": 1}
    assert heard == ["kept"]


async def test_a_listener_that_fails_undoes_nothing(db: Database) -> None:
    heard: list[str] = []

    async def work(uow: UnitOfWork) -> None:
        uow.after_commit(lambda: heard.remove("nobody"))
        uow.after_commit(lambda: heard.append("second"))
        await put(uow, "a", 1)

    await db.run(work)
    assert (await items(db), heard) == ({"a": 1}, ["second"])


async def test_run_commits_once_and_repeats_no_other_failure(db: Database) -> None:
    calls = 0

    async def work(uow: UnitOfWork) -> str:
        nonlocal calls
        calls += 1
        await put(uow, "a", calls)
        if calls == 1:
            raise ZeroDivisionError
        return "done"

    with pytest.raises(ZeroDivisionError):
        await db.run(work)
    assert (calls, await items(db)) == (1, {})
    assert await db.run(work) == "done"
    assert (calls, await items(db)) == (2, {"a": 2})


async def test_a_lock_that_is_held_too_long_is_a_conflict(db: Database) -> None:
    impatient = await Database.open(db.url, lock_timeout=1)
    try:
        async with db.transaction() as seed:
            await put(seed, "a", 1)
            await seed.commit()
        async with db.transaction() as holder:
            await add(holder, "a")
            with pytest.raises(WriteConflict) as caught:
                await impatient.run(lambda uow: add(uow, "a"), attempts=1)
            assert caught.value.temporary
            await holder.commit()
        await impatient.run(lambda uow: add(uow, "a"))
        assert await items(db) == {"a": 3}
    finally:
        await impatient.close()


async def test_the_victim_of_a_deadlock_tries_again(db: Database) -> None:
    async def seed(uow: UnitOfWork) -> None:
        await put(uow, "a", 0)
        await put(uow, "b", 0)

    await db.run(seed)
    both = asyncio.Barrier(2)
    attempts: list[str] = []

    async def crossing(first: str, second: str) -> None:
        async def work(uow: UnitOfWork) -> None:
            attempts.append(first)
            await add(uow, first)
            # One writer at a time has a SQLite file: there the other can't have begun.
            if attempts.count(first) == 1 and db.dialect != "sqlite":
                await both.wait()
            await add(uow, second)

        await db.run(work)

    async with asyncio.timeout(30):
        await asyncio.gather(crossing("a", "b"), crossing("b", "a"))
    assert await items(db) == {"a": 2, "b": 2}
    assert len(attempts) == (2 if db.dialect == "sqlite" else 3)


async def test_a_connection_that_breaks_in_a_transaction_is_replaced(db: Database) -> None:
    if db.dialect == "sqlite":
        pytest.skip("a file has no connection that could break")
    postgres = db.dialect == "postgresql"
    calls = 0

    async def work(uow: UnitOfWork) -> None:
        nonlocal calls
        calls += 1
        await put(uow, "a", calls)
        if calls > 1:
            return
        own = "SELECT pg_backend_pid()" if postgres else "SELECT CONNECTION_ID()"
        number = (await uow.execute(sa.text(own))).scalar_one()
        kill = f"SELECT pg_terminate_backend({number})" if postgres else f"KILL {number}"
        async with db.read() as connection:
            await connection.execute(sa.text(kill))
        await put(uow, "b", 1)

    with pytest.raises(ConnectionLost):
        await db.run(work, attempts=1)
    calls = 0
    await db.run(work)
    assert (calls, await items(db)) == (2, {"a": 2})


async def test_what_is_cancelled_gives_its_connection_back(db: Database) -> None:
    async def read() -> None:
        await items(db)

    async def write() -> None:
        async with db.transaction() as uow:
            await put(uow, "a", 1)
            await uow.commit()

    for turns in range(60):
        for work in (read, write):
            task = asyncio.create_task(work())
            for _ in range(turns % 30):
                await asyncio.sleep(turns / 30_000 if turns > 30 else 0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: "checked out connections: 0" in db.engine.pool.status().lower())
    await db.run(lambda uow: put(uow, "b", 1))
    assert (await items(db))["b"] == 1


async def test_what_is_cancelled_is_closed_with_the_database(database_url: str) -> None:
    db = await Database.open(database_url)
    made: list[object] = []
    closed: list[object] = []
    for engine in {db.engine.sync_engine, db._reader.sync_engine}:
        sa.event.listen(engine, "connect", lambda driver, _record: made.append(driver))
        sa.event.listen(engine, "close", lambda driver, _record: closed.append(driver))

    async def read() -> None:
        async with db.read():
            raise AssertionError("it was cancelled before")

    # More than the pool has open: they connect, and nobody waits for it any more.
    readers = [asyncio.create_task(read()) for _ in range(3)]
    await asyncio.sleep(0)
    for each in readers:
        each.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    await db.close()
    assert made
    assert {id(each) for each in made} <= {id(each) for each in closed}


async def test_upsert_writes_new_rows_and_updates_old_ones(db: Database) -> None:
    async def work(uow: UnitOfWork) -> None:
        await dbs.upsert(uow, ITEMS, [], ["name"])
        await put(uow, "a", 1)
        rows = [{"name": name, "amount": 7} for name in ("a", "b")]
        await uow.execute(sa.update(ITEMS).values(note="kept"))
        await dbs.upsert(uow, ITEMS, [{**row, "note": "李 🙂"} for row in rows[1:]], ["name"])
        await dbs.upsert(uow, ITEMS, rows[0] | {"note": "new"}, ["name"])
        for _ in range(2):
            await dbs.upsert(uow, TAGS, [{"name": "x"}, {"name": "y"}], ["name"])

    await db.run(work)
    async with db.read() as connection:
        rows = await connection.execute(sa.select(ITEMS).order_by(ITEMS.c.name))
        assert [tuple(row) for row in rows] == [("a", 7, "new"), ("b", 7, "李 🙂")]
        assert list(await connection.scalars(sa.select(TAGS).order_by(TAGS.c.name))) == ["x", "y"]


async def test_insert_if_absent_forgives_a_taken_key_only(db: Database) -> None:
    async def work(uow: UnitOfWork) -> list[bool]:
        row = {"name": "a", "amount": 1, "note": ""}
        told = [await dbs.insert_if_absent(uow, ITEMS, {**row, "amount": n}) for n in (1, 2)]
        await put(uow, "after", 1)  # the transaction goes on
        return told

    assert await db.run(work) == [True, False]
    assert await items(db) == {"a": 1, "after": 1}
    with pytest.raises(DBAPIError):
        async with db.transaction() as uow:
            await dbs.insert_if_absent(uow, ITEMS, {"name": "b", "amount": None, "note": ""})


@pytest.mark.parametrize("commits", [True, False])
async def test_who_inserts_second_waits_for_the_first_ones_end(db: Database, commits: bool) -> None:
    async def second() -> bool:
        row = {"name": "a", "amount": 2, "note": ""}
        return await db.run(lambda uow: dbs.insert_if_absent(uow, ITEMS, row))

    async with db.transaction() as uow:
        await dbs.insert_if_absent(uow, ITEMS, {"name": "a", "amount": 1, "note": ""})
        waiting = asyncio.create_task(second())
        # Long enough for one that doesn't wait to be caught.
        assert not (await asyncio.wait([waiting], timeout=0.3))[0]
        if commits:
            await uow.commit()
    async with asyncio.timeout(20):
        assert await waiting is not commits
    assert await items(db) == {"a": 1 if commits else 2}


async def test_text_is_compared_by_its_bytes(db: Database) -> None:
    names = ["A", "Z", "a", "ss", "ß", "é", "е", "🙂"]

    async def work(uow: UnitOfWork) -> None:
        for number, name in enumerate(names):
            assert await dbs.insert_if_absent(
                uow, ITEMS, {"name": name, "amount": number, "note": ""}
            ), name

    await db.run(work)
    async with db.read() as connection:
        found = await connection.scalars(sa.select(ITEMS.c.name).order_by(ITEMS.c.name))
        assert list(found) == sorted(names, key=str.encode)


async def test_a_commit_survives_a_power_cut_by_the_settings(db: Database) -> None:
    report = await dbs.durability(db)
    assert dbs.is_durable(report), report


@pytest.mark.parametrize(
    "url", ["", "here", "oracle://x/y", "sqlite://", "sqlite:///:memory:", "mongodb://x"]
)
def test_a_url_of_no_known_or_no_lasting_database_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument):
        dbs.normalize_url(url)


@pytest.mark.parametrize("kind", ["postgresql", "mysql", "mariadb"])
async def test_a_database_that_is_away_is_unavailable_without_the_password(kind: str) -> None:
    with pytest.raises(Unavailable) as caught:
        await Database.open(f"{kind}://me:geheim@127.0.0.1:1/x")
    assert "geheim" not in str(caught.value)
