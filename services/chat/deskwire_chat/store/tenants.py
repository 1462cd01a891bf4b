"""Tenants that were created."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, Select, insert, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_chat.domain.access import Tenant
from deskwire_chat.store.tables import tenants


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(
        tenant_id=row.tenant_id,
        display_name=row.display_name,
        disabled=row.disabled,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


async def get(c: AsyncConnection, tenant_id: str) -> Tenant | None:
    """Return a tenant; None when it was never created."""
    return await _one(c, select(tenants).where(tenants.c.tenant_id == tenant_id))


async def lock(c: AsyncConnection, tenant_id: str) -> Tenant | None:
    """Return a tenant, locked until the transaction ends."""
    statement = select(tenants).where(tenants.c.tenant_id == tenant_id)
    return await _one(c, statement.with_for_update())


async def _one(c: AsyncConnection, statement: Select[Any]) -> Tenant | None:
    row = (await c.execute(statement)).first()
    return None if row is None else _tenant(row)


async def page(c: AsyncConnection, *, after: str | None, limit: int) -> list[Tenant]:
    """Return tenants in the order of ids, from after `after`."""
    statement = select(tenants)
    if after is not None:
        statement = statement.where(tenants.c.tenant_id > after)
    rows = await c.execute(statement.order_by(tenants.c.tenant_id).limit(limit))
    return [_tenant(row) for row in rows]


async def disabled(c: AsyncConnection) -> list[str]:
    """Return the ids of all disabled tenants."""
    rows = await c.execute(select(tenants.c.tenant_id).where(tenants.c.disabled == true()))
    return [row.tenant_id for row in rows]


async def add(c: AsyncConnection, tenant: Tenant) -> None:
    """Insert a new tenant; raises when it exists."""
    await c.execute(
        insert(tenants).values(
            tenant_id=tenant.tenant_id,
            display_name=tenant.display_name,
            disabled=tenant.disabled,
            version=tenant.version,
            created_at=tenant.created_at,
            updated_at=tenant.updated_at,
        )
    )


async def save(c: AsyncConnection, tenant: Tenant) -> None:
    """Write what can change of a tenant; this transaction has locked the row."""
    await c.execute(
        update(tenants)
        .where(tenants.c.tenant_id == tenant.tenant_id)
        .values(disabled=tenant.disabled, version=tenant.version, updated_at=tenant.updated_at)
    )
