"""The hub's two services on gRPC: who may call what, and each call handed to its use case."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import grpc

from deskwire.events.v1 import adapter_registry_service_pb2 as registry_pb
from deskwire.events.v1 import adapter_registry_service_pb2_grpc, event_hub_service_pb2_grpc
from deskwire.events.v1 import event_hub_service_pb2 as hub_pb
from deskwire_common.auth import Role
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

#: Who may call each method.
AUTHORIZATION: Final[Mapping[str, frozenset[Role]]] = {
    f"/{HUB}/Publish": _OWNERS | {Role.BOT},
    f"/{HUB}/Subscribe": _OWNERS | {Role.AGENT, Role.BOT, Role.SERVICE},
    f"/{HUB}/ListEventTypes": frozenset(Role),
    f"/{REGISTRY}/RegisterAdapter": _OWNERS,
    f"/{REGISTRY}/GetAdapter": _OWNERS | {Role.SERVICE},
    f"/{REGISTRY}/ListAdapters": _OWNERS | {Role.SERVICE},
    f"/{REGISTRY}/RemoveAdapter": _OWNERS,
    f"/{REGISTRY}/ListDeliveries": _OWNERS,
}

Context = grpc.aio.ServicerContext[Any, Any]


class EventHubApi(event_hub_service_pb2_grpc.EventHubServiceServicer):
    """EventHubService. Errors are the actions'; the interceptor puts them on the wire."""

    def __init__(self, actions: EventActions, subscriptions: Subscriptions) -> None:
        self._actions = actions
        self._subscriptions = subscriptions

    async def Publish(  # noqa: N802
        self, request: hub_pb.PublishRequest, _context: Context
    ) -> hub_pb.PublishResponse:
        """See the contract."""
        return await self._actions.publish(request)

    async def Subscribe(  # noqa: N802
        self, request_iterator: AsyncIterator[hub_pb.SubscribeRequest], _context: Context
    ) -> AsyncIterator[hub_pb.SubscribeResponse]:
        """See the contract."""
        async for response in self._subscriptions.stream(caller(), request_iterator):
            yield response

    async def ListEventTypes(  # noqa: N802
        self, _request: hub_pb.ListEventTypesRequest, _context: Context
    ) -> hub_pb.ListEventTypesResponse:
        """See the contract."""
        return catalogue()


class AdapterRegistryApi(adapter_registry_service_pb2_grpc.AdapterRegistryServiceServicer):
    """AdapterRegistryService. Errors are the actions'; the interceptor puts them on the wire."""

    def __init__(self, actions: AdapterActions) -> None:
        self._actions = actions

    async def RegisterAdapter(  # noqa: N802
        self, request: registry_pb.RegisterAdapterRequest, _context: Context
    ) -> registry_pb.RegisterAdapterResponse:
        """See the contract."""
        return await self._actions.register(request)

    async def GetAdapter(  # noqa: N802
        self, request: registry_pb.GetAdapterRequest, _context: Context
    ) -> registry_pb.GetAdapterResponse:
        """See the contract."""
        return await self._actions.get(request)

    async def ListAdapters(  # noqa: N802
        self, request: registry_pb.ListAdaptersRequest, _context: Context
    ) -> registry_pb.ListAdaptersResponse:
        """See the contract."""
        return await self._actions.list(request)

    async def RemoveAdapter(  # noqa: N802
        self, request: registry_pb.RemoveAdapterRequest, _context: Context
    ) -> registry_pb.RemoveAdapterResponse:
        """See the contract."""
        return await self._actions.remove(request)

    async def ListDeliveries(  # noqa: N802
        self, request: registry_pb.ListDeliveriesRequest, _context: Context
    ) -> registry_pb.ListDeliveriesResponse:
        """See the contract."""
        return await self._actions.list_deliveries(request)
