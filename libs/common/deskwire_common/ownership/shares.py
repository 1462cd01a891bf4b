"""One kind of slots, as one process sees it: which ones it owns, which it should own, and who has the others."""

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
"""Reads which slots there are to be."""

SlotT_contra = TypeVar("SlotT_contra", bound=SlotRow, contravariant=True)


class Duties(Protocol[SlotT_contra]):
    """What a process does with its slots of a kind."""

    def gained(self, slots: Sequence[SlotT_contra]) -> None:
        """These are this process's from now on. It must not block."""
        ...

    def lost(self, slots: Sequence[SlotT_contra]) -> None:
        """These aren't any more: nothing of them may be remembered. It must not block."""
        ...

    async def finish(self, slots: Sequence[SlotT_contra]) -> None:
        """Finish what was begun under their terms; they are given up when this returns."""
        ...


class Process(Protocol):
    """What a share needs of its process (owner.Owner)."""

    db: Database
    wake: asyncio.Event

    @property
    def name(self) -> str: ...

    def changed(self) -> None:
        """Who owns what is another than before."""
        ...

    async def may_claim(self, c: AsyncConnection) -> Callable[[str], bool] | None:
        """Return which owners' slots are to be had; None while this process may claim nothing."""
        ...


class Share(Generic[SlotT]):
    """The slots of one kind that this process owns, and who has the others."""

    def __init__(
        self,
        kind: str,
        rows: SlotRows[SlotT],
        ids: Collection[Any] | IdsOf,
        *,
        outlives_lease: bool = False,
    ) -> None:
        """`ids`: the slots that there are, or what reads them where they come and go.

        `outlives_lease`: whatever is done under a term is a fenced write, so it may go on when this process's lease
        has ended and nobody has claimed the slot. All else stops then.
        """
        self.kind = kind
        self.rows = rows
        self.owned: dict[Any, SlotT] = {}
        self.leaving: set[Any] = set()
        self.seen: dict[Any, SlotT] = {}
        """All slots as of the last look, this process's as it has them."""
        self.missing = False
        """Whether a slot that should be this process's still is another's."""
        self.outlives_lease = outlives_lease
        self._process: Process
        self._duties: Duties[SlotT]
        self._ids: set[Any] | IdsOf = ids if callable(ids) else set(ids)
        self._there = set() if callable(ids) else set(ids)

    def bind(self, process: Process, duties: Duties[SlotT]) -> None:
        """Say whose share it is, and what is done with it."""
        self._process = process
        self._duties = duties

    def term_of(self, slot: Any) -> int:
        """Return the term under which this process takes new work for a slot; 0: it takes none."""
        mine = self.owned.get(slot)
        return 0 if mine is None or slot in self.leaving else mine.term

    def owners(self) -> dict[Any, tuple[str, int]]:
        """Return the owner and term of all slots."""
        return {each.id: (each.owner, each.term) for each in self.seen.values()}

    async def load(self, c: AsyncConnection) -> list[SlotT]:
        """Return the slots that are there, and learn which should be."""
        found = await self.rows.load(c)
        if callable(self._ids):
            self._there = set(await self._ids(c))
        return found

    async def create(self, found: Iterable[SlotT], live: Collection[str]) -> bool:
        """Add the slots that are missing, take out those that needn't be and nobody has; whether there were any."""
        rows = {each.id: each for each in found}
        new = self._there - set(rows)
        # Another version of this program may have other fixed ones: those stay.
        old = [
            each.id
            for each in rows.values()
            if callable(self._ids) and each.id not in self._there and each.owner not in live
        ]
        if not new and not old:
            return False

        async def work(uow: UnitOfWork) -> None:
            await self.rows.add(uow, new)
            if old:
                await self.rows.remove(uow, old)

        await self._process.db.run(work)
        return True

    def see(self, found: Sequence[SlotT]) -> None:
        """Take note of what is there; what another has claimed is lost."""
        self.adopt(found)
        self.seen = {each.id: each for each in found} | self.owned

    def adopt(
        self, found: Iterable[SlotT], keep: Callable[[SlotT, SlotT], None] | None = None
    ) -> None:
        """Lose what another has claimed. `keep` is called with (ours, the row) of what is still this process's."""
        by_id = {each.id: each for each in found}
        over: set[Any] = set()
        for slot, mine in self.owned.items():
            theirs = by_id.get(slot)
            if theirs is None or theirs.term != mine.term:
                over.add(slot)
            elif keep is not None:
                keep(mine, theirs)
        if over:
            get_logger().error("slots_taken_away", kind=self.kind, slots=sorted(over))
            self.drop(over)
            self._process.wake.set()

    async def settle(self, names: Collection[str]) -> None:
        """Give up what is too much, claim what is missing, when `names` share."""
        wanted = hashing.share(self.kind, self._there, names, self._process.name)
        too_many = (set(self.owned) - wanted) | self.leaving
        if too_many:
            await self.give_up(too_many)
        claimed = await self._claim_all(wanted - set(self.owned))
        if claimed:
            self._take(claimed)
        self.missing = bool(wanted - set(self.owned))

    async def _claim_all(self, wanted: Collection[Any]) -> list[SlotT]:
        if not wanted:
            return []
        try:
            return await self._process.db.run(partial(self._claim, wanted), attempts=1)
        except WriteConflict:
            # A transaction of the last owner holds one of the rows: that one waits for the next look, no other does.
            return await self._claim_each(wanted)

    async def _claim_each(self, wanted: Collection[Any]) -> list[SlotT]:
        claimed: list[SlotT] = []
        for slot in sorted(wanted):
            try:
                claimed += await self._process.db.run(partial(self._claim, {slot}), attempts=1)
            except WriteConflict:
                get_logger().warning("slot_held_by_transaction", kind=self.kind, slot=slot)
        return claimed

    async def _claim(self, wanted: Collection[Any], uow: UnitOfWork) -> list[SlotT]:
        is_free = await self._process.may_claim(uow.connection)
        if is_free is None:
            return []
        taken: dict[Any, int] = {}
        for each in await self.rows.load(uow.connection):
            if (
                each.id in wanted
                and is_free(each.owner)
                and await self.rows.claim(uow.connection, each, owner=self._process.name)
            ):
                taken[each.id] = each.term + 1
        # Read again: until the claim the last owner could write what else is in the row.
        found = await self.rows.load(uow.connection) if taken else []
        return [each for each in found if taken.get(each.id) == each.term]

    def _take(self, claimed: Sequence[SlotT]) -> None:
        self.owned |= {each.id: each for each in claimed}
        self.seen |= {each.id: each for each in claimed}
        get_logger().info("slots_taken", kind=self.kind, slots=[each.id for each in claimed])
        self._duties.gained(claimed)
        self._process.changed()

    async def give_up(self, slots: Collection[Any]) -> None:
        """Give slots up in good order: what was begun is finished, nothing new is taken meanwhile."""
        self.leaving |= set(slots)
        await self._duties.finish([self.owned[each] for each in sorted(slots)])
        given: set[Any] = set()
        try:
            for each in sorted(slots):
                mine = self.owned.get(each)
                if mine is None:
                    continue  # taken away meanwhile
                await self._process.db.run(partial(self._release, mine))
                given.add(each)
        finally:
            self.drop(given)

    async def _release(self, slot: SlotT, uow: UnitOfWork) -> bool:
        return await self.rows.release(uow.connection, slot)

    def drop(self, slots: Iterable[Any]) -> None:
        """Be without slots from now on."""
        gone = [self.owned.pop(each) for each in sorted(slots) if each in self.owned]
        if not gone:
            return
        for each in gone:
            self.seen.pop(each.id, None)
            self.leaving.discard(each.id)
        get_logger().info("slots_left", kind=self.kind, slots=[each.id for each in gone])
        self._duties.lost(gone)
        self._process.changed()
