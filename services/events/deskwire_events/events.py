"""Adapters and deliveries as messages, and the events that say what happened to them."""

from __future__ import annotations

from deskwire.events.v1 import adapter_pb2, hub_events_pb2
from deskwire_common.clock import Clock, to_timestamp
from deskwire_common.events import DomainEvent, new_event, system_actor
from deskwire_common.ids import Ids
from deskwire_events.domain import Delivery, Outcome, Progress, State, Subscription
from deskwire_events.spine import Lost

_STATES = {
    State.ACTIVE: adapter_pb2.ADAPTER_STATE_ACTIVE,
    State.RETRYING: adapter_pb2.ADAPTER_STATE_RETRYING,
    State.STOPPED: adapter_pb2.ADAPTER_STATE_STOPPED,
}
_OUTCOMES = {
    Outcome.DELIVERED: adapter_pb2.PUSH_OUTCOME_DELIVERED,
    Outcome.DUPLICATE: adapter_pb2.PUSH_OUTCOME_DUPLICATE,
    Outcome.SKIPPED: adapter_pb2.PUSH_OUTCOME_SKIPPED,
    Outcome.RETRY: adapter_pb2.PUSH_OUTCOME_RETRY,
    Outcome.AUTH_EXPIRED: adapter_pb2.PUSH_OUTCOME_AUTH_EXPIRED,
    Outcome.REJECTED: adapter_pb2.PUSH_OUTCOME_REJECTED,
    Outcome.RATE_LIMITED: adapter_pb2.PUSH_OUTCOME_RATE_LIMITED,
    Outcome.CONFLICT: adapter_pb2.PUSH_OUTCOME_CONFLICT,
    Outcome.UNKNOWN: adapter_pb2.PUSH_OUTCOME_UNKNOWN,
}


def adapter_message(adapter: Subscription, progress: Progress | None = None) -> adapter_pb2.Adapter:
    """The adapter as the contract says it, without credentials."""
    done = progress or Progress()
    state = adapter.state
    if state is State.ACTIVE and done.failing:
        state = State.RETRYING
    return adapter_pb2.Adapter(
        adapter_id=adapter.subscription_id,
        system_id=adapter.system_id,
        target=adapter.target,
        event_types=adapter.wanted.event_types,
        state=_STATES[state],
        last_error=done.last_error,
        delivered_count=done.delivered,
        dead_letter_count=done.dead,
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


def registered_event(adapter: Subscription, *, ids: Ids, clock: Clock) -> DomainEvent:
    """By the caller: an adapter was registered."""
    data = hub_events_pb2.AdapterRegistered(adapter=adapter_message(adapter))
    return new_event(data, subject=adapter.subject, sequence=adapter.sequence, ids=ids, clock=clock)


def removed_event(adapter: Subscription, *, ids: Ids, clock: Clock) -> DomainEvent:
    """By the caller: an adapter was removed."""
    data = hub_events_pb2.AdapterRemoved(adapter=adapter_message(adapter))
    return new_event(data, subject=adapter.subject, sequence=adapter.sequence, ids=ids, clock=clock)


def dead_letter_event(
    adapter: Subscription, delivery: Delivery, sequence: int, *, ids: Ids, clock: Clock
) -> DomainEvent:
    """By deskwire, in the trace of the event that was set aside."""
    data = hub_events_pb2.DeliveryDeadLettered(
        delivery=delivery_message(adapter.subscription_id, delivery)
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


def lost_event(
    subscription: Subscription, lost: Lost, sequence: int, *, ids: Ids, clock: Clock
) -> DomainEvent:
    """By deskwire: records were gone before the subscription got them."""
    data = hub_events_pb2.DeliveriesLost(
        subscription_id=subscription.subscription_id,
        topic=lost.topic,
        partition=lost.partition,
        from_offset=lost.wanted,
        to_offset=lost.kept,
    )
    return new_event(
        data,
        subject=subscription.subject,
        sequence=sequence,
        ids=ids,
        clock=clock,
        tenant_id=subscription.tenant,
        actor=system_actor(),
    )
