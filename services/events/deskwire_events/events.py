"""Adapters and deliveries as messages, and the events that say what happened to them."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message

from deskwire.events.v1 import adapter_pb2, hub_events_pb2, subscription_pb2
from deskwire_common.clock import Clock, to_timestamp
from deskwire_common.events import DomainEvent, new_event, system_actor
from deskwire_common.ids import Ids
from deskwire_events.domain import (
    Delivery,
    Outcome,
    Progress,
    SinkKind,
    State,
    Subscription,
    webhooks,
)
from deskwire_events.spine import Lost

_STATES = {
    State.ACTIVE: adapter_pb2.ADAPTER_STATE_ACTIVE,
    State.RETRYING: adapter_pb2.ADAPTER_STATE_RETRYING,
    State.STOPPED: adapter_pb2.ADAPTER_STATE_STOPPED,
    State.PAUSED: adapter_pb2.ADAPTER_STATE_PAUSED,
}
_SUBSCRIPTION_STATES = {
    State.ACTIVE: subscription_pb2.SUBSCRIPTION_STATE_ACTIVE,
    State.RETRYING: subscription_pb2.SUBSCRIPTION_STATE_RETRYING,
    State.STOPPED: subscription_pb2.SUBSCRIPTION_STATE_STOPPED,
    State.PAUSED: subscription_pb2.SUBSCRIPTION_STATE_PAUSED,
}
_SINKS = {
    SinkKind.STREAM: subscription_pb2.SUBSCRIPTION_SINK_STREAM,
    SinkKind.ADAPTER: subscription_pb2.SUBSCRIPTION_SINK_ADAPTER,
    SinkKind.WEBHOOK: subscription_pb2.SUBSCRIPTION_SINK_WEBHOOK,
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
        config=adapter.config,
    )


def subscription_message(
    subscription: Subscription, progress: Progress | None = None
) -> subscription_pb2.Subscription:
    """The subscription as the contract says it, without secrets."""
    done = progress or Progress()
    state = subscription.state
    if state is State.ACTIVE and done.failing:
        state = State.RETRYING
    wanted = subscription.wanted
    return subscription_pb2.Subscription(
        subscription_id=subscription.subscription_id,
        filter=subscription_pb2.SubscriptionFilter(
            event_types=wanted.event_types,
            subjects=wanted.subjects,
            attributes=wanted.attributes,
            cel=wanted.cel,
        ),
        sink=_SINKS[subscription.kind],
        system_id=subscription.system_id,
        state=_SUBSCRIPTION_STATES[state],
        reason=subscription.reason,
        last_error=done.last_error,
        delivered_count=done.delivered,
        dead_letter_count=done.dead,
        create_time=to_timestamp(subscription.created_at),
        version=subscription.version,
        webhook=_webhook(subscription) if subscription.kind is SinkKind.WEBHOOK else None,
    )


def _webhook(subscription: Subscription) -> subscription_pb2.Webhook:
    until = webhooks.previous_until(subscription)
    return subscription_pb2.Webhook(
        url=str(subscription.sink["url"]),
        previous_secret_expire_time=to_timestamp(until) if until else None,
    )


def outcome_message(outcome: Outcome) -> adapter_pb2.PushOutcome.ValueType:
    """An outcome as the contract says it."""
    return _OUTCOMES[outcome]


def dead_letter_message(
    end: Delivery, topic: str, partition: int, offset: int, json: str
) -> subscription_pb2.DeadLetter:
    """A dead letter as the contract says it."""
    return subscription_pb2.DeadLetter(
        event_id=end.event_id,
        event_type=end.event_type,
        outcome=_OUTCOMES[end.outcome],
        detail=end.detail,
        attempts=end.attempts,
        time=to_timestamp(end.time),
        trace_id=end.trace_id,
        topic=topic,
        partition=partition,
        offset=offset,
        json=json,
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


def created_event(subscription: Subscription, *, ids: Ids, clock: Clock) -> DomainEvent:
    """By the caller: a subscription was made."""
    data = hub_events_pb2.SubscriptionCreated(subscription=subscription_message(subscription))
    return _about(subscription, data, ids=ids, clock=clock)


def updated_event(subscription: Subscription, *, ids: Ids, clock: Clock) -> DomainEvent:
    """By the caller: a subscription was changed."""
    data = hub_events_pb2.SubscriptionUpdated(subscription=subscription_message(subscription))
    return _about(subscription, data, ids=ids, clock=clock)


def deleted_event(subscription: Subscription, *, ids: Ids, clock: Clock) -> DomainEvent:
    """By the caller: a subscription is gone."""
    data = hub_events_pb2.SubscriptionDeleted(subscription=subscription_message(subscription))
    return _about(subscription, data, ids=ids, clock=clock)


def redriven_event(
    subscription: Subscription, event_ids: Sequence[str], *, ids: Ids, clock: Clock
) -> DomainEvent:
    """By the caller: dead letters are delivered again."""
    data = hub_events_pb2.DeadLettersRedriven(
        subscription_id=subscription.subscription_id, event_ids=event_ids
    )
    return _about(subscription, data, ids=ids, clock=clock)


def purged_event(
    subscription: Subscription, event_ids: Sequence[str], *, ids: Ids, clock: Clock
) -> DomainEvent:
    """By the caller: dead letters were forgotten."""
    data = hub_events_pb2.DeadLettersPurged(
        subscription_id=subscription.subscription_id, event_ids=event_ids
    )
    return _about(subscription, data, ids=ids, clock=clock)


def stopped_event(
    subscription: Subscription, sequence: int, *, ids: Ids, clock: Clock
) -> DomainEvent:
    """By deskwire: too much was dead-lettered."""
    return new_event(
        hub_events_pb2.SubscriptionUpdated(subscription=subscription_message(subscription)),
        subject=subscription.subject,
        sequence=sequence,
        ids=ids,
        clock=clock,
        tenant_id=subscription.tenant,
        actor=system_actor(),
    )


def _about(subscription: Subscription, data: Message, *, ids: Ids, clock: Clock) -> DomainEvent:
    return new_event(
        data, subject=subscription.subject, sequence=subscription.sequence, ids=ids, clock=clock
    )


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
