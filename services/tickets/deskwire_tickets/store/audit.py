"""The audit of tickets: one entry per change, never changed again."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common.db import UnitOfWork
from deskwire_tickets.domain import Action, Actor, AuditEntry, Change, TicketState
from deskwire_tickets.store.tables import audit


async def add(uow: UnitOfWork, change: Change) -> None:
    """Record a change of a ticket that is new or locked."""
    await uow.execute(sa.insert(audit), _row(change))


async def page(
    connection: AsyncConnection, tenant: str, ticket_id: str, *, after: int, limit: int
) -> list[AuditEntry]:
    """Return up to `limit` entries with a version above `after`, oldest first."""
    query = (
        sa.select(audit)
        .where(audit.c.tenant_id == tenant, audit.c.ticket_id == ticket_id, audit.c.version > after)
        .order_by(audit.c.version)
        .limit(limit)
    )
    return [_entry(row) for row in (await connection.execute(query)).mappings()]


def _row(change: Change) -> dict[str, Any]:
    entry = change.entry
    return {
        "ticket_id": change.after.ticket_id,
        "version": entry.version,
        "tenant_id": change.after.tenant,
        "action": entry.action.value,
        "actor_role": entry.by.role,
        "actor_subject": entry.by.subject,
        "actor_name": entry.by.name,
        "origin": entry.by.origin,
        "time": entry.time,
        "from_state": None if entry.from_state is None else int(entry.from_state),
        "to_state": int(entry.to_state),
        "note": entry.note,
    }


def _entry(row: sa.RowMapping) -> AuditEntry:
    return AuditEntry(
        version=row["version"],
        action=Action(row["action"]),
        by=Actor(row["actor_role"], row["actor_subject"], row["actor_name"], row["origin"]),
        time=row["time"],
        from_state=None if row["from_state"] is None else TicketState(row["from_state"]),
        to_state=TicketState(row["to_state"]),
        note=row["note"],
    )
