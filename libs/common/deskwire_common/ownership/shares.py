"""One kind of slots, as one process sees it: those that it owns, those that it should own, and who has the others.

`Holdings` is what it knows, to be asked by whoever needs it; `Share` changes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common.db import Database, UnitOfWork, WriteConflict
from deskwire_common.logging import get_logger
from deskwire_common.ownership import hashing
from deskwire_common.ownership.slots import SlotRow, SlotRows, SlotT

IdsOf = Callable[[AsyncConnection], Awaitable[Collection[Any]]]
"""Reads which slots there should be."""

SlotT_contra = TypeVar("SlotT_contra", bound=SlotRow, contravariant=True)


class Duties(Protocol[SlotT_contra]):
    """What a process does with its slots of a kind."""

    def gained(self, slots: Sequence[SlotT_contra]) -> None:
        """This process owns these slots from now on. It must not block."""
        ...

    def lost(self, slots: Sequence[SlotT_contra]) -> None:
        """This process no longer owns these slots: it must forget everything about them. It must not block."""
        ...

    async def finish(self, slots: Sequence[SlotT_contra]) -> None:
        """Finish the work that was begun under their terms; they are given up when this returns."""
        ...


class Process(Protocol):
    """The part of its process that a share needs (owner.Owner)."""

    db: Database
    wake: asyncio.Event

    @property
    def name(self) -> str: ...

    def changed(self) -> None:
        """Note that the owners have changed."""
        ...

    async def may_claim(self, c: AsyncConnection) -> Callable[[str], bool] | None:
        """Return the test for owners whose slots may be claimed; None while this process may claim nothing."""
        ...


class Holdings(Generic[SlotT]):
    """What this process knows of one kind of slots."""

    def __init__(self, kind: str, rows: SlotRows[SlotT]) -> None:
        self.kind = kind
        self.rows = rows
        self.owned: dict[Any, SlotT] = {}
        """The slots of this process in their present state."""
        self.leaving: set[Any] = set()
        """Those of them that are about to be given up."""
        self.seen: dict[Any, SlotT] = {}
        """All slots as of the last look; this process's own in their present state."""

    def term_of(self, slot: Any) -> int:
        """Return the term under which this process takes new work for a slot; 0: it takes none."""
        mine = self.owned.get(slot)
        return 0 if mine is None or slot in self.leaving else mine.term

    def owners(self) -> dict[Any, tuple[str, int]]:
        """Return the owner and term of all slots."""
        return {each.id: (each.owner, each.term) for each in self.seen.values()}


class Share(Generic[SlotT]):
    """Keeps a process's share of one kind of slots."""

    def __init__(
        self,
        process: Process,
        holdings: Holdings[SlotT],
        duties: Duties[SlotT],
        ids: Collection[Any] | IdsOf,
        *,
        outlives_lease: bool = False,
    ) -> None:
        """`duties`: what the process does with its slots. `ids`: the slots, or a function that reads them.

        `outlives_lease`: all work under a term is fenced writes, so it may go on when this process's lease has ended
        and nobody has claimed the slot. Other work stops then.
        """
        self.holdings = holdings
        self.missing = False
        """Whether another process still has a slot that should be this one's."""
        self.outlives_lease = outlives_lease
        self._kind = holdings.kind
        self._rows = holdings.rows
        self._process = process
        self._duties = duties
        self._ids: set[Any] | IdsOf = ids if callable(ids) else set(ids)
        self._there = set() if callable(ids) else set(ids)
        self._spread: tuple[set[Any], Collection[str], set[Any]] = set(), (), set()

    async def load(self, c: AsyncConnection) -> list[SlotT]:
        """Return the slots in the table, and read which there should be."""
        found = await self._rows.load(c)
        if callable(self._ids):
            self._there = set(await self._ids(c))
        return found

    async def create(self, found: Iterable[SlotT], live: Collection[str]) -> bool:
        """Add missing slots, remove needless ones that nobody owns; return whether there were any."""
        rows = {each.id: each for each in found}
        new = self._there - set(rows)
        # Fixed slots of another version of this program stay.
        old = [
            slot.id
            for slot in rows.values()
            if callable(self._ids) and slot.id not in self._there and slot.owner not in live
        ]
        if not new and not old:
            return False

        async def work(uow: UnitOfWork) -> None:
            await self._rows.add(uow, new)
            if old:
                await self._rows.remove(uow, old)

        await self._process.db.run(work)
        return True

    def see(self, found: Sequence[SlotT]) -> None:
        """Take note of the slots in the table; those that another process has claimed are lost."""
        self.adopt(found)
        self.holdings.seen = {each.id: each for each in found} | self.holdings.owned

    def adopt(
        self, found: Iterable[SlotT], keep: Callable[[SlotT, SlotT], None] | None = None
    ) -> None:
        """Drop the slots that another has claimed. Calls `keep` with (our slot, the row) for those still owned."""
        by_id = {each.id: each for each in found}
        over: set[Any] = set()
        for slot, mine in self.holdings.owned.items():
            theirs = by_id.get(slot)
            if theirs is None or theirs.term != mine.term:
                over.add(slot)
            elif keep is not None:
                keep(mine, theirs)
        if over:
            get_logger().error("slots_taken_away", kind=self._kind, slots=sorted(over))
            self.drop(over)
            self._process.wake.set()

    async def settle(self, names: Collection[str]) -> None:
        """Give up slots beyond this process's share among `names`, and claim the missing ones."""
        wanted = self._wanted(names)
        too_many = (set(self.holdings.owned) - wanted) | self.holdings.leaving
        if too_many:
            await self.give_up(too_many)
        claimed = await self._claim_all(wanted - set(self.holdings.owned))
        if claimed:
            self._take(claimed)
        self.missing = bool(wanted - set(self.holdings.owned))

    def _wanted(self, names: Collection[str]) -> set[Any]:
        """Return the slots that this process should own. Spreading thousands takes a while: not at every look."""
        there, living, wanted = self._spread
        if there != self._there or living != names:
            wanted = hashing.share(self._kind, self._there, names, self._process.name)
            self._spread = set(self._there), names, wanted
        return wanted

    async def _claim_all(self, wanted: Collection[Any]) -> list[SlotT]:
        if not wanted:
            return []
        try:
            return await self._process.db.run(partial(self._claim, wanted), attempts=1)
        except WriteConflict:
            # A transaction of the last owner locks one of the rows: only this slot waits for the next look.
            return await self._claim_each(wanted)

    async def _claim_each(self, wanted: Collection[Any]) -> list[SlotT]:
        claimed: list[SlotT] = []
        for slot in sorted(wanted):
            try:
                claimed += await self._process.db.run(partial(self._claim, {slot}), attempts=1)
            except WriteConflict:
                get_logger().warning("slot_held_by_transaction", kind=self._kind, slot=slot)
        return claimed

    async def _claim(self, wanted: Collection[Any], uow: UnitOfWork) -> list[SlotT]:
        is_free = await self._process.may_claim(uow.connection)
        if is_free is None:
            return []
        taken: dict[Any, int] = {}
        for slot in await self._rows.load(uow.connection):
            if (
                slot.id in wanted
                and is_free(slot.owner)
                and await self._rows.claim(uow.connection, slot, owner=self._process.name)
            ):
                taken[slot.id] = slot.term + 1
        # Read the rows again: until the claim the last owner could write their other columns.
        found = await self._rows.load(uow.connection) if taken else []
        return [each for each in found if taken.get(each.id) == each.term]

    def _take(self, claimed: Sequence[SlotT]) -> None:
        self.holdings.owned |= {each.id: each for each in claimed}
        self.holdings.seen |= {each.id: each for each in claimed}
        get_logger().info("slots_taken", kind=self._kind, slots=[each.id for each in claimed])
        self._duties.gained(claimed)
        self._process.changed()

    async def give_up(self, slots: Collection[Any]) -> None:
        """Give slots up in good order: finish the work that was begun, and take no new work meanwhile."""
        self.holdings.leaving |= set(slots)
        await self._duties.finish([self.holdings.owned[each] for each in sorted(slots)])
        given: set[Any] = set()
        try:
            for slot in sorted(slots):
                mine = self.holdings.owned.get(slot)
                if mine is None:
                    continue  # lost meanwhile
                await self._process.db.run(partial(self._release, mine))
                given.add(slot)
        finally:
            self.drop(given)

    async def _release(self, slot: SlotT, uow: UnitOfWork) -> bool:
        return await self._rows.release(uow.connection, slot)

    def drop(self, slots: Iterable[Any]) -> None:
        """Own these slots no more."""
        gone = [
            self.holdings.owned.pop(each) for each in sorted(slots) if each in self.holdings.owned
        ]
        if not gone:
            return
        for slot in gone:
            self.holdings.seen.pop(slot.id, None)
            self.holdings.leaving.discard(slot.id)
        get_logger().info("slots_left", kind=self._kind, slots=[each.id for each in gone])
        self._duties.lost(gone)
        self._process.changed()
