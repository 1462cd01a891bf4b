"""Tables and queries of the hub: the only SQL of this service."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common import db
from deskwire_common.clock import from_micros, to_micros
from deskwire_common.db import UnitOfWork
from deskwire_common.idempotency import idempotency_table
from deskwire_common.outbox import outbox_table, published_table
from deskwire_common.ownership import members_table, slots_table
from deskwire_events.domain import Adapter, AdapterState, Delivery, Outcome

METADATA = db.metadata()
_TRIM_CHUNK: Final = 5_000

adapters = sa.Table(
    "adapters",
    METADATA,
    sa.Column("tenant_id", db.Name, primary_key=True),
    sa.Column("adapter_id", db.Name, primary_key=True),
    sa.Column("system_id", db.Name, nullable=False),
    sa.Column("target", db.LongText, nullable=False),
    sa.Column("event_types", db.LongText, nullable=False),
    sa.Column("accepts", db.LongText, nullable=False),
    sa.Column("credentials", db.LongText, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("last_error", db.LongText, nullable=False),
    sa.Column("delivered_count", sa.BigInteger, nullable=False),
    sa.Column("dead_letter_count", sa.BigInteger, nullable=False),
    sa.Column("rejected_in_row", sa.BigInteger, nullable=False),
    sa.Column("create_time", db.Micros, nullable=False),
    sa.Column("version", db.UInt32, nullable=False),
    sa.Column("registration", db.UInt32, nullable=False),
    sa.Column("removed", sa.SmallInteger, nullable=False),
)

deliveries = sa.Table(
    "deliveries",
    METADATA,
    sa.Column("number", db.AutoId, primary_key=True, autoincrement=True),
    sa.Column("tenant_id", db.Name, nullable=False),
    sa.Column("adapter_id", db.Name, nullable=False),
    sa.Column("event_id", db.Id, nullable=False),
    sa.Column("event_type", db.Name, nullable=False),
    sa.Column("outcome", sa.SmallInteger, nullable=False),
    sa.Column("dead", sa.SmallInteger, nullable=False),
    sa.Column("detail", db.LongText, nullable=False),
    sa.Column("attempts", db.UInt32, nullable=False),
    sa.Column("time", db.Micros, nullable=False),
    sa.Column("trace_id", db.Name, nullable=False),
    sa.UniqueConstraint("tenant_id", "adapter_id", "event_id"),
    sa.Index(None, "tenant_id", "adapter_id", "number"),
    sa.Index(None, "tenant_id", "adapter_id", "dead", "number"),
    sqlite_autoincrement=True,
)

external_subjects = sa.Table(
    "external_subjects",
    METADATA,
    sa.Column("tenant_id", db.Name, primary_key=True),
    sa.Column("subject", db.binary_text(128), primary_key=True),
    sa.Column("last", db.UInt32, nullable=False),
)

outbox_table(METADATA)
published_table(METADATA)
members_table(METADATA)
slots_table(METADATA)
idempotency_table(METADATA)


# -- external events ----------------------------------------------------------------------------


async def draw_sequences(uow: UnitOfWork, tenant: str, counts: Mapping[str, int]) -> dict[str, int]:
    """For each subject the last sequence before its next `counts[subject]` ones, now taken.

    The subjects' rows stay locked until the transaction ends; everybody locks them in one order.
    """
    c = external_subjects.c
    before: dict[str, int] = {}
    for subject in sorted(counts):
        own = (c.tenant_id == tenant, c.subject == subject)
        step = sa.update(external_subjects).where(*own).values(last=c.last + counts[subject])
        if (await uow.execute(step)).rowcount == 0:
            row = {"tenant_id": tenant, "subject": subject, "last": 0}
            await db.insert_if_absent(uow, external_subjects, row)
            await uow.execute(step)
        last = (await uow.execute(sa.select(c.last).where(*own))).scalar_one()
        before[subject] = int(last) - counts[subject]
    return before


# -- adapters -----------------------------------------------------------------------------------


def _one(tenant: str, adapter_id: str) -> sa.Select[Any]:
    return sa.select(adapters).where(
        adapters.c.tenant_id == tenant, adapters.c.adapter_id == adapter_id
    )


async def lock_adapter(uow: UnitOfWork, tenant: str, adapter_id: str) -> Adapter | None:
    """Read an adapter, also a removed one, and keep its row locked until the transaction ends."""
    query = _one(tenant, adapter_id).with_for_update()
    row = (await uow.execute(query)).mappings().one_or_none()
    return None if row is None else _adapter(row)


async def read_adapter(connection: AsyncConnection, tenant: str, adapter_id: str) -> Adapter | None:
    """Read an adapter, also a removed one."""
    row = (await connection.execute(_one(tenant, adapter_id))).mappings().one_or_none()
    return None if row is None else _adapter(row)


async def add_adapter(uow: UnitOfWork, adapter: Adapter) -> bool:
    """Write an adapter whose id was free; False when somebody else took it meanwhile."""
    return await db.insert_if_absent(uow, adapters, _row(adapter))


async def count_adapters(connection: AsyncConnection, tenant: str) -> int:
    """How many registered adapters a tenant has."""
    query = sa.select(sa.func.count()).where(
        adapters.c.tenant_id == tenant, adapters.c.removed == 0
    )
    return int((await connection.execute(query)).scalar_one())


async def save_adapter(uow: UnitOfWork, adapter: Adapter) -> None:
    """Write an adapter that is new or locked."""
    await db.upsert(uow, adapters, _row(adapter), ["tenant_id", "adapter_id"])


async def list_adapters(
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


async def all_adapters(connection: AsyncConnection) -> list[Adapter]:
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


# -- deliveries ---------------------------------------------------------------------------------


async def dead_letters_of(
    uow: UnitOfWork, tenant: str, adapter_id: str, event_ids: Sequence[str]
) -> set[str]:
    """Those of the events that are dead letters already."""
    c = deliveries.c
    query = sa.select(c.event_id).where(
        c.tenant_id == tenant, c.adapter_id == adapter_id, c.event_id.in_(event_ids), c.dead == 1
    )
    return set((await uow.execute(query)).scalars())


async def add_deliveries(
    uow: UnitOfWork, tenant: str, adapter_id: str, ends: Sequence[Delivery]
) -> None:
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
            "time": to_micros(end.time),
            "trace_id": end.trace_id,
        }
        for end in last.values()
    ]
    await uow.execute(sa.insert(deliveries), rows)


async def list_deliveries(
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


async def trim_deliveries(uow: UnitOfWork, tenant: str, adapter_id: str, *, keep: int) -> int:
    """Remove all but the newest `keep` ends of an adapter, dead letters excepted; how many went."""
    c = deliveries.c
    own = (c.tenant_id == tenant, c.adapter_id == adapter_id, c.dead == 0)
    surplus = sa.select(c.number).where(*own).order_by(c.number.desc()).offset(keep)
    numbers = list((await uow.execute(surplus.limit(_TRIM_CHUNK))).scalars())
    if numbers:
        await uow.execute(sa.delete(deliveries).where(c.number.in_(numbers)))
    return len(numbers)


# -- rows ---------------------------------------------------------------------------------------


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
        "create_time": to_micros(adapter.create_time),
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
        create_time=from_micros(row["create_time"]),
        version=row["version"],
        registration=row["registration"],
        removed=bool(row["removed"]),
    )


def _delivery(row: sa.RowMapping) -> Delivery:
    return Delivery(
        event_id=row["event_id"],
        event_type=row["event_type"],
        outcome=Outcome(row["outcome"]),
        detail=row["detail"],
        attempts=row["attempts"],
        time=from_micros(row["time"]),
        trace_id=row["trace_id"],
        number=row["number"],
    )
