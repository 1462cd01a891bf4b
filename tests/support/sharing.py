"""How several processes share slots, as their database shows it."""

from __future__ import annotations

import sqlalchemy as sa

from deskwire_common.db import Database
from deskwire_common.ownership import spread


async def shared(db: Database, metadata: sa.MetaData, kind: str, processes: int) -> set[str]:
    """Return the slots of a kind; check that `processes` members live and that each slot is with its wanted owner."""
    members, slots = metadata.tables["members"], metadata.tables["slots"]
    async with db.read() as connection:
        names = list(await connection.scalars(sa.select(members.c.name)))
        query = sa.select(slots.c.id, slots.c.owner).where(slots.c.kind == kind)
        owners = {row.id: row.owner for row in await connection.execute(query)}
    assert len(names) == processes
    assert owners == spread(kind, owners, names)
    return set(owners)
