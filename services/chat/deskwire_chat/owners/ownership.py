"""The partitions of this process: which it owns, under which terms, and how far each log goes.

Owners of partitions are decided as for all slots (deskwire_common.ownership). A partition's term stands beside its
head, in chat's own table: every transaction of the writer proves the terms it writes under and moves the heads in one
statement (the fence), so a process that was taken for dead can't write any more, whatever it believes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_chat.store import partitions
from deskwire_chat.store.partitions import PARTITION_IDS, Partition, Steps
from deskwire_common.db import UnitOfWork
from deskwire_common.errors import Unavailable
from deskwire_common.metrics import METRICS
from deskwire_common.ownership import Duties, Member, Owner, Share

KIND: Final = "partition"


class Holder(Duties[Partition], Protocol):
    """Does a process's work on its partitions (handover.Handover)."""

    def owners_changed(self) -> None:
        """React to a change of owners, here or elsewhere."""
        ...


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
        # All work under a term is fenced, so it goes on while the database is away.
        self._share: Share[Partition] = Share(
            KIND, partitions.ROWS, PARTITION_IDS, outlives_lease=True
        )
        self._stale = False

    def bind(self, holder: Holder) -> None:
        """Set who does the work on the partitions."""
        self._owner.add(self._share, holder)
        self._owner.on_change(lambda: METRICS.partitions_owned.set(len(self.partitions)))
        self._owner.on_change(holder.owners_changed)

    # ------------------------------------------------------------------------------------ questions

    @property
    def address(self) -> str:
        """The address at which others reach this process; "" until it has started."""
        return self._owner.address

    @property
    def partitions(self) -> dict[int, Partition]:
        """The partitions of this process."""
        return self._share.owned

    def term_of(self, number: int) -> int:
        """Return the term under which this process takes a partition's commands; 0: it takes none."""
        return self._share.term_of(number)

    def owner_of(self, number: int) -> Member | None:
        """Return the living process that owns a partition, as far as this one knows."""
        row = self._share.seen.get(number)
        return self._owner.live.get(row.owner) if row is not None else None

    def others_live(self) -> bool:
        """Whether there are other processes."""
        return len(self._owner.live) > 1

    def owners(self) -> list[tuple[Member, list[tuple[int, int]]]]:
        """Return all living processes with their partitions and terms."""
        live = self._owner.live
        found: dict[str, list[tuple[int, int]]] = {name: [] for name in sorted(live)}
        for number, (owner, term) in sorted(self._share.owners().items()):
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

    async def settle(self) -> None:
        """Read the heads again if they are in doubt; partitions whose term is over are lost."""
        if self._stale:
            async with self._owner.db.read() as connection:
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

        Raises HeadsWrong: check which partitions are still held, and try again.
        """
        if not await partitions.fence(uow.connection, steps(began_with, heads), published):
            await self._read_heads(uow.connection)
            raise HeadsWrong

    async def _read_heads(self, connection: AsyncConnection) -> None:
        self._share.adopt(await partitions.ROWS.load(connection), _take_head)


def _take_head(ours: Partition, row: Partition) -> None:
    ours.head = row.head
