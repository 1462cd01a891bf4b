"""Changes in chat as events. The topic files define topic, key and form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.message import Message

from deskwire.events.v1 import access_events_pb2, chat_events_pb2, event_pb2
from deskwire_chat import views
from deskwire_chat.domain.access import IntegrationKey, Tenant
from deskwire_chat.domain.actors import HOME_ORIGIN, Actor
from deskwire_chat.domain.agents import Agent
from deskwire_chat.domain.changes import Change
from deskwire_chat.domain.conversations import Conversation, TransferCause
from deskwire_chat.domain.customers import Customer
from deskwire_chat.domain.history import Provenance
from deskwire_common.events import DomainEvent, event_type_of
from deskwire_common.exact import json_value


@dataclass(frozen=True, slots=True)
class Occasion:
    """Who makes a change, when (microseconds since 1970 UTC), and in which trace; `event_id` is a new id."""

    event_id: str
    now: int
    by: Actor
    traceparent: str


def trace_id_of(traceparent: str, fallback: str) -> str:
    """Return the trace of a traceparent; without one, the 32 hex digits of the UUID `fallback`.

    So an untraced change keeps one trace id however often its event is sent.
    """
    return traceparent[3:35] if traceparent else fallback.replace("-", "")


def changed(changes: Mapping[str, Change]) -> dict[str, event_pb2.FieldChange]:
    """Return changes in the form of the contract."""
    result = {}
    for name, change in changes.items():
        field = event_pb2.FieldChange(to=json_value(change.after))
        getattr(field, "from").CopyFrom(json_value(change.before))  # `from` is a keyword
        result[name] = field
    return result


def _event(
    on: Occasion,
    data: Message,
    *,
    subject: str,
    sequence: int,
    correlation_id: str = "",
    origin: str = "",
    tenant: str = "",
) -> DomainEvent:
    return DomainEvent(
        event_id=on.event_id,
        event_type=event_type_of(data),
        tenant_id=tenant or on.by.tenant,
        subject=subject,
        sequence=sequence,
        occurred_at=on.now,
        trace_id=trace_id_of(on.traceparent, on.event_id),
        traceparent=on.traceparent,
        actor=views.messages.actor(on.by),
        origin=origin or on.by.origin,
        correlation_id=correlation_id,
        data=data,
    )


def _of_conversation(on: Occasion, item: Conversation, data: Message) -> DomainEvent:
    return _event(
        on,
        data,
        subject=item.conversation_id,
        sequence=item.version,
        correlation_id=item.customer_id,
    )


def conversation_opened(on: Occasion, item: Conversation, customer: Customer) -> DomainEvent:
    """A visitor's first message opened a conversation."""
    data = chat_events_pb2.ConversationOpened(
        conversation=views.messages.conversation(item), customer=views.messages.customer(customer)
    )
    return _of_conversation(on, item, data)


def conversation_assigned(
    on: Occasion, item: Conversation, changes: Mapping[str, Change]
) -> DomainEvent:
    """Routing gave a conversation to an agent."""
    data = chat_events_pb2.ConversationAssigned(
        conversation=views.messages.conversation(item), changed=changed(changes)
    )
    return _of_conversation(on, item, data)


def conversation_transferred(
    on: Occasion, item: Conversation, changes: Mapping[str, Change], *, cause: TransferCause
) -> DomainEvent:
    """A conversation went to another agent, or back to the queue."""
    data = chat_events_pb2.ConversationTransferred(
        conversation=views.messages.conversation(item),
        changed=changed(changes),
        cause=chat_events_pb2.TransferCause.ValueType(int(cause)),
    )
    return _of_conversation(on, item, data)


def conversation_closed(
    on: Occasion, item: Conversation, changes: Mapping[str, Change]
) -> DomainEvent:
    """A conversation ended."""
    data = chat_events_pb2.ConversationClosed(
        conversation=views.messages.conversation(item), changed=changed(changes)
    )
    return _of_conversation(on, item, data)


def conversation_imported(
    on: Occasion, item: Conversation, customer: Customer, came_from: Provenance, first_seq: int
) -> DomainEvent:
    """A conversation of another system was stored, or more of it."""
    data = chat_events_pb2.ConversationImported(
        conversation=views.messages.conversation(item),
        customer=views.messages.customer(customer),
        source=came_from.source,
        external_id=came_from.external_id,
        first_seq=first_seq,
    )
    return _of_conversation(on, item, data)


def customer_created(on: Occasion, item: Customer, *, correlation_id: str = "") -> DomainEvent:
    """A customer was created."""
    data = chat_events_pb2.CustomerCreated(customer=views.messages.customer(item))
    return _event(
        on,
        data,
        subject=item.customer_id,
        sequence=item.version,
        correlation_id=correlation_id,
    )


def customer_updated(on: Occasion, item: Customer, changes: Mapping[str, Change]) -> DomainEvent:
    """A customer really changed; the fields that the CRM asked for come first in data."""
    data = chat_events_pb2.CustomerUpdated(
        user_id=item.user_id,
        new_mobile=item.mobile,
        timestamp=item.updated_at // 1_000_000,
        customer=views.messages.customer(item),
        changed=changed(changes),
    )
    return _event(on, data, subject=item.customer_id, sequence=item.version)


def _of_agent(on: Occasion, item: Agent, data: Message, *, origin: str = "") -> DomainEvent:
    return _event(
        on,
        data,
        subject=f"{item.tenant}/{item.agent_id}",
        sequence=item.version,
        origin=origin,
    )


def agent_status_changed(
    on: Occasion, item: Agent, changes: Mapping[str, Change], *, connected: bool
) -> DomainEvent:
    """An agent became available or away, or changed capacity or name."""
    data = chat_events_pb2.AgentStatusChanged(
        agent=views.messages.agent(item, connected=connected), changed=changed(changes)
    )
    return _of_agent(on, item, data, origin=on.by.origin or HOME_ORIGIN)


def agent_created(on: Occasion, item: Agent, *, connected: bool) -> DomainEvent:
    """An operator created an agent."""
    data = chat_events_pb2.AgentCreated(agent=views.messages.agent(item, connected=connected))
    return _of_agent(on, item, data)


def agent_switched(
    on: Occasion, item: Agent, changes: Mapping[str, Change], *, connected: bool
) -> DomainEvent:
    """An agent was disabled or enabled."""
    kind = chat_events_pb2.AgentDisabled if item.disabled else chat_events_pb2.AgentEnabled
    data = kind(agent=views.messages.agent(item, connected=connected), changed=changed(changes))
    return _of_agent(on, item, data)


def _of_tenant(on: Occasion, item: Tenant, data: Message) -> DomainEvent:
    """Return an event that belongs to the tenant, not to the operator's own."""
    return _event(on, data, subject=item.tenant_id, sequence=item.version, tenant=item.tenant_id)


def tenant_created(on: Occasion, item: Tenant) -> DomainEvent:
    """A tenant was created."""
    return _of_tenant(on, item, access_events_pb2.TenantCreated(tenant=views.messages.tenant(item)))


def tenant_switched(on: Occasion, item: Tenant, changes: Mapping[str, Change]) -> DomainEvent:
    """A tenant was disabled or enabled."""
    kind = access_events_pb2.TenantDisabled if item.disabled else access_events_pb2.TenantEnabled
    return _of_tenant(on, item, kind(tenant=views.messages.tenant(item), changed=changed(changes)))


def integration_key_created(on: Occasion, item: IntegrationKey) -> DomainEvent:
    """An outside system got a key."""
    data = access_events_pb2.IntegrationKeyCreated(key=views.messages.integration_key(item))
    return _event(on, data, subject=item.key_id, sequence=item.version)


def integration_key_revoked(
    on: Occasion, item: IntegrationKey, changes: Mapping[str, Change]
) -> DomainEvent:
    """A key was revoked: it gives no more tokens."""
    data = access_events_pb2.IntegrationKeyRevoked(
        key=views.messages.integration_key(item), changed=changed(changes)
    )
    return _event(on, data, subject=item.key_id, sequence=item.version)
