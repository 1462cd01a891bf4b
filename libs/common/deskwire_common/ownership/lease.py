"""The lease of this process: its row among the members, and when it ends by the process's own clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from sqlalchemy.exc import SQLAlchemyError

from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.ownership.members import Member, Members


class Lease:
    """Prolongs a row of `members`, and knows when it ended."""

    def __init__(
        self, db: Database, members: Members, clock: Clock, instance: str, seconds: float
    ) -> None:
        self.seconds = seconds
        self.me = Member("", instance, "", 0)
        self._db = db
        self._members = members
        self._clock = clock
        self._ends = 0.0

    @property
    def left(self) -> float:
        """Seconds until others may take this process for dead; 0 or less: they may already."""
        return self._ends - self._clock.monotonic()

    def now(self) -> int:
        """The time of day in microseconds, which leases are compared with."""
        return to_micros(self._clock.now())

    async def take(self, name: str, address: str) -> None:
        """Take a name, whoever had it. Raises Unavailable."""
        self.me = Member(name, self.me.instance, address, 0)
        for last in (False, False, True):
            try:
                await self._prolong(self._register)
                return
            except SQLAlchemyError:
                # Another process made the row meanwhile.
                if last:
                    raise

    async def renew(self) -> bool:
        """Prolong it; False when a newer life has the name. Raises Unavailable."""
        return await self._prolong(self._renew)

    async def end(self) -> None:
        """Leave the members. Raises Unavailable."""
        await self.forget([self._prolonged()])

    async def forget(self, members: Iterable[Member]) -> None:
        """Remove members that have ended. Raises Unavailable."""

        async def work(uow: UnitOfWork) -> None:
            for each in members:
                await self._members.forget(uow.connection, each)

        await self._db.run(work)

    async def _register(self, uow: UnitOfWork, me: Member) -> bool:
        await self._members.register(uow.connection, me)
        return True

    async def _renew(self, uow: UnitOfWork, me: Member) -> bool:
        return await self._members.renew(uow.connection, me, now=self.now())

    async def _prolong(self, write: Callable[[UnitOfWork, Member], Awaitable[bool]]) -> bool:
        # Use the time before the call: the answer may take long.
        ends = self._clock.monotonic() + self.seconds
        me = self._prolonged()
        holds = await self._db.run(lambda uow: write(uow, me))
        if holds:
            self._ends = ends
        return holds

    def _prolonged(self) -> Member:
        until = self.now() + int(self.seconds * 1_000_000)
        return Member(self.me.name, self.me.instance, self.me.address, until)
