"""How events' ways to adapters ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common.db import UnitOfWork
from deskwire_events.domain import Delivery, Outcome
from deskwire_events.store.tables import deliveries

_TRIM_CHUNK: Final = 5_000


async def dead_letters(
    uow: UnitOfWork, tenant: str, adapter_id: str, event_ids: Sequence[str]
) -> set[str]:
    """Those of the events that are dead letters already."""
    c = deliveries.c
    query = sa.select(c.event_id).where(
        c.tenant_id == tenant, c.adapter_id == adapter_id, c.event_id.in_(event_ids), c.dead == 1
    )
    return set((await uow.execute(query)).scalars())


async def add(uow: UnitOfWork, tenant: str, adapter_id: str, ends: Sequence[Delivery]) -> None:
    """Write ends; an event that was pushed again keeps the last. The adapter must be locked."""
    c = deliveries.c
    last = {end.event_id: end for end in ends}
    await uow.execute(
        sa.delete(deliveries).where(
            c.tenant_id == tenant, c.adapter_id == adapter_id, c.event_id.in_(list(last))
        )
    )
    rows = [
        {
            "tenant_id": tenant,
            "adapter_id": adapter_id,
            "event_id": end.event_id,
            "event_type": end.event_type,
            "outcome": int(end.outcome),
            "dead": int(end.outcome is Outcome.REJECTED),
            "detail": end.detail,
            "attempts": end.attempts,
            "time": end.time,
            "trace_id": end.trace_id,
        }
        for end in last.values()
    ]
    await uow.execute(sa.insert(deliveries), rows)


async def page(
    connection: AsyncConnection,
    tenant: str,
    adapter_id: str,
    *,
    dead_only: bool,
    below: int | None,
    limit: int,
) -> list[Delivery]:
    """Up to `limit` ends with a number below `below` (None: from the newest), newest first."""
    c = deliveries.c
    query = sa.select(deliveries).where(c.tenant_id == tenant, c.adapter_id == adapter_id)
    if dead_only:
        query = query.where(c.dead == 1)
    if below is not None:
        query = query.where(c.number < below)
    query = query.order_by(c.number.desc()).limit(limit)
    return [_delivery(row) for row in (await connection.execute(query)).mappings()]


async def trim(uow: UnitOfWork, tenant: str, adapter_id: str, *, keep: int) -> int:
    """Remove all but the newest `keep` ends of an adapter, dead letters excepted; how many went."""
    c = deliveries.c
    own = (c.tenant_id == tenant, c.adapter_id == adapter_id, c.dead == 0)
    surplus = sa.select(c.number).where(*own).order_by(c.number.desc()).offset(keep)
    numbers = list((await uow.execute(surplus.limit(_TRIM_CHUNK))).scalars())
    if numbers:
        await uow.execute(sa.delete(deliveries).where(c.number.in_(numbers)))
    return len(numbers)


def _delivery(row: sa.RowMapping) -> Delivery:
    return Delivery(
        event_id=row["event_id"],
        event_type=row["event_type"],
        outcome=Outcome(row["outcome"]),
        detail=row["detail"],
        attempts=row["attempts"],
        time=row["time"],
        trace_id=row["trace_id"],
        number=row["number"],
    )
