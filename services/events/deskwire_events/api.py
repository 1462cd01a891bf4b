"""The hub's two services on gRPC: one row per RPC."""

from __future__ import annotations

from typing import Final

from deskwire.events.v1.adapter_registry_service_pb2_grpc import (
    AdapterRegistryServiceServicer as Registry,
)
from deskwire.events.v1.event_hub_service_pb2_grpc import EventHubServiceServicer as Hub
from deskwire_common.auth import Role
from deskwire_common.rpc.table import Service, Table, stream, unary
from deskwire_events.actions import (
    HUB,
    MAX_PUBLISH,
    REGISTRY,
    AdapterActions,
    DeadLetterActions,
    EventActions,
    SubscriptionActions,
    WebhookActions,
)
from deskwire_events.streams import Subscriptions

_OWNERS: Final = frozenset({Role.INTEGRATION, Role.OPERATOR})
_READERS: Final = _OWNERS | {Role.SERVICE}
_SUBSCRIBERS: Final = _READERS | {Role.AGENT, Role.BOT}

_LONG: Final = 512 * 1024

TABLE: Final = Table(
    Service(
        HUB,
        unary(Hub.Publish).by(
            EventActions.publish, _OWNERS | {Role.BOT}, request_bytes=MAX_PUBLISH
        ),
        # Its cursor may be long: it has a place for each captured table.
        stream(Hub.Subscribe).writing(Subscriptions.serve, _SUBSCRIBERS, request_bytes=_LONG),
        unary(Hub.CreateSubscription).by(SubscriptionActions.create, _OWNERS, request_bytes=_LONG),
        unary(Hub.GetSubscription).by(SubscriptionActions.get, _READERS),
        unary(Hub.ListSubscriptions).by(SubscriptionActions.list, _READERS),
        unary(Hub.UpdateSubscription).by(SubscriptionActions.update, _OWNERS, request_bytes=_LONG),
        unary(Hub.PauseSubscription).by(SubscriptionActions.pause, _OWNERS),
        unary(Hub.ResumeSubscription).by(SubscriptionActions.resume, _OWNERS),
        unary(Hub.SeekSubscription).by(SubscriptionActions.seek, _OWNERS, request_bytes=_LONG),
        unary(Hub.RotateWebhookSecret).by(SubscriptionActions.rotate_secret, _OWNERS),
        unary(Hub.CheckWebhook).by(WebhookActions.check, _OWNERS),
        unary(Hub.DeleteSubscription).by(SubscriptionActions.delete, _OWNERS),
        unary(Hub.ListDeadLetters).by(DeadLetterActions.list_dead_letters, _OWNERS),
        unary(Hub.RedriveDeadLetters).by(DeadLetterActions.redrive, _OWNERS),
        unary(Hub.PurgeDeadLetters).by(DeadLetterActions.purge, _OWNERS),
        unary(Hub.ListEventTypes).by(EventActions.list_event_types, frozenset(Role)),
    ),
    Service(
        REGISTRY,
        unary(Registry.RegisterAdapter).by(AdapterActions.register, _OWNERS, request_bytes=_LONG),
        unary(Registry.UpdateAdapter).by(AdapterActions.update, _OWNERS, request_bytes=_LONG),
        unary(Registry.GetAdapter).by(AdapterActions.get, _READERS),
        unary(Registry.ListAdapters).by(AdapterActions.list, _READERS),
        unary(Registry.RemoveAdapter).by(AdapterActions.remove, _OWNERS),
        unary(Registry.ListDeliveries).by(AdapterActions.list_deliveries, _OWNERS),
    ),
)

AUTHORIZATION: Final = TABLE.authorization
"""Who may call each method, as the contract says it."""
