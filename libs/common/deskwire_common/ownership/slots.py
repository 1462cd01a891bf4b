"""Slots: each is owned by one process at a time, and has a term, which every change of owner raises.

A write under a term proves the term in its own transaction (`fence`), so an owner that was replaced can't write any
more, whatever it believes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common import db as dbs
from deskwire_common.db import UnitOfWork
from deskwire_common.errors import Aborted


class SlotRow(Protocol):
    """The columns of any slot; `owner` is a member's name, "" when the slot is free."""

    id: Any
    term: int
    owner: str


SlotT = TypeVar("SlotT", bound=SlotRow)


@dataclass(slots=True)
class Slot:
    """One row of `slots`."""

    id: str
    term: int
    owner: str


class TermOver(Aborted):
    """Another process has the slot, or may have it: nothing was written under the old term."""

    def __init__(self, kind: str, slot: object, term: int) -> None:
        super().__init__(f"term {term} of {kind} {slot} is over")


def slots_table(metadata: sa.MetaData) -> sa.Table:
    """The table `slots` of a service, for all kinds that need no table of their own."""
    return sa.Table(
        "slots",
        metadata,
        sa.Column("kind", dbs.Name, primary_key=True),
        sa.Column("id", dbs.binary_text(255), primary_key=True),
        sa.Column("term", sa.BigInteger, nullable=False),
        sa.Column("owner", dbs.binary_text(128), nullable=False),
    )


class SlotRows(Generic[SlotT]):
    """Slots of one kind in a table with the columns id, term and owner."""

    def __init__(
        self,
        table: sa.Table,
        read: Callable[[Any], SlotT],
        *,
        mine: dict[str, Any] | None = None,
        empty: dict[str, Any] | None = None,
        keep: Sequence[str] = (),
    ) -> None:
        """`mine`: columns that distinguish this kind's rows; `empty`: the columns of a new row.

        `keep`: attributes of a slot that its owner writes when it gives the slot up.
        """
        self.table = table
        self._read = read
        self._mine = mine or {}
        self._empty = empty or {}
        self._keep = keep

    async def load(self, c: AsyncConnection) -> list[SlotT]:
        """Return all by id."""
        query = sa.select(self.table).where(*self._where()).order_by(self.table.c.id)
        return [self._read(row) for row in await c.execute(query)]

    async def add(self, uow: UnitOfWork, ids: Collection[Any]) -> None:
        """Insert slots that nobody owns; existing ones stay."""
        for slot in sorted(ids):
            row = {"id": slot, "term": 0, "owner": "", **self._mine, **self._empty}
            await dbs.insert_if_absent(uow, self.table, row)

    async def remove(self, uow: UnitOfWork, ids: Collection[Any]) -> None:
        """Delete slots, whoever owns them."""
        await uow.execute(sa.delete(self.table).where(*self._where(), self.table.c.id.in_(ids)))

    async def claim(self, c: AsyncConnection, slot: SlotT, *, owner: str) -> bool:
        """Claim a slot under its next term; False when another process was faster."""
        statement = self._of(slot.id, slot.term).values(term=slot.term + 1, owner=owner)
        return bool((await c.execute(statement)).rowcount == 1)

    async def release(self, c: AsyncConnection, slot: SlotT) -> bool:
        """Give a slot up, and write its `keep` attributes; False when the term is over."""
        kept = {name: getattr(slot, name) for name in self._keep}
        statement = self._of(slot.id, slot.term).values(owner="", **kept)
        return bool((await c.execute(statement)).rowcount == 1)

    async def fence(self, uow: UnitOfWork, slot: SlotT) -> None:
        """Prove a term: until the end of the transaction nobody can claim the slot. Raises TermOver."""
        statement = self._of(slot.id, slot.term).values(term=slot.term)
        if (await uow.execute(statement)).rowcount != 1:
            raise TermOver(str(self._mine.get("kind", self.table.name)), slot.id, slot.term)

    def _where(self) -> list[sa.ColumnElement[bool]]:
        return [self.table.c[name] == value for name, value in self._mine.items()]

    def _of(self, slot: Any, term: int) -> sa.Update:
        c = self.table.c
        return sa.update(self.table).where(*self._where(), c.id == slot, c.term == term)


def slot_rows(table: sa.Table, kind: str) -> SlotRows[Slot]:
    """The slots of a kind in the table of `slots_table`."""
    return SlotRows(table, lambda row: Slot(row.id, row.term, row.owner), mine={"kind": kind})


async def fence(uow: UnitOfWork, table: sa.Table, kind: str, slot: str, term: int) -> None:
    """Prove a term of the table of `slots_table` in a transaction. Raises TermOver."""
    await slot_rows(table, kind).fence(uow, Slot(slot, term, ""))
