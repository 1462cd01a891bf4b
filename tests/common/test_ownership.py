"""Ownership: members share slots, whoever dies or is cut off is replaced, and can't write any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from urllib.parse import urlsplit, urlunsplit

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common import db as dbs
from deskwire_common.clock import SystemClock
from deskwire_common.db import Database
from deskwire_common.errors import Unavailable
from deskwire_common.ids import RandomIds
from deskwire_common.ownership import (
    Held,
    Owner,
    TermOver,
    fence,
    members_table,
    share,
    slots_table,
)
from support import eventually
from support.relay import Relay, relay

LEASE = 1.2
TABLES = dbs.metadata()
MEMBERS = members_table(TABLES)
SLOTS = slots_table(TABLES)
WORK = sa.Table(
    "work",
    TABLES,
    sa.Column("slot", dbs.Name, primary_key=True),
    sa.Column("writer", dbs.Name, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
)
IDS = [f"source-{number}" for number in range(12)]


class Skewed(SystemClock):
    """A clock of a machine that is ahead of others."""

    def __init__(self, seconds: float) -> None:
        self._ahead = timedelta(seconds=seconds)

    def now(self) -> datetime:
        return super().now() + self._ahead


class Process:
    """A process that notes what it works on."""

    def __init__(self, name: str, db: Database, ahead: float, lease: float) -> None:
        self.name = name
        self.db = db
        self.owner = Owner(
            db, Skewed(ahead), RandomIds().uuid7(), lease_seconds=lease, look_seconds=0.1
        )
        self.working: dict[str, Held] = {}
        self.begun: list[tuple[str, int]] = []
        self.finished: list[str] = []
        self.owner.employ("source", self._work, ids=IDS, patience=1.0)
        self._running: asyncio.Task[None] | None = None

    async def _work(self, held: Held) -> None:
        self.working[held.id] = held
        self.begun.append((held.id, held.term))
        try:
            while held.is_held:
                await held.wait(3_600)
            self.finished.append(held.id)
        finally:
            self.working.pop(held.id)

    async def start(self) -> None:
        await self.owner.start(self.name, f"127.0.0.1:{len(self.name)}")
        self._running = asyncio.create_task(self.owner.run())

    async def die(self) -> None:
        """Be gone without a word."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})

    async def write(self, held: Held) -> None:
        """Write under a slot's term."""

        async def work(uow: dbs.UnitOfWork) -> None:
            await held.fence(uow)
            await dbs.upsert(
                uow, WORK, {"slot": held.id, "writer": self.name, "count": held.term}, ["slot"]
            )

        await self.db.run(work)

    def has(self, names: list[str]) -> bool:
        """Whether it works on exactly what is its own when these live."""
        wanted = share("source", IDS, names, self.name)
        assert set(self.working) == wanted, (self.name, set(self.working) ^ wanted)
        return True


Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start(database_url: str) -> AsyncIterator[Start]:
    """Starts processes on one database; `url` leads to it another way."""
    async with AsyncExitStack() as stack:
        made = await Database.open(database_url)
        stack.push_async_callback(made.close)
        async with made.engine.begin() as connection:
            await connection.run_sync(TABLES.create_all)

        async def begin(
            name: str, *, ahead: float = 0.0, lease: float = LEASE, url: str = ""
        ) -> Process:
            db = await Database.open(url or database_url)
            stack.push_async_callback(db.close)
            process = Process(name, db, ahead, lease)
            stack.push_async_callback(process.die)
            await process.start()
            return process

        yield begin


async def test_members_share_and_a_graceful_leave_hands_over_at_once(start: Start) -> None:
    # A lease that doesn't end during the test: nothing here waits for one.
    one = await start("one", lease=300.0)
    await eventually(lambda: one.has(["one"]))
    other = await start("other", lease=300.0)
    both = ["one", "other"]
    await eventually(lambda: one.has(both) and other.has(both))
    # Each slot that moved was finished here before it began there, as the next term.
    assert sorted(one.finished) == sorted(other.working)
    assert {held.term for held in other.working.values()} == {2}
    assert {held.term for held in one.working.values()} == {1}
    assert set(one.owner.live) == set(other.owner.live) == set(both)

    await other.owner.leave()
    assert not other.working
    await eventually(lambda: one.has(["one"]))
    assert set(one.owner.live) == {"one"}


async def test_a_dead_process_is_replaced_when_its_lease_has_ended(start: Start) -> None:
    one, other = await start("one"), await start("other")
    both = ["one", "other"]
    await eventually(lambda: one.has(both) and other.has(both))
    await other.die()
    await eventually(lambda: one.has(["one"]))


async def test_the_next_life_takes_over_at_once(start: Start) -> None:
    one = await start("one", lease=300.0)
    await eventually(lambda: one.has(["one"]))
    await one.die()
    again = await start("one", lease=300.0)
    await eventually(lambda: again.has(["one"]))
    assert {held.term for held in again.working.values()} == {2}


async def test_an_older_life_steps_aside(start: Start) -> None:
    old = await start("one", lease=300.0)
    await eventually(lambda: old.has(["one"]))
    held = old.working[IDS[0]]
    new = await start("one", lease=300.0)
    await eventually(lambda: new.has(["one"]) and not old.working)
    with pytest.raises(TermOver):
        await old.write(held)
    with pytest.raises(TermOver):
        held.ensure()


async def test_who_stood_still_cannot_write_under_the_old_term(start: Start) -> None:
    """As SIGSTOP does it: no code of the process runs, and then it goes on where it was."""
    one, other = await start("one"), await start("other")
    both = ["one", "other"]
    await eventually(lambda: one.has(both) and other.has(both))
    stale = dict(one.working)
    await one.write(next(iter(stale.values())))
    await one.die()
    await eventually(lambda: other.has(["other"]))
    for held in stale.values():
        with pytest.raises(TermOver):
            await one.write(held)
        assert not held.is_held
    for held in other.working.values():
        await other.write(held)
    async with other.db.read() as connection:
        writers = (await connection.execute(sa.select(WORK.c.writer))).scalars().all()
    assert set(writers) == {"other"}


async def test_a_fence_knows_the_term_that_runs_and_no_other(start: Start) -> None:
    one = await start("one", lease=300.0)
    await eventually(lambda: one.has(["one"]))
    async with one.db.transaction() as uow:
        await fence(uow, SLOTS, "source", IDS[0], 1)
        with pytest.raises(TermOver):
            await fence(uow, SLOTS, "source", IDS[1], 7)
        with pytest.raises(TermOver):
            await fence(uow, SLOTS, "source", "unknown", 1)


async def test_clocks_that_differ_within_the_bound_take_nobody_for_dead(start: Start) -> None:
    # The bound is 3 s, two thirds; these two differ by 2.
    lease = 4.5
    one = await start("one", lease=lease)
    await eventually(lambda: one.has(["one"]))
    other = await start("other", lease=lease, ahead=1.0)
    third = await start("third", lease=lease, ahead=-1.0)
    names = ["one", "other", "third"]
    await eventually(lambda: all(each.has(names) for each in (one, other, third)))
    counts = [len(each.begun) for each in (one, other, third)]
    ends = asyncio.get_running_loop().time() + lease
    await eventually(lambda: asyncio.get_running_loop().time() > ends)
    assert [len(each.begun) for each in (one, other, third)] == counts
    # And a dead one is missed, whatever its clock said.
    await other.die()
    await eventually(lambda: one.has(["one", "third"]) and third.has(["one", "third"]))


async def test_work_that_fails_begins_again_and_a_fault_ends_the_process(
    database_url: str, start: Start
) -> None:
    spare = await start("spare")
    await spare.owner.leave()
    owner = Owner(spare.db, SystemClock(), RandomIds().uuid7(), lease_seconds=LEASE)
    tries = 0

    async def work(held: Held) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Unavailable("it is away")
        raise ZeroDivisionError

    owner.employ("outbox", work)
    await owner.start("one", "")
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(owner.run(), 10)
    assert caught.group_contains(ZeroDivisionError)
    assert tries == 3


async def test_slots_that_come_and_go(database_url: str, start: Start) -> None:
    """As sources and adapters do: their slots follow what is in another table."""
    spare = await start("spare")
    await spare.owner.leave()
    db = spare.db
    working: set[str] = set()

    async def work(held: Held) -> None:
        working.add(held.id)
        try:
            await held.wait(3_600)
        finally:
            working.discard(held.id)

    async def ids(connection: AsyncConnection) -> list[str]:
        return list((await connection.execute(sa.select(WORK.c.slot))).scalars())

    async def slots() -> set[str]:
        async with db.read() as connection:
            query = sa.select(SLOTS.c.id).where(SLOTS.c.kind == "adapter")
            return set((await connection.execute(query)).scalars())

    owner = Owner(db, SystemClock(), RandomIds().uuid7(), lease_seconds=300.0, look_seconds=300.0)
    owner.employ("adapter", work, ids=ids, patience=1.0)
    await owner.start("one", "")
    running = asyncio.create_task(owner.run())
    try:
        row = {"slot": "a", "writer": "", "count": 0}
        await db.run(lambda uow: uow.execute(sa.insert(WORK), [row, {**row, "slot": "b"}]))
        owner.wake.set()
        await eventually(lambda: working == {"a", "b"})
        await db.run(lambda uow: uow.execute(sa.delete(WORK).where(WORK.c.slot == "a")))
        owner.wake.set()
        await eventually(lambda: working == {"b"})

        async def is_gone() -> bool:
            owner.wake.set()
            return await slots() == {"b"}

        await eventually(is_gone)
    finally:
        running.cancel()
        await asyncio.wait({running})


@pytest.fixture(params=["postgres", "mariadb"])
async def cut(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, str, Relay]]:
    """A fresh database: its URL, the one through a cable that can be cut, and the cable."""
    server = request.getfixturevalue(request.param)
    url = server.fresh()
    async with relay(server.port) as cable:
        parts = urlsplit(url)
        place = f"{parts.username}:{parts.password}@127.0.0.1:{cable.port}"
        yield url, urlunsplit(parts._replace(netloc=place)), cable
    server.drop(url)


async def test_who_is_cut_off_without_a_word_is_replaced_within_15_s(
    cut: tuple[str, str, Relay],
) -> None:
    """No FIN, no RST: the database keeps the session, and a transaction that was under way, for hours."""
    url, through, cable = cut
    async with AsyncExitStack() as stack:
        dbs_ = [await Database.open(each) for each in (url, through)]
        for each in dbs_:
            stack.push_async_callback(each.close)
        async with dbs_[0].engine.begin() as connection:
            await connection.run_sync(TABLES.create_all)
        near, far = (Process(*each, 0.0, 9.0) for each in zip(["near", "far"], dbs_, strict=True))
        for process in (far, near):
            stack.push_async_callback(process.die)
            await process.start()
        both = ["far", "near"]
        await eventually(lambda: near.has(both) and far.has(both))
        # The cable is cut in the middle of a transaction that holds a slot's row.
        held = next(iter(far.working.values()))
        with pytest.raises(Unavailable):
            async with far.db.transaction() as uow:
                await held.fence(uow)
                cable.freeze()
                await eventually(lambda: near.has(["near"]), timeout=15)
                # It knows by its own clock, though nothing that it asks is answered.
                assert not far.working
                assert not held.is_held
                cable.release()
                await held.fence(uow)
        await eventually(lambda: near.has(both) and far.has(both), timeout=30)
        with pytest.raises(TermOver):
            await far.write(held)
