"""Adapters and deliveries as messages, and the events that say what happened to them."""

from __future__ import annotations

from deskwire.events.v1 import adapter_pb2, hub_events_pb2
from deskwire_common.clock import Clock, to_timestamp
from deskwire_common.events import DomainEvent, new_event, system_actor
from deskwire_common.ids import Ids
from deskwire_events.domain import Adapter, AdapterState, Delivery, Outcome

_STATES = {
    AdapterState.ACTIVE: adapter_pb2.ADAPTER_STATE_ACTIVE,
    AdapterState.RETRYING: adapter_pb2.ADAPTER_STATE_RETRYING,
    AdapterState.STOPPED: adapter_pb2.ADAPTER_STATE_STOPPED,
}
_OUTCOMES = {
    Outcome.DELIVERED: adapter_pb2.PUSH_OUTCOME_DELIVERED,
    Outcome.DUPLICATE: adapter_pb2.PUSH_OUTCOME_DUPLICATE,
    Outcome.SKIPPED: adapter_pb2.PUSH_OUTCOME_SKIPPED,
    Outcome.RETRY: adapter_pb2.PUSH_OUTCOME_RETRY,
    Outcome.AUTH_EXPIRED: adapter_pb2.PUSH_OUTCOME_AUTH_EXPIRED,
    Outcome.REJECTED: adapter_pb2.PUSH_OUTCOME_REJECTED,
}


def adapter_message(adapter: Adapter) -> adapter_pb2.Adapter:
    """The adapter as the contract says it, without credentials."""
    return adapter_pb2.Adapter(
        adapter_id=adapter.adapter_id,
        system_id=adapter.system_id,
        target=adapter.target,
        event_types=adapter.event_types,
        state=_STATES[adapter.state],
        last_error=adapter.last_error,
        delivered_count=adapter.delivered_count,
        dead_letter_count=adapter.dead_letter_count,
        create_time=to_timestamp(adapter.created_at),
        version=adapter.version,
    )


def delivery_message(adapter_id: str, delivery: Delivery) -> adapter_pb2.DeliveryRecord:
    """The end of an event's way as the contract says it."""
    return adapter_pb2.DeliveryRecord(
        adapter_id=adapter_id,
        event_id=delivery.event_id,
        event_type=delivery.event_type,
        outcome=_OUTCOMES[delivery.outcome],
        detail=delivery.detail,
        attempts=delivery.attempts,
        time=to_timestamp(delivery.time),
        trace_id=delivery.trace_id,
    )


def registered_event(adapter: Adapter, *, ids: Ids, clock: Clock) -> DomainEvent:
    """By the caller: an adapter was registered."""
    data = hub_events_pb2.AdapterRegistered(adapter=adapter_message(adapter))
    return new_event(data, subject=adapter.subject, sequence=adapter.version, ids=ids, clock=clock)


def removed_event(adapter: Adapter, *, ids: Ids, clock: Clock) -> DomainEvent:
    """By the caller: an adapter was removed."""
    data = hub_events_pb2.AdapterRemoved(adapter=adapter_message(adapter))
    return new_event(data, subject=adapter.subject, sequence=adapter.version, ids=ids, clock=clock)


def dead_letter_event(
    adapter: Adapter, delivery: Delivery, sequence: int, *, ids: Ids, clock: Clock
) -> DomainEvent:
    """By deskwire, in the trace of the event that was set aside."""
    data = hub_events_pb2.DeliveryDeadLettered(
        delivery=delivery_message(adapter.adapter_id, delivery)
    )
    return new_event(
        data,
        subject=adapter.subject,
        sequence=sequence,
        ids=ids,
        clock=clock,
        tenant_id=adapter.tenant,
        actor=system_actor(),
        trace_id=delivery.trace_id,
        traceparent=delivery.traceparent,
    )
