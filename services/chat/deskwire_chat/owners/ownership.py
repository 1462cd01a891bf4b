"""Who owns which partition: terms and leases in the database, which decides.

A partition has one owner per term. Every transaction of the writer proves the terms it writes under (the fence), so a
process that was taken for dead can't write any more, whatever it believes. All processes see the same table of living
ones and share the partitions out by the same rule; whoever has one too many finishes what waits in it and gives it up,
and whoever misses one claims it as soon as it is free or its owner is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_chat.domain.conversations import PARTITIONS
from deskwire_chat.store import partitions, shards
from deskwire_chat.store.partitions import Partition, Steps
from deskwire_chat.store.shards import Shard
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import DeskwireError, Unavailable
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS

LEASE_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 0.5
_WAITING_SECONDS: Final = 0.1
"""Between two looks while a partition of ours is still another's."""
_FORGET_LEASES: Final = 20
"""Leases after whose end a dead process is forgotten."""


class Holder(Protocol):
    """What a process does with its partitions (holder.PartitionHolder)."""

    def gained(self, owned: Sequence[Partition]) -> None:
        """These are this process's from now on."""
        ...

    def lost(self, numbers: Collection[int]) -> None:
        """These aren't any more: nothing of them may be remembered."""
        ...

    async def finish(self, numbers: Collection[int]) -> Mapping[int, int]:
        """Store what waits for these, publish it, and return how far Kafka has them."""
        ...

    def owners_changed(self) -> None:
        """Who owns what is another than before, here or elsewhere."""
        ...


class HeadsWrong(Unavailable):
    """A term is over, or the heads in memory were not those of the database; nothing was written."""

    def __init__(self) -> None:
        super().__init__("the heads in memory were not those of the database")


def steps(began_with: Mapping[int, Partition], heads: Mapping[int, int]) -> Steps:
    """Return how a group moves the heads of the partitions that it began with."""
    return {
        number: (began_with[number].term, began_with[number].head, head)
        for number, head in heads.items()
    }


def share(names: Sequence[str], name: str) -> set[int]:
    """Return the partitions that are `name`'s, of living processes sorted by name."""
    return {number for number in range(PARTITIONS) if names and names[number % len(names)] == name}


class Ownership:
    """The partitions of this process, and who has the others."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        name: str,
        instance: str,
        *,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        """`name` is the place of this process (its pod): its next life, another `instance`, takes over at once."""
        self._db = db
        self._clock = clock
        self._me = Shard(name, instance, "", 0)
        self._lease = lease_seconds
        # One process per SQLite file (app.py sees to that), whoever had the partitions before.
        self._alone = db.dialect == "sqlite"
        self._holder: Holder | None = None
        self.partitions: dict[int, Partition] = {}
        self._leaving: set[int] = set()
        self._rows: dict[int, Partition] = {}
        self._live: dict[str, Shard] = {}
        self._planned: list[str] = []
        self._superseded = False
        self._closing = False
        self._stale = False
        self._missing = False
        self._looking = asyncio.Lock()
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()

    @property
    def name(self) -> str:
        """The name of this process."""
        return self._me.name

    @property
    def address(self) -> str:
        """Where others reach this process."""
        return self._me.address

    # ------------------------------------------------------------------------------------ questions

    def term_of(self, number: int) -> int:
        """Return the term under which this process takes commands for a partition; 0: it takes none."""
        mine = self.partitions.get(number)
        return 0 if mine is None or number in self._leaving else mine.term

    def holds(self, number: int, term: int) -> bool:
        """Whether what was taken under a term may still be written."""
        mine = self.partitions.get(number)
        return mine is not None and mine.term == term

    def owner_of(self, number: int) -> Shard | None:
        """Return the living process that has a partition, as far as is known."""
        row = self._rows.get(number)
        return self._live.get(row.owner) if row is not None else None

    def others_live(self) -> bool:
        """Whether there are other processes."""
        return len(self._live) > 1

    def owners(self) -> list[tuple[Shard, list[tuple[int, int]]]]:
        """Return all living processes with their partitions and terms."""
        found: dict[str, list[tuple[int, int]]] = {name: [] for name in sorted(self._live)}
        for number, row in sorted(self._rows.items()):
            if row.owner in found:
                found[row.owner].append((number, row.term))
        return [(self._live[name], theirs) for name, theirs in found.items()]

    async def wait_for_change(self, seconds: float) -> None:
        """Return when an owner is another one, or after a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    # ----------------------------------------------------------------------------------------- life

    def bind(self, holder: Holder) -> None:
        """Say who does the work on the partitions."""
        self._holder = holder

    async def start(self, address: str) -> None:
        """Be there for others at `address`, and claim what is to be had at once. Raises Unavailable."""
        self._me = Shard(self._me.name, self._me.instance, address, 0)

        async def register(uow: UnitOfWork) -> None:
            await shards.register(uow.connection, self._with_lease())
            found = await partitions.load(uow.connection)
            if len(found) < PARTITIONS:
                await partitions.create_missing(uow.connection, [each.id for each in found])

        for last in (False, False, True):
            try:
                await self._db.run(register)
                break
            except SQLAlchemyError:
                # Another process made the rows meanwhile.
                if last:
                    raise
        await self._look(first=True)

    async def run(self) -> None:
        """Keep the lease and this process's share until cancelled; outlasts a database that is away."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_lease())
            group.create_task(self._keep_share())
        # Left: the rest of the process goes on until it is stopped.
        await asyncio.Event().wait()

    async def leave(self) -> None:
        """Give everything up to the others, or to the next life, and be gone."""
        self._closing = True
        async with self._looking:
            try:
                await self._give_up(set(self.partitions))
                await self._db.run(partial(self._forget, [self._with_lease()]))
            except (DeskwireError, SQLAlchemyError, OSError) as error:
                # The lease ends by itself.
                get_logger().warning("partitions_not_given_up", error=str(error))
        self._live.pop(self._me.name, None)
        self._tell()

    async def _keep_lease(self) -> None:
        while not self._closing:
            await asyncio.sleep(self._lease / 3)
            if self._closing:
                return
            try:
                if not await self._db.run(self._renew) and not self._superseded:
                    self._step_aside()
            except (DeskwireError, SQLAlchemyError, OSError) as error:
                get_logger().warning("lease_not_renewed", error=str(error))

    async def _keep_share(self) -> None:
        while not self._closing:
            pause = _WAITING_SECONDS if self._missing else _LOOK_SECONDS
            pause = self._lease / 3 if self._alone else pause
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._look()
            except (DeskwireError, SQLAlchemyError, OSError) as error:
                get_logger().warning("partitions_not_shared", error=str(error))

    async def _renew(self, uow: UnitOfWork) -> bool:
        return await shards.renew(uow.connection, self._with_lease(), now=self._now())

    async def _forget(self, dead: Iterable[Shard], uow: UnitOfWork) -> None:
        for each in dead:
            await shards.forget(uow.connection, each)

    def _with_lease(self) -> Shard:
        until = self._now() + int(self._lease * 1_000_000)
        return Shard(self._me.name, self._me.instance, self._me.address, until)

    def _now(self) -> int:
        return to_micros(self._clock.now())

    # ---------------------------------------------------------------------------------------- share

    async def _look(self, *, first: bool = False) -> None:
        """See who lives and who has what; give up what is too much, claim what is missing."""
        async with self._looking:
            if self._closing:
                return
            async with self._db.read() as c:
                everybody, found = await shards.every(c), await partitions.load(c)
            self._see(everybody, found)
            # Somebody new is told of to the gateways first, and gets partitions at the next look.
            names = [each for each in sorted(self._live) if first or each in self._planned]
            self._planned = sorted(self._live)
            wanted = set() if self._superseded else share(names, self._me.name)
            too_many = (set(self.partitions) - wanted) | self._leaving
            if too_many:
                await self._give_up(too_many)
            claimed = await self._claim_all(wanted - set(self.partitions))
            if claimed:
                self._take(claimed)
            self._missing = bool(wanted - set(self.partitions))
            long_ago = self._now() - int(self._lease * _FORGET_LEASES * 1_000_000)
            dead = [each for each in everybody if each.lease_until < long_ago]
            if dead:
                await self._db.run(partial(self._forget, dead))

    def _see(self, everybody: Sequence[Shard], found: Sequence[Partition]) -> None:
        now = self._now()
        live = {
            each.name: each
            for each in everybody
            if each.lease_until > now or each.instance == self._me.instance
        }
        other_life = live.get(self._me.name)
        superseded = other_life is not None and other_life.instance != self._me.instance
        if self._alone:
            live = {self._me.name: self._me}
        before = self.owners()
        self._live = live
        if superseded and not self._superseded:
            self._step_aside()
        self._superseded = superseded
        self._adopt(found, heads=False)
        self._rows = {each.id: each for each in found} | self.partitions
        if self.owners() != before:
            self._tell()

    def _step_aside(self) -> None:
        """Another process has this one's name: a newer life."""
        get_logger().error("shard_superseded", shard=self._me.name)
        self._superseded = True
        self._drop(set(self.partitions))

    async def _claim_all(self, wanted: Collection[int]) -> list[Partition]:
        return await self._db.run(partial(self._claim, wanted)) if wanted else []

    async def _claim(self, wanted: Collection[int], uow: UnitOfWork) -> list[Partition]:
        now = self._now()
        everybody = await shards.every(uow.connection)
        if not any(each.instance == self._me.instance for each in everybody):
            return []
        live = {each.name for each in everybody if each.lease_until > now}
        until = now + int(self._lease * 1_000_000)
        taken: dict[int, int] = {}
        for each in await partitions.load(uow.connection):
            free = (
                self._alone
                or each.owner in {"", self._me.name}
                or (each.owner not in live and each.lease_until <= now)
            )
            if (
                each.id in wanted
                and free
                and await partitions.claim(
                    uow.connection, each, owner=self._me.name, lease_until=until
                )
            ):
                taken[each.id] = each.term + 1
        # Read again: until the claim the last owner could move the head.
        found = await partitions.load(uow.connection) if taken else []
        return [each for each in found if taken.get(each.id) == each.term]

    def _take(self, claimed: Sequence[Partition]) -> None:
        self.partitions |= {each.id: each for each in claimed}
        self._rows |= {each.id: each for each in claimed}
        get_logger().info("partitions_taken", numbers=[each.id for each in claimed])
        METRICS.partitions_owned.set(len(self.partitions))
        if self._holder is not None:
            self._holder.gained(claimed)
        self._tell()

    async def _give_up(self, numbers: set[int]) -> None:
        """Give partitions up in good order. What was begun is finished: gateways have been refused under the term."""
        self._leaving |= numbers
        published = await self._holder.finish(numbers) if self._holder is not None else {}
        given: set[int] = set()
        try:
            for number in sorted(numbers):
                mine = self.partitions.get(number)
                if mine is None:
                    continue  # taken away meanwhile
                position = published.get(number, mine.published)
                await self._db.run(partial(self._release, number, mine.term, position))
                given.add(number)
        finally:
            self._drop(given)

    async def _release(self, number: int, term: int, position: int, uow: UnitOfWork) -> bool:
        return await partitions.release(uow.connection, number=number, term=term, position=position)

    def _drop(self, numbers: Collection[int]) -> None:
        if not numbers:
            return
        for number in numbers:
            self.partitions.pop(number, None)
            self._rows.pop(number, None)
        self._leaving.difference_update(numbers)
        get_logger().info("partitions_left", numbers=sorted(numbers))
        METRICS.partitions_owned.set(len(self.partitions))
        if self._holder is not None:
            self._holder.lost(numbers)
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if self._holder is not None:
            self._holder.owners_changed()

    # ------------------------------------------------------------------------------------- heads

    def doubt(self) -> None:
        """A transaction failed or is in doubt: read the heads again before the next one."""
        self._stale = True

    async def settle(self) -> None:
        """Read the heads again if they are in doubt; partitions whose term is over are lost."""
        if self._stale:
            async with self._db.read() as connection:
                await self._read_heads(connection)
            self._stale = False

    async def fence(
        self,
        uow: UnitOfWork,
        began_with: Mapping[int, Partition],
        heads: Mapping[int, int],
        published: Mapping[int, int] | None = None,
    ) -> None:
        """Move partitions to new heads in a transaction, proving the terms that it began with.

        Raises HeadsWrong: see what is still held, and try again.
        """
        if not await partitions.fence(uow.connection, steps(began_with, heads), published):
            await self._read_heads(uow.connection)
            raise HeadsWrong

    async def _read_heads(self, connection: AsyncConnection) -> None:
        self._adopt(await partitions.load(connection), heads=True)

    def _adopt(self, found: Iterable[Partition], *, heads: bool) -> None:
        by_number = {each.id: each for each in found}
        over: set[int] = set()
        for number, mine in self.partitions.items():
            theirs = by_number.get(number)
            if theirs is None or theirs.term != mine.term:
                over.add(number)
            elif heads:
                mine.head = theirs.head
        if over:
            get_logger().error("partitions_taken_away", numbers=sorted(over))
            self._drop(over)
            self._wake.set()
