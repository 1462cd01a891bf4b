"""Registered adapters."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common import db
from deskwire_common.db import UnitOfWork
from deskwire_events.domain import Adapter, AdapterState
from deskwire_events.store.tables import adapters


def _one(tenant: str, adapter_id: str) -> sa.Select[Any]:
    return sa.select(adapters).where(
        adapters.c.tenant_id == tenant, adapters.c.adapter_id == adapter_id
    )


async def lock(uow: UnitOfWork, tenant: str, adapter_id: str) -> Adapter | None:
    """Read an adapter, also a removed one, and keep its row locked until the transaction ends."""
    query = _one(tenant, adapter_id).with_for_update()
    row = (await uow.execute(query)).mappings().one_or_none()
    return None if row is None else _adapter(row)


async def get(connection: AsyncConnection, tenant: str, adapter_id: str) -> Adapter | None:
    """Read an adapter, also a removed one."""
    row = (await connection.execute(_one(tenant, adapter_id))).mappings().one_or_none()
    return None if row is None else _adapter(row)


async def add(uow: UnitOfWork, adapter: Adapter) -> bool:
    """Write an adapter whose id was free; False when somebody else took it meanwhile."""
    return await db.insert_if_absent(uow, adapters, _row(adapter))


async def count(connection: AsyncConnection, tenant: str) -> int:
    """How many registered adapters a tenant has."""
    query = sa.select(sa.func.count()).where(
        adapters.c.tenant_id == tenant, adapters.c.removed == 0
    )
    return int((await connection.execute(query)).scalar_one())


async def save(uow: UnitOfWork, adapter: Adapter) -> None:
    """Write an adapter that is new or locked."""
    await db.upsert(uow, adapters, _row(adapter), ["tenant_id", "adapter_id"])


async def page(
    connection: AsyncConnection, tenant: str, *, after: str, limit: int
) -> list[Adapter]:
    """Up to `limit` registered adapters with an id above `after`, by id."""
    query = (
        sa.select(adapters)
        .where(
            adapters.c.tenant_id == tenant,
            adapters.c.removed == 0,
            adapters.c.adapter_id > after,
        )
        .order_by(adapters.c.adapter_id)
        .limit(limit)
    )
    return [_adapter(row) for row in (await connection.execute(query)).mappings()]


async def every(connection: AsyncConnection) -> list[Adapter]:
    """The registered adapters of all tenants: for the workers, not for requests."""
    query = sa.select(adapters).where(adapters.c.removed == 0)
    return [_adapter(row) for row in (await connection.execute(query)).mappings()]


async def set_trouble(uow: UnitOfWork, adapter: Adapter, last_error: str) -> None:
    """Say that pushes to this registration fail at the moment."""
    c = adapters.c
    statement = (
        sa.update(adapters)
        .where(
            c.tenant_id == adapter.tenant,
            c.adapter_id == adapter.adapter_id,
            c.registration == adapter.registration,
            c.state != int(AdapterState.STOPPED),
        )
        .values(state=int(AdapterState.RETRYING), last_error=last_error)
    )
    await uow.execute(statement)


def _row(adapter: Adapter) -> dict[str, Any]:
    return {
        "tenant_id": adapter.tenant,
        "adapter_id": adapter.adapter_id,
        "system_id": adapter.system_id,
        "target": adapter.target,
        "event_types": json.dumps(adapter.event_types),
        "accepts": json.dumps(adapter.accepts),
        "credentials": json.dumps(dict(adapter.credentials)),
        "state": int(adapter.state),
        "last_error": adapter.last_error,
        "delivered_count": adapter.delivered_count,
        "dead_letter_count": adapter.dead_letter_count,
        "rejected_in_row": adapter.rejected_in_row,
        "create_time": adapter.created_at,
        "version": adapter.version,
        "registration": adapter.registration,
        "removed": int(adapter.removed),
    }


def _adapter(row: sa.RowMapping) -> Adapter:
    return Adapter(
        tenant=row["tenant_id"],
        adapter_id=row["adapter_id"],
        system_id=row["system_id"],
        target=row["target"],
        event_types=tuple(json.loads(row["event_types"])),
        accepts=tuple(json.loads(row["accepts"])),
        credentials=json.loads(row["credentials"]),
        state=AdapterState(row["state"]),
        last_error=row["last_error"],
        delivered_count=row["delivered_count"],
        dead_letter_count=row["dead_letter_count"],
        rejected_in_row=row["rejected_in_row"],
        created_at=row["create_time"],
        version=row["version"],
        registration=row["registration"],
        removed=bool(row["removed"]),
    )
