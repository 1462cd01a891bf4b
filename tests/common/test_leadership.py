"""Leadership: one leads, the next one follows, and a leader learns that it isn't one any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from deskwire_common.db import Database
from deskwire_common.errors import Aborted, FailedPrecondition
from deskwire_common.leadership import lead, lock_file, lock_name, lock_path
from support import eventually


@pytest.fixture
async def pair(database_url: str) -> AsyncIterator[tuple[Database, Database]]:
    """Two processes' views of one database."""
    one, other = await Database.open(database_url), await Database.open(database_url)
    yield one, other
    await one.close()
    await other.close()


async def test_one_leads_until_it_gives_it_back(pair: tuple[Database, Database]) -> None:
    one, other = pair
    async with lead(one, "relay") as lease:
        assert lease.held
        for db in pair:
            with pytest.raises(FailedPrecondition):
                async with lead(db, "relay", wait=False):
                    pass
        async with lead(other, "timers", wait=False) as another:
            assert another.held
    assert not lease.held
    with pytest.raises(Aborted):
        lease.ensure()
    async with lead(other, "relay", wait=False) as next_one:
        next_one.ensure()


async def test_who_waits_leads_next_also_after_a_failure(pair: tuple[Database, Database]) -> None:
    one, other = pair
    order: list[str] = []

    async def follow() -> None:
        async with lead(other, "relay", poll=0.02):
            order.append("other")

    async def fail() -> None:
        async with lead(one, "relay"):
            following = asyncio.create_task(follow())
            with pytest.raises(FailedPrecondition):
                async with lead(other, "relay", wait=False):
                    pass
            order.append("one")
            waiting.append(following)
            raise ZeroDivisionError

    waiting: list[asyncio.Task[None]] = []
    with pytest.raises(ZeroDivisionError):
        await fail()
    async with asyncio.timeout(10):
        await waiting[0]
    assert order == ["one", "other"]


async def kill_session(db: Database, name: str) -> None:
    """End the server's side of the connection that holds the lock."""
    if db.dialect == "postgresql":
        find = (
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        async with db.read() as connection:
            assert (await connection.execute(sa.text(find))).scalar_one()
        return
    async with db.read() as connection:
        query = sa.text("SELECT IS_USED_LOCK(:name)")
        number = await connection.scalar(query, {"name": lock_name(db.url, name)})
        await connection.execute(sa.text(f"KILL {int(number or 0)}"))


async def test_a_leader_whose_connection_broke_knows_it(pair: tuple[Database, Database]) -> None:
    one, other = pair
    if one.dialect == "sqlite":
        # A lock file has no connection: it is the process's until it ends.
        async with lead(one, "relay"):
            assert lock_file(lock_path(other, "relay")) is None
        return
    async with lead(one, "relay", check=0.05) as lease:
        await kill_session(other, "relay")
        async with asyncio.timeout(10):
            await lease.lost.wait()
        with pytest.raises(Aborted):
            lease.ensure()

        async def led_by_other() -> bool:
            try:
                async with lead(other, "relay", wait=False) as next_one:
                    return next_one.held
            except FailedPrecondition:
                return False

        await eventually(led_by_other)
