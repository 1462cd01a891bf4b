"""Changes of chat's things as events. Topic, key and form are the topic files'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format, struct_pb2
from google.protobuf.message import Message

from deskwire.events.v1 import access_events_pb2, chat_events_pb2, event_pb2
from deskwire_chat import views
from deskwire_chat.domain import (
    HOME_ORIGIN,
    Agent,
    Change,
    Conversation,
    Customer,
    IntegrationKey,
    Tenant,
    Writer,
)
from deskwire_common.events import DomainEvent


def trace_id_of(traceparent: str, fallback: str) -> str:
    """Return the trace of a traceparent; without one, the 32 hex digits of the UUID `fallback`.

    Untraced changes so have a trace id that stays the same however often their event is sent.
    """
    return traceparent[3:35] if traceparent else fallback.replace("-", "")


def _value(thing: Any) -> struct_pb2.Value:
    return json_format.ParseDict(thing, struct_pb2.Value())


def changed(changes: Mapping[str, Change]) -> dict[str, event_pb2.FieldChange]:
    """Return changes as the contract has them."""
    result = {}
    for name, change in changes.items():
        field = event_pb2.FieldChange(to=_value(change.after))
        getattr(field, "from").CopyFrom(_value(change.before))  # `from` is a keyword
        result[name] = field
    return result


def _event(
    event_type: str,
    *,
    event_id: str,
    subject: str,
    sequence: int,
    now: int,
    by: Writer,
    traceparent: str,
    data: Message,
    correlation_id: str = "",
    origin: str = "",
    tenant: str = "",
) -> DomainEvent:
    return DomainEvent(
        event_id=event_id,
        event_type=event_type,
        tenant_id=tenant or by.tenant,
        subject=subject,
        sequence=sequence,
        occurred_at=now,
        trace_id=trace_id_of(traceparent, event_id),
        traceparent=traceparent,
        actor=views.actor(by),
        origin=origin or by.origin,
        correlation_id=correlation_id,
        data=data,
    )


def conversation_opened(
    item: Conversation, customer: Customer, *, event_id: str, by: Writer, traceparent: str
) -> DomainEvent:
    """A visitor's first message opened a conversation."""
    return _event(
        "conversation_opened",
        event_id=event_id,
        subject=item.conversation_id,
        sequence=item.version,
        now=item.created_at,
        by=by,
        traceparent=traceparent,
        correlation_id=item.customer_id,
        data=chat_events_pb2.ConversationOpened(
            conversation=views.conversation(item), customer=views.customer(customer)
        ),
    )


def conversation_assigned(
    item: Conversation, changes: Mapping[str, Change], *, event_id: str, by: Writer
) -> DomainEvent:
    """Routing gave a conversation to an agent; the trace is that of the opening."""
    return _event(
        "conversation_assigned",
        event_id=event_id,
        subject=item.conversation_id,
        sequence=item.version,
        now=item.assigned_at,
        by=by,
        traceparent=item.traceparent,
        correlation_id=item.customer_id,
        data=chat_events_pb2.ConversationAssigned(
            conversation=views.conversation(item), changed=changed(changes)
        ),
    )


def conversation_transferred(
    item: Conversation,
    changes: Mapping[str, Change],
    *,
    event_id: str,
    now: int,
    by: Writer,
    traceparent: str,
) -> DomainEvent:
    """A conversation went to another agent, or back to the queue."""
    return _event(
        "conversation_transferred",
        event_id=event_id,
        subject=item.conversation_id,
        sequence=item.version,
        now=now,
        by=by,
        traceparent=traceparent,
        correlation_id=item.customer_id,
        data=chat_events_pb2.ConversationTransferred(
            conversation=views.conversation(item), changed=changed(changes)
        ),
    )


def conversation_closed(
    item: Conversation,
    changes: Mapping[str, Change],
    *,
    event_id: str,
    now: int,
    by: Writer,
    traceparent: str,
) -> DomainEvent:
    """A conversation ended."""
    return _event(
        "conversation_closed",
        event_id=event_id,
        subject=item.conversation_id,
        sequence=item.version,
        now=now,
        by=by,
        traceparent=traceparent,
        correlation_id=item.customer_id,
        data=chat_events_pb2.ConversationClosed(
            conversation=views.conversation(item), changed=changed(changes)
        ),
    )


def customer_created(
    item: Customer, *, event_id: str, by: Writer, traceparent: str, correlation_id: str = ""
) -> DomainEvent:
    """Deskwire met a customer."""
    return _event(
        "customer_created",
        event_id=event_id,
        subject=item.customer_id,
        sequence=item.version,
        now=item.created_at,
        by=by,
        traceparent=traceparent,
        correlation_id=correlation_id,
        data=chat_events_pb2.CustomerCreated(customer=views.customer(item)),
    )


def customer_updated(
    item: Customer, changes: Mapping[str, Change], *, event_id: str, by: Writer, traceparent: str
) -> DomainEvent:
    """Something about a customer really changed; data begins with what the CRM asked for."""
    return _event(
        "customer_updated",
        event_id=event_id,
        subject=item.customer_id,
        sequence=item.version,
        now=item.updated_at,
        by=by,
        traceparent=traceparent,
        data=chat_events_pb2.CustomerUpdated(
            user_id=item.user_id,
            new_mobile=item.mobile,
            timestamp=item.updated_at // 1_000_000,
            customer=views.customer(item),
            changed=changed(changes),
        ),
    )


def agent_status_changed(
    item: Agent,
    changes: Mapping[str, Change],
    *,
    event_id: str,
    now: int,
    by: Writer,
    traceparent: str,
    connected: bool,
) -> DomainEvent:
    """An agent became available or away, or changed capacity or name."""
    return _event(
        "agent_status_changed",
        event_id=event_id,
        subject=f"{item.tenant}/{item.agent_id}",
        sequence=item.version,
        now=now,
        by=by,
        traceparent=traceparent,
        origin=by.origin or HOME_ORIGIN,
        data=chat_events_pb2.AgentStatusChanged(
            agent=views.agent(item, connected=connected), changed=changed(changes)
        ),
    )


def agent_created(
    item: Agent, *, event_id: str, now: int, by: Writer, traceparent: str, connected: bool
) -> DomainEvent:
    """An operator made an agent known."""
    return _event(
        "agent_created",
        event_id=event_id,
        subject=f"{item.tenant}/{item.agent_id}",
        sequence=item.version,
        now=now,
        by=by,
        traceparent=traceparent,
        data=chat_events_pb2.AgentCreated(agent=views.agent(item, connected=connected)),
    )


def agent_switched(
    item: Agent,
    changes: Mapping[str, Change],
    *,
    event_id: str,
    now: int,
    by: Writer,
    traceparent: str,
    connected: bool,
) -> DomainEvent:
    """An agent was disabled or enabled."""
    kind = chat_events_pb2.AgentDisabled if item.disabled else chat_events_pb2.AgentEnabled
    return _event(
        "agent_disabled" if item.disabled else "agent_enabled",
        event_id=event_id,
        subject=f"{item.tenant}/{item.agent_id}",
        sequence=item.version,
        now=now,
        by=by,
        traceparent=traceparent,
        data=kind(agent=views.agent(item, connected=connected), changed=changed(changes)),
    )


def tenant_created(item: Tenant, *, event_id: str, by: Writer, traceparent: str) -> DomainEvent:
    """A tenant was made known. The event is that tenant's, not the operator's."""
    return _event(
        "tenant_created",
        event_id=event_id,
        subject=item.tenant_id,
        sequence=item.version,
        now=item.updated_at,
        by=by,
        traceparent=traceparent,
        tenant=item.tenant_id,
        data=access_events_pb2.TenantCreated(tenant=views.tenant(item)),
    )


def tenant_switched(
    item: Tenant, changes: Mapping[str, Change], *, event_id: str, by: Writer, traceparent: str
) -> DomainEvent:
    """A tenant was disabled or enabled."""
    kind = access_events_pb2.TenantDisabled if item.disabled else access_events_pb2.TenantEnabled
    return _event(
        "tenant_disabled" if item.disabled else "tenant_enabled",
        event_id=event_id,
        subject=item.tenant_id,
        sequence=item.version,
        now=item.updated_at,
        by=by,
        traceparent=traceparent,
        tenant=item.tenant_id,
        data=kind(tenant=views.tenant(item), changed=changed(changes)),
    )


def integration_key_created(
    item: IntegrationKey, *, event_id: str, by: Writer, traceparent: str
) -> DomainEvent:
    """A system outside was given a key."""
    return _event(
        "integration_key_created",
        event_id=event_id,
        subject=item.key_id,
        sequence=item.version,
        now=item.updated_at,
        by=by,
        traceparent=traceparent,
        data=access_events_pb2.IntegrationKeyCreated(key=views.integration_key(item)),
    )


def integration_key_revoked(
    item: IntegrationKey,
    changes: Mapping[str, Change],
    *,
    event_id: str,
    by: Writer,
    traceparent: str,
) -> DomainEvent:
    """A key gives no more tokens."""
    return _event(
        "integration_key_revoked",
        event_id=event_id,
        subject=item.key_id,
        sequence=item.version,
        now=item.updated_at,
        by=by,
        traceparent=traceparent,
        data=access_events_pb2.IntegrationKeyRevoked(
            key=views.integration_key(item), changed=changed(changes)
        ),
    )
