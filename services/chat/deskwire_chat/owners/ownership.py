"""The partitions of this process: which it owns, under which terms, and how far each log goes.

Owners of partitions are decided as for all slots (deskwire_common.ownership). A partition's term stands beside its
head, in chat's own table: every transaction of the writer proves the terms it writes under and moves the heads in one
statement (the fence), so a process that was taken for dead can't write any more, whatever it believes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_chat.store import partitions
from deskwire_chat.store.partitions import PARTITION_IDS, Partition, Steps
from deskwire_common.db import UnitOfWork
from deskwire_common.errors import Unavailable
from deskwire_common.metrics import METRICS
from deskwire_common.ownership import Duties, Holdings, Member, Owner

KIND: Final = "partition"


class HeadsWrong(Unavailable):
    """A term is over, or the heads in memory differed from the database; nothing was written."""

    def __init__(self) -> None:
        super().__init__("the heads in memory were not those of the database")


def steps(began_with: Mapping[int, Partition], heads: Mapping[int, int]) -> Steps:
    """Return how a group moves the heads of the partitions that it began with."""
    return {
        number: (began_with[number].term, began_with[number].head, head)
        for number, head in heads.items()
    }


class Ownership:
    """The partitions of this process, and the owners of the others."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._holdings = Holdings(KIND, partitions.ROWS)
        self._stale = False

    def take_share(self, duties: Duties[Partition]) -> None:
        """Have the owner take this process's share of the partitions when it starts; `duties` is called then."""
        # All work under a term is fenced, so it goes on while the database is away.
        self._owner.add(self._holdings, duties, PARTITION_IDS, outlives_lease=True)
        self._owner.on_change(lambda: METRICS.partitions_owned.set(len(self.partitions)))

    # ------------------------------------------------------------------------------------ questions

    @property
    def address(self) -> str:
        """The address at which others reach this process; "" until it has started."""
        return self._owner.address

    @property
    def partitions(self) -> dict[int, Partition]:
        """The partitions of this process."""
        return self._holdings.owned

    def term_of(self, number: int) -> int:
        """Return the term under which this process takes a partition's commands; 0: it takes none."""
        return self._holdings.term_of(number)

    def owner_of(self, number: int) -> Member | None:
        """Return the living process that owns a partition, as far as this one knows."""
        row = self._holdings.seen.get(number)
        return self._owner.live.get(row.owner) if row is not None else None

    def others_live(self) -> bool:
        """Whether there are other processes."""
        return len(self._owner.live) > 1

    def owners(self) -> list[tuple[Member, list[tuple[int, int]]]]:
        """Return all living processes with their partitions and terms."""
        live = self._owner.live
        found: dict[str, list[tuple[int, int]]] = {name: [] for name in sorted(live)}
        for number, (owner, term) in sorted(self._holdings.owners().items()):
            if owner in found:
                found[owner].append((number, term))
        return [(live[name], theirs) for name, theirs in found.items()]

    async def wait_for_change(self, seconds: float) -> None:
        """Return when an owner has changed, or after `seconds`."""
        await self._owner.wait_for_change(seconds)

    # ------------------------------------------------------------------------------------- heads

    def doubt(self) -> None:
        """A transaction failed or is in doubt: read the heads again before the next one."""
        self._stale = True

    async def settle(self) -> bool:
        """Read the heads again if they are in doubt, and return whether; partitions whose term is over are lost."""
        if not self._stale:
            return False
        async with self._owner.db.read() as connection:
            await self._read_heads(connection)
        self._stale = False
        return True

    async def fence(
        self,
        uow: UnitOfWork,
        began_with: Mapping[int, Partition],
        heads: Mapping[int, int],
        published: Mapping[int, int] | None = None,
    ) -> None:
        """Move partitions to new heads in a transaction, proving the terms that it began with.

        Raises HeadsWrong: check which partitions are still held, and try again.
        """
        if not await partitions.fence(uow.connection, steps(began_with, heads), published):
            await self._read_heads(uow.connection)
            raise HeadsWrong

    async def _read_heads(self, connection: AsyncConnection) -> None:
        self._owner.adopt(KIND, await partitions.ROWS.load(connection), _take_head)


def _take_head(ours: Partition, row: Partition) -> None:
    ours.head = row.head
