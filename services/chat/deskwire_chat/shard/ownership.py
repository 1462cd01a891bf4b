"""Who owns which partition: terms and leases in the database, which decides.

A partition has one owner per term. Every transaction of the writer proves the terms it writes under (the fence), so a
process that was taken for dead can't write any more, whatever it believes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from deskwire_chat.domain import PARTITIONS
from deskwire_chat.shard.commands import NotOwner
from deskwire_chat.store import partitions
from deskwire_chat.store.partitions import Partition
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import Unavailable
from deskwire_common.logging import get_logger

LEASE_SECONDS: Final = 15.0


class Ownership:
    """The partitions of this process."""

    def __init__(self, db: Database, clock: Clock, owner: str) -> None:
        """`owner` names the place of this process (its pod): its next life takes over at once."""
        self._db = db
        self._clock = clock
        self._owner = owner
        self.partitions: dict[int, Partition] = {}
        self._stale = False

    async def claim(self) -> list[Partition]:
        """Become the owner of all partitions; waits for the lease of another owner to end."""
        while True:
            async with self._db.transaction() as uow:
                found = await partitions.load(uow.connection)
                if len(found) < PARTITIONS:
                    await partitions.create_missing(uow.connection, [each.id for each in found])
                    await uow.commit()
                    continue
                now = to_micros(self._clock.now())
                others = [
                    each
                    for each in found
                    if each.owner not in {"", self._owner} and each.lease_until > now
                ]
                lease = now + int(LEASE_SECONDS * 1_000_000)
                if not others and all(
                    [
                        await partitions.claim(
                            uow.connection, each, owner=self._owner, lease_until=lease
                        )
                        for each in found
                    ]
                ):
                    await uow.commit()
                    mine = [replace(each, term=each.term + 1, owner=self._owner) for each in found]
                    self.partitions = {each.id: each for each in mine}
                    return mine
            get_logger().info("waiting_for_partitions", owner=others[0].owner if others else "")
            await asyncio.sleep(1.0)

    async def renew(self) -> None:
        """Keep the lease until cancelled. Raises NotOwner when it was taken away."""
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            until = to_micros(self._clock.now()) + int(LEASE_SECONDS * 1_000_000)
            try:
                for number in self.partitions:
                    if not await self._db.run(partial(self._renew, number, until)):
                        raise NotOwner(f"partition {number} has another owner")
            except NotOwner:
                raise
            except Unavailable as error:
                get_logger().warning("lease_not_renewed", error=str(error))

    async def _renew(self, number: int, until: int, uow: UnitOfWork) -> bool:
        return await partitions.renew(uow.connection, number, owner=self._owner, lease_until=until)

    async def release(self) -> None:
        """Let another process take over at once."""

        async def work(uow: UnitOfWork) -> None:
            await partitions.release(uow.connection, owner=self._owner)

        await self._db.run(work)

    # ------------------------------------------------------------------------------------- heads

    def doubt(self) -> None:
        """A transaction failed or is in doubt: read the heads again before the next one."""
        self._stale = True

    async def settle(self) -> None:
        """Read the heads again if they are in doubt. Raises NotOwner when a term is over."""
        if self._stale:
            async with self._db.read() as connection:
                self._adopt(await partitions.load(connection))
            self._stale = False

    async def fence(
        self,
        uow: UnitOfWork,
        heads: Mapping[int, int],
        published: Mapping[int, int] | None = None,
    ) -> None:
        """Move partitions to new heads in a transaction, proving their terms.

        Raises NotOwner when a term is over, Unavailable when only the heads in memory were wrong.
        """
        steps = {
            number: (self.partitions[number].term, self.partitions[number].head, head)
            for number, head in heads.items()
        }
        if not await partitions.fence(uow.connection, steps, published):
            self._adopt(await partitions.load(uow.connection))
            raise Unavailable("the heads in memory were not those of the database")

    def moved(self, heads: Mapping[int, int]) -> None:
        """The transaction of `fence` was committed."""
        for number, head in heads.items():
            self.partitions[number].head = head

    def _adopt(self, found: list[Partition]) -> None:
        by_number = {each.id: each for each in found}
        for number, mine in self.partitions.items():
            theirs = by_number.get(number)
            if theirs is None or theirs.term != mine.term:
                raise NotOwner("another process has taken over")
        self.partitions = {number: by_number[number] for number in self.partitions}
