"""The rules of tickets: OPEN → SOLVED → OPEN …, one version per change.

Pure: time and ids come in as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum

from deskwire.common.v1 import error_reason_pb2
from deskwire_common.errors import FailedPrecondition, NotFound, VersionMismatch


class TicketState(IntEnum):
    """The state of a ticket; the numbers are those of the contract."""

    OPEN = 1
    SOLVED = 2


class TicketPriority(IntEnum):
    """How urgent a ticket is; the numbers are those of the contract."""

    LOW = 1
    NORMAL = 2
    HIGH = 3
    URGENT = 4


class Action(StrEnum):
    """What can happen to a ticket; the values are the types of the events."""

    CREATED = "ticket_created"
    SOLVED = "ticket_solved"
    REOPENED = "ticket_reopened"


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket as of `version`. Times are microseconds since 1970 UTC; solve_time is None while OPEN."""

    tenant: str
    ticket_id: str
    number: int
    state: TicketState
    subject: str
    description: str
    priority: TicketPriority
    conversation_id: str
    customer_id: str
    assignee_id: str
    resolution: str
    reopen_count: int
    version: int
    create_time: int
    update_time: int
    solve_time: int | None


@dataclass(frozen=True, slots=True)
class Actor:
    """Who causes a change, from their token; `role` is the contract's number."""

    role: int
    subject: str
    name: str
    origin: str


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change of a ticket; `from_state` is None for the first."""

    version: int
    action: Action
    by: Actor
    time: int
    from_state: TicketState | None
    to_state: TicketState
    note: str


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a ticket: before (None: there was none), after, and the entry that records it."""

    before: Ticket | None
    after: Ticket
    entry: AuditEntry


def create(
    *,
    tenant: str,
    ticket_id: str,
    number: int,
    subject: str,
    description: str,
    priority: TicketPriority,
    conversation_id: str,
    customer_id: str,
    by: Actor,
    now: int,
) -> Change:
    """Return the change that creates an OPEN ticket; whoever creates it is its assignee."""
    ticket = Ticket(
        tenant=tenant,
        ticket_id=ticket_id,
        number=number,
        state=TicketState.OPEN,
        subject=subject,
        description=description,
        priority=priority,
        conversation_id=conversation_id,
        customer_id=customer_id,
        assignee_id=by.subject,
        resolution="",
        reopen_count=0,
        version=1,
        create_time=now,
        update_time=now,
        solve_time=None,
    )
    return Change(None, ticket, AuditEntry(1, Action.CREATED, by, now, None, ticket.state, ""))


def solve(ticket: Ticket, *, resolution: str, expected_version: int, by: Actor, now: int) -> Change:
    """Return the change OPEN → SOLVED. Raises VersionMismatch, or FailedPrecondition with INVALID_STATE."""
    _check(ticket, expected_version, TicketState.OPEN)
    now = max(now, ticket.update_time)
    after = replace(
        ticket,
        state=TicketState.SOLVED,
        resolution=resolution,
        version=ticket.version + 1,
        update_time=now,
        solve_time=now,
    )
    return _change(ticket, after, Action.SOLVED, by, resolution)


def reopen(ticket: Ticket, *, reason: str, expected_version: int, by: Actor, now: int) -> Change:
    """Return the change SOLVED → OPEN. Raises VersionMismatch, or FailedPrecondition with INVALID_STATE."""
    _check(ticket, expected_version, TicketState.SOLVED)
    after = replace(
        ticket,
        state=TicketState.OPEN,
        resolution="",
        reopen_count=ticket.reopen_count + 1,
        version=ticket.version + 1,
        # Times must not run backwards when a clock was set back.
        update_time=max(now, ticket.update_time),
        solve_time=None,
    )
    return _change(ticket, after, Action.REOPENED, by, reason)


def not_found(ticket_id: str) -> NotFound:
    """Return the error for a ticket that doesn't exist, or is another tenant's."""
    return NotFound(f"no ticket {ticket_id}", reason=error_reason_pb2.ERROR_REASON_TICKET_NOT_FOUND)


def _check(ticket: Ticket, expected_version: int, state: TicketState) -> None:
    if expected_version not in {0, ticket.version}:
        raise VersionMismatch(ticket.version, expected_version)
    if ticket.state is not state:
        raise FailedPrecondition(
            f"the ticket is {ticket.state.name}",
            reason=error_reason_pb2.ERROR_REASON_INVALID_STATE,
            metadata={"state": ticket.state.name},
        )


def _change(before: Ticket, after: Ticket, action: Action, by: Actor, note: str) -> Change:
    entry = AuditEntry(
        after.version, action, by, after.update_time, before.state, after.state, note
    )
    return Change(before, after, entry)
