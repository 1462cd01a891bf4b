"""Which chat processes live."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_chat.store.tables import shards


@dataclass(frozen=True, slots=True)
class Shard:
    """One row of `shards`: a chat process, until `lease_until` (microseconds) unless it prolongs that."""

    name: str
    instance: str
    address: str
    lease_until: int


async def every(c: AsyncConnection) -> list[Shard]:
    """Return all, the dead ones too, by name."""
    rows = await c.execute(select(shards).order_by(shards.c.name))
    return [Shard(row.name, row.instance, row.address, row.lease_until) for row in rows]


async def register(c: AsyncConnection, shard: Shard) -> None:
    """Take the place of this name, whoever had it."""
    values = {
        "instance": shard.instance,
        "address": shard.address,
        "lease_until": shard.lease_until,
    }
    changed = await c.execute(update(shards).where(shards.c.name == shard.name).values(values))
    if not changed.rowcount:
        await c.execute(insert(shards).values(name=shard.name, **values))


async def renew(c: AsyncConnection, shard: Shard, *, now: int) -> bool:
    """Prolong a lease, or take up one that nobody prolongs; False when another life has the name."""
    row = shards.c
    changed = await c.execute(
        update(shards)
        .where(
            row.name == shard.name,
            (row.instance == shard.instance) | (row.lease_until <= now),
        )
        .values(instance=shard.instance, address=shard.address, lease_until=shard.lease_until)
    )
    if changed.rowcount:
        return True
    found = (await c.execute(select(row.instance).where(row.name == shard.name))).first()
    if found is None:
        await c.execute(
            insert(shards).values(
                name=shard.name,
                instance=shard.instance,
                address=shard.address,
                lease_until=shard.lease_until,
            )
        )
    return found is None


async def forget(c: AsyncConnection, shard: Shard) -> None:
    """Remove a process that has ended, unless it prolonged its lease or its next life came meanwhile."""
    row = shards.c
    await c.execute(
        delete(shards).where(
            row.name == shard.name,
            row.instance == shard.instance,
            row.lease_until <= shard.lease_until,
        )
    )
