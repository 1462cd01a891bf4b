"""Customers, their identities, and the versions that other systems gave them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_chat.domain.customers import Customer, Identity
from deskwire_chat.store.tables import customer_identities, customers, source_versions


async def _with_identities(c: AsyncConnection, rows: Sequence[Row[Any]]) -> list[Customer]:
    identities: dict[str, list[Identity]] = defaultdict(list)
    if rows:
        columns = customer_identities.c
        for row in await c.execute(
            select(columns.customer_id, columns.namespace, columns.value).where(
                columns.customer_id.in_([row.customer_id for row in rows])
            )
        ):
            identities[row.customer_id].append(Identity(row.namespace, row.value))
    return [
        Customer(
            customer_id=row.customer_id,
            tenant=row.tenant_id,
            display_name=row.display_name,
            email=row.email,
            mobile=row.mobile,
            mobile_raw=row.mobile_raw,
            identities=tuple(sorted(identities[row.customer_id])),
            version=row.version,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )
        for row in rows
    ]


async def get(c: AsyncConnection, tenant: str, customer_id: str) -> Customer | None:
    """Return a customer of a tenant."""
    return (await get_many(c, tenant, [customer_id])).get(customer_id)


async def lock(c: AsyncConnection, tenant: str, customer_id: str) -> Customer | None:
    """Return a customer of a tenant, locked until the transaction ends."""
    return (await lock_many(c, tenant, [customer_id])).get(customer_id)


async def get_many(
    c: AsyncConnection, tenant: str, customer_ids: Sequence[str]
) -> dict[str, Customer]:
    """Return the tenant's customers that exist, by id."""
    return await _by_id(c, _of(tenant, customer_ids))


async def lock_many(
    c: AsyncConnection, tenant: str, customer_ids: Sequence[str]
) -> dict[str, Customer]:
    """Return customers by id, locked until the transaction ends; they are locked in the order of ids."""
    return await _by_id(c, _of(tenant, customer_ids).with_for_update())


def _of(tenant: str, customer_ids: Sequence[str]) -> Select[Any]:
    return (
        select(customers)
        .where(customers.c.tenant_id == tenant, customers.c.customer_id.in_(customer_ids))
        .order_by(customers.c.customer_id)
    )


async def _by_id(c: AsyncConnection, statement: Select[Any]) -> dict[str, Customer]:
    rows = (await c.execute(statement)).all()
    return {item.customer_id: item for item in await _with_identities(c, rows)}


async def page(c: AsyncConnection, tenant: str, *, after: str | None, limit: int) -> list[Customer]:
    """Return customers in the order of ids (UUIDv7: oldest first), from after `after`."""
    statement = select(customers).where(customers.c.tenant_id == tenant)
    if after is not None:
        statement = statement.where(customers.c.customer_id > after)
    rows = (await c.execute(statement.order_by(customers.c.customer_id).limit(limit))).all()
    return await _with_identities(c, rows)


async def owners(
    c: AsyncConnection, tenant: str, identities: Iterable[Identity]
) -> dict[Identity, str]:
    """Return the ids of the customers who have some identities, by identity."""
    columns = customer_identities.c
    rows = await c.execute(
        select(columns.namespace, columns.value, columns.customer_id).where(
            columns.tenant_id == tenant,
            tuple_(columns.namespace, columns.value).in_(
                [(item.namespace, item.value) for item in identities]
            ),
        )
    )
    return {Identity(row.namespace, row.value): row.customer_id for row in rows}


async def add(c: AsyncConnection, items: Sequence[Customer]) -> None:
    """Insert new customers with their identities; raises when an identity is taken."""
    await c.execute(
        insert(customers),
        [
            {
                "customer_id": item.customer_id,
                "tenant_id": item.tenant,
                "display_name": item.display_name,
                "email": item.email,
                "mobile": item.mobile,
                "mobile_raw": item.mobile_raw,
                "version": item.version,
                "created_at": item.created_at,
                "updated_at": item.updated_at,
            }
            for item in items
        ],
    )
    rows = [_identity_row(item, identity) for item in items for identity in item.identities]
    if rows:
        await c.execute(insert(customer_identities), rows)


def _identity_row(customer: Customer, identity: Identity) -> dict[str, Any]:
    return {
        "tenant_id": customer.tenant,
        "namespace": identity.namespace,
        "value": identity.value,
        "customer_id": customer.customer_id,
    }


async def save(c: AsyncConnection, before: Customer, after: Customer) -> None:
    """Write a customer whom this transaction has locked, and their new identities."""
    await c.execute(
        update(customers)
        .where(customers.c.customer_id == after.customer_id)
        .values(
            display_name=after.display_name,
            email=after.email,
            mobile=after.mobile,
            mobile_raw=after.mobile_raw,
            version=after.version,
            updated_at=after.updated_at,
        )
    )
    new = [_identity_row(after, item) for item in after.identities if item not in before.identities]
    if new:
        await c.execute(insert(customer_identities), new)


async def source_version(
    c: AsyncConnection, customer_id: str, system: str, writer: str
) -> int | None:
    """Return the last version that a system's writer gave the customer."""
    found = await c.scalar(
        select(source_versions.c.version).where(*_given(customer_id, system, writer))
    )
    return None if found is None else int(found)


async def save_source_version(
    c: AsyncConnection, customer_id: str, system: str, writer: str, version: int, *, known: bool
) -> None:
    """Write a version of a system's writer; `known`: the row exists already."""
    values = {"version": f"{version:020d}"}
    if known:
        await c.execute(
            update(source_versions).where(*_given(customer_id, system, writer)).values(values)
        )
    else:
        await c.execute(
            insert(source_versions).values(
                customer_id=customer_id, system=system, writer=writer, **values
            )
        )


def _given(customer_id: str, system: str, writer: str) -> tuple[ColumnElement[bool], ...]:
    c = source_versions.c
    return c.customer_id == customer_id, c.system == system, c.writer == writer
