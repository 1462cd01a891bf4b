"""Ids that outside systems gave their events."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import sqlalchemy as sa

from deskwire_common import db
from deskwire_common.db import UnitOfWork
from deskwire_events.store.tables import external_ids

_CHUNK: Final = 5_000


async def add(
    uow: UnitOfWork, tenant: str, source: str, event_ids: Collection[str], now: int
) -> set[str]:
    """Note ids; return those that were new. Waits for a transaction that notes the same."""
    return {
        event_id
        for event_id in sorted(event_ids)
        if await db.insert_if_absent(
            uow,
            external_ids,
            {"tenant_id": tenant, "source": source, "event_id": event_id, "created_at": now},
        )
    }


async def forget(uow: UnitOfWork, before: int) -> int:
    """Forget some of those that were noted before a time (microseconds); return how many."""
    c = external_ids.c
    query = sa.select(c.tenant_id, c.source, c.event_id).where(c.created_at < before).limit(_CHUNK)
    rows = [
        {"t": row.tenant_id, "s": row.source, "e": row.event_id} for row in await uow.execute(query)
    ]
    if rows:
        own = (
            c.tenant_id == sa.bindparam("t"),
            c.source == sa.bindparam("s"),
            c.event_id == sa.bindparam("e"),
        )
        await uow.execute(sa.delete(external_ids).where(*own), rows)
    return len(rows)
