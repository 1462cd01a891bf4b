"""Tickets and their changes as messages of the contract, and the events of changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from deskwire.common.v1 import actor_pb2
from deskwire.common.v1.json_value_pb2 import JsonValue
from deskwire.events.v1 import event_pb2, ticket_events_pb2
from deskwire.tickets.v1 import ticket_pb2
from deskwire_common.clock import Clock, to_timestamp
from deskwire_common.events import DomainEvent, new_event
from deskwire_common.exact import json_value
from deskwire_common.ids import Ids
from deskwire_tickets.domain import Action, Actor, AuditEntry, Change, Ticket

# Fields that the envelope has too: `version` is the event's sequence, `update_time` its occurred_at.
_OF_ENVELOPE = frozenset({"version", "update_time"})


def ticket_message(ticket: Ticket) -> ticket_pb2.Ticket:
    """Return a ticket as callers see it."""
    return ticket_pb2.Ticket(
        ticket_id=ticket.ticket_id,
        number=ticket.number,
        state=int(ticket.state),  # type: ignore[arg-type]
        subject=ticket.subject,
        description=ticket.description,
        priority=int(ticket.priority),  # type: ignore[arg-type]
        conversation_id=ticket.conversation_id,
        customer_id=ticket.customer_id,
        assignee_id=ticket.assignee_id,
        resolution=ticket.resolution,
        reopen_count=ticket.reopen_count,
        version=ticket.version,
        create_time=to_timestamp(ticket.create_time),
        update_time=to_timestamp(ticket.update_time),
        solve_time=None if ticket.solve_time is None else to_timestamp(ticket.solve_time),
    )


def actor_message(by: Actor) -> actor_pb2.Actor:
    """Return who caused a change, as callers see it."""
    return actor_pb2.Actor(
        role=by.role,  # type: ignore[arg-type]
        subject=by.subject,
        display_name=by.name,
    )


def audit_message(entry: AuditEntry) -> ticket_pb2.AuditEntry:
    """Return an entry of the audit as callers see it."""
    return ticket_pb2.AuditEntry(
        version=entry.version,
        action=entry.action.value,
        actor=actor_message(entry.by),
        from_state=0 if entry.from_state is None else int(entry.from_state),  # type: ignore[arg-type]
        to_state=int(entry.to_state),  # type: ignore[arg-type]
        time=to_timestamp(entry.time),
        note=entry.note,
    )


def changed_fields(
    before: ticket_pb2.Ticket, after: ticket_pb2.Ticket
) -> dict[str, event_pb2.FieldChange]:
    """Return every field that differs, from and to in JSON form; null for an unset time."""
    changed: dict[str, event_pb2.FieldChange] = {}
    for field in after.DESCRIPTOR.fields:
        if field.name in _OF_ENVELOPE:
            continue
        old, new = _value(before, field.name), _value(after, field.name)
        if old != new:
            changed[field.name] = event_pb2.FieldChange(**{"from": old, "to": new})
    return changed


def ticket_event(change: Change, *, ids: Ids, clock: Clock) -> DomainEvent:
    """Return the event of a change, for the outbox, in the trace of the current call."""
    ticket = change.after
    data = _DATA[change.entry.action](ticket=ticket_message(ticket))
    if change.before is not None:
        changes = changed_fields(ticket_message(change.before), data.ticket)
        for name, value in changes.items():
            data.changed[name].CopyFrom(value)
    return new_event(
        data,
        subject=ticket.ticket_id,
        sequence=ticket.version,
        ids=ids,
        clock=clock,
        tenant_id=ticket.tenant,
        actor=actor_message(change.entry.by),
        origin=change.entry.by.origin,
        correlation_id=ticket.conversation_id,
        occurred_at=ticket.update_time,
    )


_DATA: Mapping[Action, Any] = {
    Action.CREATED: ticket_events_pb2.TicketCreated,
    Action.SOLVED: ticket_events_pb2.TicketSolved,
    Action.REOPENED: ticket_events_pb2.TicketReopened,
}


def _value(message: ticket_pb2.Ticket, name: str) -> JsonValue:
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.has_presence and not message.HasField(name):  # type: ignore[arg-type]
        return json_value(None)
    value = getattr(message, name)
    if isinstance(value, Timestamp):
        return json_value(value.ToJsonString())
    if field.enum_type is not None:
        return json_value(field.enum_type.values_by_number[value].name)
    return json_value(value)
