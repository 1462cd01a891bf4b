"""Integration keys; of a secret only the hash is stored."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_chat.domain.access import IntegrationKey
from deskwire_chat.store.tables import integration_keys as keys


def _key(row: Row[Any]) -> IntegrationKey:
    return IntegrationKey(
        key_id=row.key_id,
        tenant=row.tenant_id,
        system_id=row.system_id,
        display_name=row.display_name,
        secret_hash=bytes(row.secret_hash),
        revoked=row.revoked,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


async def get(c: AsyncConnection, key_id: str) -> IntegrationKey | None:
    """Return a key of any tenant, for a caller whose secret tells the tenant."""
    row = (await c.execute(select(keys).where(keys.c.key_id == key_id))).first()
    return None if row is None else _key(row)


async def lock(c: AsyncConnection, tenant: str, key_id: str) -> IntegrationKey | None:
    """Return a key of a tenant, locked until the transaction ends."""
    statement = select(keys).where(keys.c.key_id == key_id, keys.c.tenant_id == tenant)
    row = (await c.execute(statement.with_for_update())).first()
    return None if row is None else _key(row)


async def page(
    c: AsyncConnection, tenant: str, *, after: str | None, limit: int
) -> list[IntegrationKey]:
    """Return keys in the order of ids, which is the order of age, from after `after`."""
    statement = select(keys).where(keys.c.tenant_id == tenant)
    if after is not None:
        statement = statement.where(keys.c.key_id > after)
    rows = await c.execute(statement.order_by(keys.c.key_id).limit(limit))
    return [_key(row) for row in rows]


async def add(c: AsyncConnection, key: IntegrationKey) -> None:
    """Insert a new key."""
    await c.execute(
        insert(keys).values(
            key_id=key.key_id,
            tenant_id=key.tenant,
            system_id=key.system_id,
            display_name=key.display_name,
            secret_hash=key.secret_hash,
            revoked=key.revoked,
            version=key.version,
            created_at=key.created_at,
            updated_at=key.updated_at,
        )
    )


async def save(c: AsyncConnection, key: IntegrationKey) -> None:
    """Write what can change of a key; this transaction has locked the row."""
    await c.execute(
        update(keys)
        .where(keys.c.key_id == key.key_id)
        .values(revoked=key.revoked, version=key.version, updated_at=key.updated_at)
    )
