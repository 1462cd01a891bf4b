"""The hub's two services on gRPC: one row per RPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

from deskwire.events.v1 import event_hub_service_pb2 as pb
from deskwire.events.v1.adapter_registry_service_pb2_grpc import (
    AdapterRegistryServiceServicer as Registry,
)
from deskwire.events.v1.event_hub_service_pb2_grpc import EventHubServiceServicer as Hub
from deskwire_common.auth import Role
from deskwire_common.rpc.table import Context, Service, Table, stream, unary
from deskwire_events.actions import (
    HUB,
    REGISTRY,
    AdapterActions,
    EventActions,
    caller,
    catalogue,
)
from deskwire_events.subscribe import Subscriptions

_OWNERS: Final = frozenset({Role.INTEGRATION, Role.OPERATOR})
_READERS: Final = _OWNERS | {Role.SERVICE}


class Reading:
    """What readers of the hub call: the events as they come, and which there are."""

    def __init__(self, subscriptions: Subscriptions) -> None:
        self._subscriptions = subscriptions

    async def subscribe(
        self, requests: AsyncIterator[pb.SubscribeRequest], _context: Context
    ) -> AsyncGenerator[pb.SubscribeResponse]:
        """Yield the events of a stream until it ends; raises what Subscriptions.stream does."""
        async with aclosing(self._subscriptions.stream(caller(), requests)) as responses:
            async for response in responses:
                yield response

    async def list_event_types(
        self, _request: pb.ListEventTypesRequest
    ) -> pb.ListEventTypesResponse:
        """Return every type of event that deskwire knows."""
        return catalogue()


TABLE: Final = Table(
    Service(
        HUB,
        unary(Hub.Publish).by(EventActions.publish, _OWNERS | {Role.BOT}),
        stream(Hub.Subscribe).by(Reading.subscribe, _READERS | {Role.AGENT, Role.BOT}),
        unary(Hub.ListEventTypes).by(Reading.list_event_types, frozenset(Role)),
    ),
    Service(
        REGISTRY,
        unary(Registry.RegisterAdapter).by(AdapterActions.register, _OWNERS),
        unary(Registry.GetAdapter).by(AdapterActions.get, _READERS),
        unary(Registry.ListAdapters).by(AdapterActions.list, _READERS),
        unary(Registry.RemoveAdapter).by(AdapterActions.remove, _OWNERS),
        unary(Registry.ListDeliveries).by(AdapterActions.list_deliveries, _OWNERS),
    ),
)

AUTHORIZATION: Final = TABLE.authorization
"""Who may call each method, as the contract says it."""
