"""Tickets, and their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common import db
from deskwire_common.db import UnitOfWork
from deskwire_tickets.domain import Change, Ticket, TicketPriority, TicketState
from deskwire_tickets.store.tables import numbers, tickets


@dataclass(frozen=True, slots=True)
class TicketFilter:
    """Which tickets a list contains; empty fields select all."""

    states: Sequence[TicketState] = ()
    conversation_id: str = ""
    customer_id: str = ""
    assignee_id: str = ""


async def get(connection: AsyncConnection, tenant: str, ticket_id: str) -> Ticket | None:
    """Return a ticket as of the last commit."""
    row = (await connection.execute(_select(tenant, ticket_id))).mappings().one_or_none()
    return None if row is None else _ticket(row)


async def lock(uow: UnitOfWork, tenant: str, ticket_id: str) -> Ticket | None:
    """Return a ticket, locked until the transaction ends."""
    query = _select(tenant, ticket_id).with_for_update()
    row = (await uow.execute(query)).mappings().one_or_none()
    return None if row is None else _ticket(row)


async def page(
    connection: AsyncConnection,
    tenant: str,
    wanted: TicketFilter,
    *,
    below: int | None,
    limit: int,
) -> list[Ticket]:
    """Return up to `limit` tickets with a number below `below` (None: from the newest), newest first."""
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


async def next_number(uow: UnitOfWork, tenant: str) -> int:
    """Return the tenant's next ticket number, locked until the transaction ends, so that there are no holes."""
    step = sa.update(numbers).where(numbers.c.tenant_id == tenant).values(last=numbers.c.last + 1)
    if (await uow.execute(step)).rowcount == 0:
        await db.insert_if_absent(uow, numbers, {"tenant_id": tenant, "last": 0})
        await uow.execute(step)
    query = sa.select(numbers.c.last).where(numbers.c.tenant_id == tenant)
    return int((await uow.execute(query)).scalar_one())


async def add(uow: UnitOfWork, ticket: Ticket) -> None:
    """Insert a new ticket."""
    await uow.execute(sa.insert(tickets), _row(ticket))


async def save(uow: UnitOfWork, change: Change) -> None:
    """Write a changed ticket, whose row this transaction has locked."""
    if change.before is None:
        raise AssertionError("a new ticket is added")
    update = (
        sa.update(tickets)
        .where(
            tickets.c.ticket_id == change.after.ticket_id,
            tickets.c.tenant_id == change.after.tenant,
            tickets.c.version == change.before.version,
        )
        .values(_row(change.after))
    )
    if (await uow.execute(update)).rowcount != 1:
        raise AssertionError("the ticket was not locked")


def _select(tenant: str, ticket_id: str) -> sa.Select[Any]:
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
        "create_time": ticket.create_time,
        "update_time": ticket.update_time,
        "solve_time": ticket.solve_time,
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
        create_time=row["create_time"],
        update_time=row["update_time"],
        solve_time=row["solve_time"],
    )
