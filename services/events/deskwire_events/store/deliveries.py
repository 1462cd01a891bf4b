"""How events' ways to push sinks ended: the last ones, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common.db import UnitOfWork
from deskwire_events.domain import Delivery, Outcome
from deskwire_events.store.tables import deliveries

_TRIM_CHUNK: Final = 5_000


async def add(uow: UnitOfWork, ends: Mapping[str, Sequence[Delivery]]) -> None:
    """Write ends, by incarnation."""
    rows = [
        {
            "incarnation": incarnation,
            "event_id": end.event_id,
            "event_type": end.event_type,
            "outcome": int(end.outcome),
            "detail": end.detail,
            "attempts": end.attempts,
            "time": end.time,
            "trace_id": end.trace_id,
        }
        for incarnation, each in sorted(ends.items())
        for end in each
    ]
    if rows:
        await uow.execute(sa.insert(deliveries), rows)


async def page(
    connection: AsyncConnection, incarnation: str, *, below: int | None, limit: int
) -> list[Delivery]:
    """Up to `limit` ends with a number below `below` (None: from the newest), newest first."""
    c = deliveries.c
    query = sa.select(deliveries).where(c.incarnation == incarnation)
    if below is not None:
        query = query.where(c.number < below)
    query = query.order_by(c.number.desc()).limit(limit)
    return [
        Delivery(
            event_id=row["event_id"],
            event_type=row["event_type"],
            outcome=Outcome(row["outcome"]),
            detail=row["detail"],
            attempts=row["attempts"],
            time=row["time"],
            trace_id=row["trace_id"],
            number=row["number"],
        )
        for row in (await connection.execute(query)).mappings()
    ]


async def incarnations(connection: AsyncConnection, keep: int) -> list[str]:
    """Subscriptions that have more than `keep` ends."""
    c = deliveries.c
    query = sa.select(c.incarnation).group_by(c.incarnation).having(sa.func.count() > keep)
    return list((await connection.execute(query)).scalars())


async def trim(uow: UnitOfWork, incarnation: str, *, keep: int) -> int:
    """Remove all but the newest `keep` ends of a subscription; how many went."""
    c = deliveries.c
    surplus = (
        sa.select(c.number)
        .where(c.incarnation == incarnation)
        .order_by(c.number.desc())
        .offset(keep)
    )
    numbers = list((await uow.execute(surplus.limit(_TRIM_CHUNK))).scalars())
    if numbers:
        await uow.execute(sa.delete(deliveries).where(c.number.in_(numbers)))
    return len(numbers)
