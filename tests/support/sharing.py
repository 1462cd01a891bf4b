"""Slots that several processes share, as their database has it."""

from __future__ import annotations

import sqlalchemy as sa

from deskwire_common.db import Database
from deskwire_common.ownership import wanted_owner


async def shared(db: Database, metadata: sa.MetaData, kind: str, processes: int) -> set[str]:
    """The slots of a kind; each must be owned by whoever is to own it when so many processes live.

    That may be one process for all of them: the hashes of a few slots do so once in a while.
    """
    members, slots = metadata.tables["members"], metadata.tables["slots"]
    async with db.read() as connection:
        names = list(await connection.scalars(sa.select(members.c.name)))
        query = sa.select(slots.c.id, slots.c.owner).where(slots.c.kind == kind)
        owners = {row.id: row.owner for row in await connection.execute(query)}
    assert len(names) == processes
    assert owners == {each: wanted_owner(kind, each, names) for each in owners}
    return set(owners)
