"""Subscriptions, and how they get on."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common import db
from deskwire_common.db import UnitOfWork
from deskwire_events.domain import Progress, SinkKind, State, Subscription, Wanted
from deskwire_events.store.tables import (
    dead,
    deliveries,
    parked,
    places,
    progress,
    subscriptions,
)


def _one(tenant: str, subscription_id: str) -> sa.Select[Any]:
    return sa.select(subscriptions).where(
        subscriptions.c.tenant_id == tenant, subscriptions.c.subscription_id == subscription_id
    )


async def lock(uow: UnitOfWork, tenant: str, subscription_id: str) -> Subscription | None:
    """Read a subscription, also a removed one, and keep its row locked until the transaction ends."""
    query = _one(tenant, subscription_id).with_for_update()
    row = (await uow.execute(query)).mappings().one_or_none()
    return None if row is None else _subscription(row)


async def get(
    connection: AsyncConnection, tenant: str, subscription_id: str
) -> Subscription | None:
    """Read a subscription, also a removed one."""
    row = (await connection.execute(_one(tenant, subscription_id))).mappings().one_or_none()
    return None if row is None else _subscription(row)


async def add(uow: UnitOfWork, subscription: Subscription) -> bool:
    """Write a subscription whose id was free; False when somebody else took it meanwhile."""
    return await db.insert_if_absent(uow, subscriptions, _row(subscription))


async def save(uow: UnitOfWork, subscription: Subscription) -> None:
    """Write a subscription that is locked."""
    row = _row(subscription)
    own = [subscriptions.c[name] == row.pop(name) for name in ("tenant_id", "subscription_id")]
    await uow.execute(sa.update(subscriptions).where(*own).values(row))


async def remove(uow: UnitOfWork, subscription: Subscription) -> None:
    """Delete a locked subscription with everything that belongs to it."""
    mine = subscription.incarnation
    await uow.execute(sa.delete(subscriptions).where(subscriptions.c.incarnation == mine))
    await forget(uow, mine)


async def forget(uow: UnitOfWork, incarnation: str) -> None:
    """Delete everything that belonged to a subscription."""
    for table in (progress, places, parked, dead, deliveries):
        await uow.execute(sa.delete(table).where(table.c.incarnation == incarnation))


async def left_over(connection: AsyncConnection) -> set[str]:
    """Incarnations without a subscription that have rows: their worker saved once more after it was deleted."""
    found: set[str] = set()
    for table in (progress, places):
        mine = table.c.incarnation
        query = (
            sa.select(mine)
            .distinct()
            .select_from(table.outerjoin(subscriptions, subscriptions.c.incarnation == mine))
            .where(subscriptions.c.incarnation.is_(None))
        )
        found.update((await connection.execute(query)).scalars())
    return found


async def count(connection: AsyncConnection, tenant: str, kind: SinkKind | None = None) -> int:
    """How many subscriptions a tenant has, of one kind or of all."""
    c = subscriptions.c
    query = sa.select(sa.func.count()).where(c.tenant_id == tenant, c.removed == 0)
    if kind is not None:
        query = query.where(c.kind == kind.value)
    return int((await connection.execute(query)).scalar_one())


async def page(
    connection: AsyncConnection,
    tenant: str,
    *,
    after: str,
    limit: int,
    kind: SinkKind | None = None,
) -> list[Subscription]:
    """Up to `limit` subscriptions with an id above `after`, by id."""
    c = subscriptions.c
    query = sa.select(subscriptions).where(
        c.tenant_id == tenant, c.removed == 0, c.subscription_id > after
    )
    if kind is not None:
        query = query.where(c.kind == kind.value)
    query = query.order_by(c.subscription_id).limit(limit)
    return [_subscription(row) for row in (await connection.execute(query)).mappings()]


async def revisions(
    connection: AsyncConnection, slots: Collection[int]
) -> dict[str, tuple[int, SinkKind]]:
    """Revision and kind of each running subscription of these slots, of all tenants: for workers, not for requests."""
    c = subscriptions.c
    query = sa.select(c.incarnation, c.revision, c.kind).where(
        c.slot.in_(list(slots)), c.removed == 0, c.state == int(State.ACTIVE)
    )
    return {
        row.incarnation: (row.revision, SinkKind(row.kind))
        for row in await connection.execute(query)
    }


async def load(connection: AsyncConnection, incarnations: Sequence[str]) -> list[Subscription]:
    """Subscriptions of all tenants, by incarnation: for workers, not for requests."""
    query = sa.select(subscriptions).where(subscriptions.c.incarnation.in_(incarnations))
    return [_subscription(row) for row in (await connection.execute(query)).mappings()]


async def progress_of(
    connection: AsyncConnection, incarnations: Sequence[str]
) -> dict[str, Progress]:
    """How subscriptions get on; those that have done nothing yet are left out."""
    query = sa.select(progress).where(progress.c.incarnation.in_(incarnations))
    return {
        row["incarnation"]: Progress(
            delivered=row["delivered_count"],
            dead=row["dead_letter_count"],
            rejected_in_row=row["rejected_in_row"],
            failing=bool(row["failing"]),
            last_error=row["last_error"],
        )
        for row in (await connection.execute(query)).mappings()
    }


async def save_progress(uow: UnitOfWork, rows: Mapping[str, Progress]) -> None:
    """Write how subscriptions get on."""
    values = [
        {
            "incarnation": incarnation,
            "delivered_count": each.delivered,
            "dead_letter_count": each.dead,
            "rejected_in_row": each.rejected_in_row,
            "failing": int(each.failing),
            "last_error": each.last_error,
        }
        for incarnation, each in sorted(rows.items())
    ]
    await db.upsert(uow, progress, values, ["incarnation"])


async def forgive(uow: UnitOfWork, incarnation: str) -> None:
    """Begin to count dead letters in a row anew."""
    own = progress.c.incarnation == incarnation
    await uow.execute(sa.update(progress).where(own).values(rejected_in_row=0, failing=0))


def _row(each: Subscription) -> dict[str, Any]:
    return {
        "tenant_id": each.tenant,
        "subscription_id": each.subscription_id,
        "incarnation": each.incarnation,
        "slot": each.slot,
        "kind": each.kind.value,
        "system_id": each.system_id,
        "filter": json.dumps(
            {
                "event_types": each.wanted.event_types,
                "subjects": each.wanted.subjects,
                "attributes": dict(each.wanted.attributes),
                "cel": each.wanted.cel,
            }
        ),
        "sink": json.dumps(dict(each.sink)),
        "secrets": json.dumps(dict(each.secrets)),
        "state": int(each.state),
        "reason": each.reason,
        "role": each.role,
        "create_time": each.created_at,
        "version": each.version,
        "revision": each.revision,
        "sequence": each.sequence,
        "removed": int(each.removed),
        "seek": ""
        if each.seek is None
        else json.dumps([[*place, offset] for place, offset in each.seek.items()]),
    }


def _subscription(row: sa.RowMapping) -> Subscription:
    wanted = json.loads(row["filter"])
    return Subscription(
        tenant=row["tenant_id"],
        subscription_id=row["subscription_id"],
        incarnation=row["incarnation"],
        kind=SinkKind(row["kind"]),
        system_id=row["system_id"],
        wanted=Wanted(
            event_types=tuple(wanted["event_types"]),
            subjects=tuple(wanted["subjects"]),
            attributes=wanted["attributes"],
            cel=wanted["cel"],
        ),
        sink=json.loads(row["sink"]),
        secrets=json.loads(row["secrets"]),
        state=State(row["state"]),
        reason=row["reason"],
        role=row["role"],
        created_at=row["create_time"],
        version=row["version"],
        revision=row["revision"],
        sequence=row["sequence"],
        removed=bool(row["removed"]),
        seek={(topic, number): offset for topic, number, offset in json.loads(row["seek"])}
        if row["seek"]
        else None,
    )
