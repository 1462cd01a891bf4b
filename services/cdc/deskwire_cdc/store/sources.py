"""Sources, live and deleted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_cdc.domain.sources import CustomerRule, Source, State
from deskwire_cdc.store.tables import refused, sources, staged, versions
from deskwire_common import db
from deskwire_common.db import UnitOfWork
from deskwire_common.errors import Aborted


async def next_version(uow: UnitOfWork, tenant: str, source_id: str) -> int:
    """Return the source's next version; its row stays locked until the end of the transaction."""
    c = versions.c
    step = (
        sa.update(versions)
        .where(c.tenant_id == tenant, c.source_id == source_id)
        .values(version=c.version + 1)
    )
    if (await uow.execute(step)).rowcount == 0:
        row = {"tenant_id": tenant, "source_id": source_id, "version": 0}
        await db.insert_if_absent(uow, versions, row)
        await uow.execute(step)
    query = sa.select(c.version).where(c.tenant_id == tenant, c.source_id == source_id)
    return int((await uow.execute(query)).scalar_one())


async def add(uow: UnitOfWork, source: Source) -> bool:
    """Write a new source; False when its id is taken."""
    values = asdict(source)
    rule = values.pop("customer_rule")
    row = {
        **values,
        "active": 1,
        "kind": source.kind,
        "state": source.state.value,
        "tables": json.dumps(source.tables),
        "customer_rule": "" if rule is None else json.dumps(rule),
        "snapshot": int(source.snapshot),
    }
    return await db.insert_if_absent(uow, sources, row)


async def get(connection: AsyncConnection, tenant: str, source_id: str) -> Source | None:
    """Return a live source as of the last commit."""
    query = sa.select(sources).where(
        sources.c.tenant_id == tenant, sources.c.source_id == source_id, sources.c.active == 1
    )
    row = (await connection.execute(query)).mappings().one_or_none()
    return None if row is None else _source(row)


async def page(connection: AsyncConnection, tenant: str, *, after: str, limit: int) -> list[Source]:
    """Return live sources by id, those after `after`."""
    c = sources.c
    query = (
        sa.select(sources)
        .where(c.tenant_id == tenant, c.active == 1, c.source_id > after)
        .order_by(c.source_id)
        .limit(limit)
    )
    return [_source(row) for row in (await connection.execute(query)).mappings()]


async def captured_tables(connection: AsyncConnection, tenant: str) -> list[int]:
    """Return how many tables each live source of a tenant has."""
    c = sources.c
    query = sa.select(c.tables).where(c.tenant_id == tenant, c.active == 1)
    return [len(json.loads(text)) for text in (await connection.execute(query)).scalars()]


async def every(connection: AsyncConnection) -> tuple[list[Source], list[Source]]:
    """Return the live and the deleted ones of all tenants: for followers, never for a caller."""
    live: list[Source] = []
    deleted: list[Source] = []
    for row in (await connection.execute(sa.select(sources))).mappings():
        (live if row["active"] else deleted).append(_source(row))
    return live, deleted


async def deactivate(uow: UnitOfWork, source: Source) -> bool:
    """Delete a live source, and fence its follower; False when it was deleted meanwhile."""
    c = sources.c
    statement = (
        sa.update(sources)
        .where(c.incarnation == source.incarnation, c.active == 1)
        .values(active=None, term=c.term + 1)
    )
    return (await uow.execute(statement)).rowcount == 1


async def forget(uow: UnitOfWork, source: Source) -> None:
    """Remove the row of a deleted source, when nothing of capture is left in the external database."""
    for table in (staged, refused):
        await uow.execute(sa.delete(table).where(table.c.incarnation == source.incarnation))
    await uow.execute(sa.delete(sources).where(sources.c.incarnation == source.incarnation))


async def take_over(uow: UnitOfWork, source: Source) -> Source | None:
    """Make the caller the source's one follower; return the source as it is now, None when it was deleted."""
    c = sources.c
    mine = (c.incarnation == source.incarnation, c.active == 1)
    if (await uow.execute(sa.update(sources).where(*mine).values(term=c.term + 1))).rowcount == 0:
        return None
    row = (await uow.execute(sa.select(sources).where(*mine))).mappings().one()
    return _source(row)


async def save(uow: UnitOfWork, source: Source, **values: Any) -> None:
    """Write columns of a source. Raises Aborted when it has another owner, or was deleted."""
    c = sources.c
    statement = (
        sa.update(sources)
        .where(c.incarnation == source.incarnation, c.term == source.term, c.active == 1)
        .values(values)
    )
    if (await uow.execute(statement)).rowcount != 1:
        raise Aborted(f"the source {source.aggregate_id} has another owner, or was deleted")


def _source(row: Mapping[Any, Any]) -> Source:
    values = {name: value for name, value in row.items() if name != "active"}
    rule = values.pop("customer_rule")
    values["tables"] = tuple(json.loads(values["tables"]))
    values["state"] = State(values["state"])
    values["snapshot"] = bool(values["snapshot"])
    return Source(**values, customer_rule=CustomerRule(**json.loads(rule)) if rule else None)
