"""The owners of the partitions, and how far each log goes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_chat.domain.conversations import PARTITIONS
from deskwire_chat.store.tables import partitions
from deskwire_common.db import UnitOfWork
from deskwire_common.ownership import SlotRows


@dataclass(slots=True)
class Partition:
    """One row of `partitions`."""

    id: int
    term: int
    owner: str
    head: int
    published: int


def _read(row: Any) -> Partition:
    return Partition(row.id, row.term, row.owner, row.head, row.published)


ROWS: Final = SlotRows(partitions, _read, empty={"head": 0, "published": 0}, keep=["published"])
"""Partitions as slots. Terms stand beside heads, so that one statement proves the terms and moves the heads."""
PARTITION_IDS: Final = range(PARTITIONS)


async def save_published(c: AsyncConnection, *, number: int, term: int, position: int) -> bool:
    """Note that everything up to `position` is on Kafka; False when the term is over.

    It writes one row per transaction: several could wait for the fence's rows in another order, which is a deadlock.
    """
    result = await c.execute(
        update(partitions)
        .where(partitions.c.id == number, partitions.c.term == term)
        .values(published=position)
    )
    return bool(result.rowcount == 1)


async def wait_for_commits(numbers: Collection[int], uow: UnitOfWork) -> None:
    """Return when no transaction that began to commit messages of these partitions is under way any more."""
    ids = partitions.c.id
    await uow.execute(select(ids).where(ids.in_(numbers)).order_by(ids).with_for_update())


Steps = Mapping[int, tuple[int, int, int]]
"""Partition → the term under which its head is moved, the old head, the new one."""

MOVE: Final = (
    "UPDATE partitions AS p SET head = s.head, published = greatest(p.published, s.published) "
    "FROM unnest(%s::integer[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[]) "
    "AS s (id, term, old_head, head, published) WHERE p.id = s.id AND p.term = s.term AND p.head = s.old_head"
)
"""The statement of `fence` on PostgreSQL, with the columns of `moves`."""


def moves(steps: Steps, published: Mapping[int, int]) -> list[list[int]]:
    """Return the columns that MOVE takes."""
    return [
        list(steps),
        *(list(column) for column in zip(*steps.values(), strict=True)),
        [published.get(number, 0) for number in steps],
    ]


def fence_sql(steps: Steps, published: Mapping[int, int] | None = None) -> str:
    """Return the statement that moves heads: partition → (term, old head, new head).

    If its rowcount isn't len(steps), another process owns a partition or moved its head: roll back then. It contains
    only integers. Without movement (old == new) it still locks the rows and proves the terms. It also writes
    `published` (partition → position on Kafka), as these rows are written anyway.
    """
    cases = " ".join(f"WHEN {number} THEN {new}" for number, (_, _, new) in steps.items())
    wheres = " OR ".join(
        f"(id={number} AND term={term} AND head={old})" for number, (term, old, _) in steps.items()
    )
    notes = ""
    if published:
        done = " ".join(f"WHEN {number} THEN {position}" for number, position in published.items())
        notes = f", published = CASE id {done} ELSE published END"
    return f"UPDATE partitions SET head = CASE id {cases} ELSE head END{notes} WHERE {wheres}"  # noqa: S608


async def fence(
    c: AsyncConnection, steps: Steps, published: Mapping[int, int] | None = None
) -> bool:
    """Move heads as `fence_sql` describes; False when this process isn't the owner, or the heads are others."""
    result = await c.execute(text(fence_sql(steps, published)))
    return bool(result.rowcount == len(steps))
