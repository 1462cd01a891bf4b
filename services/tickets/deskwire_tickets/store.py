"""Tables and queries of tickets: the only SQL of this service, each limited to one tenant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common import db
from deskwire_common.clock import from_micros, to_micros
from deskwire_common.db import UnitOfWork
from deskwire_common.idempotency import idempotency_table
from deskwire_common.outbox import outbox_table, published_table
from deskwire_tickets.domain import (
    Action,
    AuditEntry,
    Change,
    Ticket,
    TicketPriority,
    TicketState,
    Who,
)

METADATA = db.metadata()

tickets = sa.Table(
    "tickets",
    METADATA,
    sa.Column("ticket_id", db.Id, primary_key=True),
    sa.Column("tenant_id", db.Name, nullable=False),
    sa.Column("number", db.UInt32, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("subject", db.LongText, nullable=False),
    sa.Column("description", db.LongText, nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("conversation_id", db.Id, nullable=False),
    sa.Column("customer_id", db.Id, nullable=False),
    sa.Column("assignee_id", db.Name, nullable=False),
    sa.Column("resolution", db.LongText, nullable=False),
    sa.Column("reopen_count", db.UInt32, nullable=False),
    sa.Column("version", db.UInt32, nullable=False),
    sa.Column("create_time", db.Micros, nullable=False),
    sa.Column("update_time", db.Micros, nullable=False),
    sa.Column("solve_time", db.Micros, nullable=True),
    sa.UniqueConstraint("tenant_id", "number"),
    sa.Index(None, "tenant_id", "conversation_id", "number"),
    sa.Index(None, "tenant_id", "customer_id", "number"),
    sa.Index(None, "tenant_id", "assignee_id", "number"),
    sa.Index(None, "tenant_id", "state", "number"),
)

audit = sa.Table(
    "ticket_audit",
    METADATA,
    sa.Column("ticket_id", db.Id, primary_key=True),
    sa.Column("version", db.UInt32, primary_key=True, autoincrement=False),
    sa.Column("tenant_id", db.Name, nullable=False),
    sa.Column("action", db.Name, nullable=False),
    sa.Column("actor_role", sa.SmallInteger, nullable=False),
    sa.Column("actor_subject", db.Name, nullable=False),
    sa.Column("actor_name", db.LongText, nullable=False),
    sa.Column("origin", db.Name, nullable=False),
    sa.Column("time", db.Micros, nullable=False),
    sa.Column("from_state", sa.SmallInteger, nullable=True),
    sa.Column("to_state", sa.SmallInteger, nullable=False),
    sa.Column("note", db.LongText, nullable=False),
)

numbers = sa.Table(
    "ticket_numbers",
    METADATA,
    sa.Column("tenant_id", db.Name, primary_key=True),
    sa.Column("last", db.UInt32, nullable=False),
)

outbox_table(METADATA)
published_table(METADATA)
idempotency_table(METADATA)


@dataclass(frozen=True, slots=True)
class TicketFilter:
    """Which tickets a list wants; empty fields select all."""

    states: Sequence[TicketState] = ()
    conversation_id: str = ""
    customer_id: str = ""
    assignee_id: str = ""


async def next_number(uow: UnitOfWork, tenant: str) -> int:
    """Draw the tenant's next ticket number; locked until the transaction ends, so no holes."""
    step = sa.update(numbers).where(numbers.c.tenant_id == tenant).values(last=numbers.c.last + 1)
    if (await uow.execute(step)).rowcount == 0:
        await db.insert_if_absent(uow, numbers, {"tenant_id": tenant, "last": 0})
        await uow.execute(step)
    query = sa.select(numbers.c.last).where(numbers.c.tenant_id == tenant)
    return int((await uow.execute(query)).scalar_one())


async def lock_ticket(uow: UnitOfWork, tenant: str, ticket_id: str) -> Ticket | None:
    """Read a ticket and keep its row locked until the end of the transaction."""
    query = _select_ticket(tenant, ticket_id).with_for_update()
    row = (await uow.execute(query)).mappings().one_or_none()
    return None if row is None else _ticket(row)


async def read_ticket(connection: AsyncConnection, tenant: str, ticket_id: str) -> Ticket | None:
    """Read a ticket as of the last commit."""
    row = (await connection.execute(_select_ticket(tenant, ticket_id))).mappings().one_or_none()
    return None if row is None else _ticket(row)


async def save_change(uow: UnitOfWork, change: Change) -> None:
    """Write the ticket's new state and its audit entry. The ticket must be new or locked."""
    row = _row(change.after)
    if change.before is None:
        await uow.execute(sa.insert(tickets), row)
    else:
        update = (
            sa.update(tickets)
            .where(
                tickets.c.ticket_id == change.after.ticket_id,
                tickets.c.tenant_id == change.after.tenant,
                tickets.c.version == change.before.version,
            )
            .values(row)
        )
        if (await uow.execute(update)).rowcount != 1:
            raise AssertionError("the ticket was not locked")
    await uow.execute(sa.insert(audit), _audit_row(change))


async def list_tickets(
    connection: AsyncConnection,
    tenant: str,
    wanted: TicketFilter,
    *,
    below: int | None,
    limit: int,
) -> list[Ticket]:
    """Up to `limit` tickets with a number below `below` (None: from the newest), newest first."""
    query = sa.select(tickets).where(tickets.c.tenant_id == tenant)
    if wanted.states:
        query = query.where(tickets.c.state.in_([int(state) for state in wanted.states]))
    if wanted.conversation_id:
        query = query.where(tickets.c.conversation_id == wanted.conversation_id)
    if wanted.customer_id:
        query = query.where(tickets.c.customer_id == wanted.customer_id)
    if wanted.assignee_id:
        query = query.where(tickets.c.assignee_id == wanted.assignee_id)
    if below is not None:
        query = query.where(tickets.c.number < below)
    query = query.order_by(tickets.c.number.desc()).limit(limit)
    return [_ticket(row) for row in (await connection.execute(query)).mappings()]


async def list_audit(
    connection: AsyncConnection, tenant: str, ticket_id: str, *, after: int, limit: int
) -> list[AuditEntry]:
    """Up to `limit` entries with a version above `after`, oldest first."""
    query = (
        sa.select(audit)
        .where(audit.c.tenant_id == tenant, audit.c.ticket_id == ticket_id, audit.c.version > after)
        .order_by(audit.c.version)
        .limit(limit)
    )
    return [_entry(row) for row in (await connection.execute(query)).mappings()]


def _select_ticket(tenant: str, ticket_id: str) -> sa.Select[Any]:
    return sa.select(tickets).where(tickets.c.ticket_id == ticket_id, tickets.c.tenant_id == tenant)


def _row(ticket: Ticket) -> dict[str, Any]:
    return {
        "ticket_id": ticket.ticket_id,
        "tenant_id": ticket.tenant,
        "number": ticket.number,
        "state": int(ticket.state),
        "subject": ticket.subject,
        "description": ticket.description,
        "priority": int(ticket.priority),
        "conversation_id": ticket.conversation_id,
        "customer_id": ticket.customer_id,
        "assignee_id": ticket.assignee_id,
        "resolution": ticket.resolution,
        "reopen_count": ticket.reopen_count,
        "version": ticket.version,
        "create_time": to_micros(ticket.create_time),
        "update_time": to_micros(ticket.update_time),
        "solve_time": None if ticket.solve_time is None else to_micros(ticket.solve_time),
    }


def _ticket(row: sa.RowMapping) -> Ticket:
    return Ticket(
        tenant=row["tenant_id"],
        ticket_id=row["ticket_id"],
        number=row["number"],
        state=TicketState(row["state"]),
        subject=row["subject"],
        description=row["description"],
        priority=TicketPriority(row["priority"]),
        conversation_id=row["conversation_id"],
        customer_id=row["customer_id"],
        assignee_id=row["assignee_id"],
        resolution=row["resolution"],
        reopen_count=row["reopen_count"],
        version=row["version"],
        create_time=from_micros(row["create_time"]),
        update_time=from_micros(row["update_time"]),
        solve_time=None if row["solve_time"] is None else from_micros(row["solve_time"]),
    )


def _audit_row(change: Change) -> dict[str, Any]:
    entry = change.entry
    return {
        "ticket_id": change.after.ticket_id,
        "version": entry.version,
        "tenant_id": change.after.tenant,
        "action": entry.action.value,
        "actor_role": entry.who.role,
        "actor_subject": entry.who.subject,
        "actor_name": entry.who.name,
        "origin": entry.who.origin,
        "time": to_micros(entry.time),
        "from_state": None if entry.from_state is None else int(entry.from_state),
        "to_state": int(entry.to_state),
        "note": entry.note,
    }


def _entry(row: sa.RowMapping) -> AuditEntry:
    return AuditEntry(
        version=row["version"],
        action=Action(row["action"]),
        who=Who(row["actor_role"], row["actor_subject"], row["actor_name"], row["origin"]),
        time=from_micros(row["time"]),
        from_state=None if row["from_state"] is None else TicketState(row["from_state"]),
        to_state=TicketState(row["to_state"]),
        note=row["note"],
    )
