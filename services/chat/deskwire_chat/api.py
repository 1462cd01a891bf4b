"""Chat on gRPC: who may call what, and each call handed to its use case."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Final

import grpc

from deskwire.chat.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    attachment_service_pb2,
    attachment_service_pb2_grpc,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
    customer_service_pb2,
    customer_service_pb2_grpc,
    integration_key_service_pb2,
    integration_key_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)
from deskwire_chat.actions.agents import AGENTS, AgentActions
from deskwire_chat.actions.attachments import ATTACHMENTS, AttachmentActions
from deskwire_chat.actions.conversations import CONVERSATIONS, ConversationActions
from deskwire_chat.actions.customers import CUSTOMERS, CustomerActions
from deskwire_chat.actions.keys import KEYS, IntegrationKeyActions
from deskwire_chat.actions.offers import OfferActions
from deskwire_chat.actions.tenants import TENANTS, TenantActions
from deskwire_chat.live import link
from deskwire_chat.owners.forwarding import Peers
from deskwire_chat.streams.send import MessageStreams
from deskwire_chat.streams.watch import Watchers
from deskwire_common.auth import Role

_DESK: Final = frozenset({Role.AGENT, Role.BOT, Role.INTEGRATION, Role.OPERATOR, Role.SERVICE})
_CHANGERS: Final = frozenset({Role.AGENT, Role.INTEGRATION, Role.OPERATOR})
_LISTERS: Final = _DESK - {Role.BOT}
_WRITERS: Final = frozenset({Role.VISITOR, Role.AGENT, Role.BOT, Role.INTEGRATION})
_OPERATOR: Final = frozenset({Role.OPERATOR})
_AGENT: Final = frozenset({Role.AGENT})

#: Who may call each method.
AUTHORIZATION: Final[Mapping[str, frozenset[Role]]] = {
    f"/{CONVERSATIONS}/GetConversation": _DESK | {Role.VISITOR},
    f"/{CONVERSATIONS}/ListConversations": _DESK | {Role.VISITOR},
    f"/{CONVERSATIONS}/ListMessages": _DESK | {Role.VISITOR},
    f"/{CONVERSATIONS}/SendMessage": frozenset(
        {Role.VISITOR, Role.AGENT, Role.BOT, Role.INTEGRATION}
    ),
    f"/{CONVERSATIONS}/StreamMessages": frozenset(
        {Role.VISITOR, Role.AGENT, Role.BOT, Role.INTEGRATION}
    ),
    f"/{CONVERSATIONS}/WatchConversation": _DESK | {Role.VISITOR},
    f"/{CONVERSATIONS}/SearchMessages": _DESK | {Role.VISITOR},
    f"/{CONVERSATIONS}/CloseConversation": _CHANGERS | {Role.BOT},
    f"/{CONVERSATIONS}/TransferConversation": _CHANGERS | {Role.BOT},
    f"/{ATTACHMENTS}/CreateAttachment": _WRITERS,
    f"/{ATTACHMENTS}/CompleteAttachment": _WRITERS,
    f"/{ATTACHMENTS}/GetAttachment": _DESK | {Role.VISITOR},
    f"/{CUSTOMERS}/GetCustomer": _DESK,
    f"/{CUSTOMERS}/LookupCustomer": _DESK,
    f"/{CUSTOMERS}/ListCustomers": _LISTERS,
    f"/{CUSTOMERS}/UpdateCustomer": _CHANGERS,
    f"/{CUSTOMERS}/UpsertCustomer": frozenset({Role.INTEGRATION, Role.OPERATOR}),
    f"/{AGENTS}/SetAgentStatus": frozenset({Role.AGENT, Role.BOT, Role.OPERATOR}),
    f"/{AGENTS}/CreateAgent": _OPERATOR,
    f"/{AGENTS}/DisableAgent": _OPERATOR,
    f"/{AGENTS}/EnableAgent": _OPERATOR,
    f"/{AGENTS}/AcceptOffer": _AGENT,
    f"/{AGENTS}/DeclineOffer": _AGENT,
    f"/{AGENTS}/GetAgent": _DESK,
    f"/{AGENTS}/ListAgents": _LISTERS,
    f"/{TENANTS}/CreateTenant": _OPERATOR,
    f"/{TENANTS}/GetTenant": _OPERATOR,
    f"/{TENANTS}/ListTenants": _OPERATOR,
    f"/{TENANTS}/DisableTenant": _OPERATOR,
    f"/{TENANTS}/EnableTenant": _OPERATOR,
    f"/{KEYS}/CreateIntegrationKey": _OPERATOR,
    f"/{KEYS}/ListIntegrationKeys": _OPERATOR,
    f"/{KEYS}/RevokeIntegrationKey": _OPERATOR,
    f"/{KEYS}/ExchangeIntegrationKey": frozenset(Role),
    link.METHOD: link.ROLES,
}

#: These are for operators of all tenants, who may call nothing else.
SUITE: Final = frozenset(method for method in AUTHORIZATION if method.startswith(f"/{TENANTS}/"))

#: No token is asked for: the secret in the request says who calls.
PUBLIC: Final = frozenset({f"/{KEYS}/ExchangeIntegrationKey"})

Context = grpc.aio.ServicerContext[Any, Any]


class ConversationApi(conversation_service_pb2_grpc.ConversationServiceServicer):
    """The servicer. Errors are the actions'; the server puts them on the wire."""

    def __init__(
        self,
        actions: ConversationActions,
        streams: MessageStreams,
        watchers: Watchers,
        peers: Peers,
    ) -> None:
        self._actions = actions
        self._streams = streams
        self._watchers = watchers
        self._peers = peers

    async def GetConversation(  # noqa: N802
        self, request: conversation_service_pb2.GetConversationRequest, _context: Context
    ) -> conversation_service_pb2.GetConversationResponse:
        """See the contract."""
        return await self._actions.get(request)

    async def ListConversations(  # noqa: N802
        self, request: conversation_service_pb2.ListConversationsRequest, _context: Context
    ) -> conversation_service_pb2.ListConversationsResponse:
        """See the contract."""
        return await self._actions.list(request)

    async def ListMessages(  # noqa: N802
        self, request: conversation_service_pb2.ListMessagesRequest, _context: Context
    ) -> conversation_service_pb2.ListMessagesResponse:
        """See the contract."""
        return await self._actions.list_messages(request)

    async def SendMessage(  # noqa: N802
        self, request: conversation_service_pb2.SendMessageRequest, context: Context
    ) -> conversation_service_pb2.SendMessageResponse:
        """See the contract."""
        return await self._peers.unary(
            f"/{CONVERSATIONS}/SendMessage",
            request.conversation_id,
            request,
            context,
            self._actions.send,
            conversation_service_pb2.SendMessageResponse,
        )

    async def StreamMessages(  # noqa: N802
        self,
        requests: AsyncIterator[conversation_service_pb2.StreamMessagesRequest],
        context: Context,
    ) -> AsyncIterator[conversation_service_pb2.StreamMessagesResponse]:
        """See the contract."""
        async with aclosing(self._streams.serve(requests, context)) as responses:
            async for response in responses:
                yield response

    async def WatchConversation(  # noqa: N802
        self, request: conversation_service_pb2.WatchConversationRequest, context: Context
    ) -> AsyncIterator[conversation_service_pb2.WatchConversationResponse]:
        """See the contract."""
        owner = await self._peers.owner(request.conversation_id, context)
        watched = (
            self._watchers.watch(request)
            if owner is None
            else self._peers.stream(
                f"/{CONVERSATIONS}/WatchConversation",
                owner,
                request,
                context,
                conversation_service_pb2.WatchConversationResponse,
            )
        )
        async with aclosing(watched) as responses:
            async for response in responses:
                yield response

    async def SearchMessages(  # noqa: N802
        self, request: conversation_service_pb2.SearchMessagesRequest, _context: Context
    ) -> conversation_service_pb2.SearchMessagesResponse:
        """See the contract."""
        return await self._actions.search(request)

    async def CloseConversation(  # noqa: N802
        self, request: conversation_service_pb2.CloseConversationRequest, context: Context
    ) -> conversation_service_pb2.CloseConversationResponse:
        """See the contract."""
        return await self._peers.unary(
            f"/{CONVERSATIONS}/CloseConversation",
            request.conversation_id,
            request,
            context,
            self._actions.close,
            conversation_service_pb2.CloseConversationResponse,
        )

    async def TransferConversation(  # noqa: N802
        self, request: conversation_service_pb2.TransferConversationRequest, context: Context
    ) -> conversation_service_pb2.TransferConversationResponse:
        """See the contract."""
        return await self._peers.unary(
            f"/{CONVERSATIONS}/TransferConversation",
            request.conversation_id,
            request,
            context,
            self._actions.transfer,
            conversation_service_pb2.TransferConversationResponse,
        )


class AttachmentApi(attachment_service_pb2_grpc.AttachmentServiceServicer):
    """The servicer. Errors are the actions'; the server puts them on the wire."""

    def __init__(self, actions: AttachmentActions) -> None:
        self._actions = actions

    async def CreateAttachment(  # noqa: N802
        self, request: attachment_service_pb2.CreateAttachmentRequest, _context: Context
    ) -> attachment_service_pb2.CreateAttachmentResponse:
        """See the contract."""
        return await self._actions.create(request)

    async def CompleteAttachment(  # noqa: N802
        self, request: attachment_service_pb2.CompleteAttachmentRequest, _context: Context
    ) -> attachment_service_pb2.CompleteAttachmentResponse:
        """See the contract."""
        return await self._actions.complete(request)

    async def GetAttachment(  # noqa: N802
        self, request: attachment_service_pb2.GetAttachmentRequest, _context: Context
    ) -> attachment_service_pb2.GetAttachmentResponse:
        """See the contract."""
        return await self._actions.get(request)


class CustomerApi(customer_service_pb2_grpc.CustomerServiceServicer):
    """The servicer. Errors are the actions'; the server puts them on the wire."""

    def __init__(self, actions: CustomerActions) -> None:
        self._actions = actions

    async def GetCustomer(  # noqa: N802
        self, request: customer_service_pb2.GetCustomerRequest, _context: Context
    ) -> customer_service_pb2.GetCustomerResponse:
        """See the contract."""
        return await self._actions.get(request)

    async def LookupCustomer(  # noqa: N802
        self, request: customer_service_pb2.LookupCustomerRequest, _context: Context
    ) -> customer_service_pb2.LookupCustomerResponse:
        """See the contract."""
        return await self._actions.lookup(request)

    async def ListCustomers(  # noqa: N802
        self, request: customer_service_pb2.ListCustomersRequest, _context: Context
    ) -> customer_service_pb2.ListCustomersResponse:
        """See the contract."""
        return await self._actions.list(request)

    async def UpdateCustomer(  # noqa: N802
        self, request: customer_service_pb2.UpdateCustomerRequest, _context: Context
    ) -> customer_service_pb2.UpdateCustomerResponse:
        """See the contract."""
        return await self._actions.update(request)

    async def UpsertCustomer(  # noqa: N802
        self, request: customer_service_pb2.UpsertCustomerRequest, _context: Context
    ) -> customer_service_pb2.UpsertCustomerResponse:
        """See the contract."""
        return await self._actions.upsert(request)


class AgentApi(agent_service_pb2_grpc.AgentServiceServicer):
    """The servicer. Errors are the actions'; the server puts them on the wire."""

    def __init__(self, actions: AgentActions, offers: OfferActions, peers: Peers) -> None:
        self._actions = actions
        self._offers = offers
        self._peers = peers

    async def SetAgentStatus(  # noqa: N802
        self, request: agent_service_pb2.SetAgentStatusRequest, _context: Context
    ) -> agent_service_pb2.SetAgentStatusResponse:
        """See the contract."""
        return await self._actions.set_status(request)

    async def CreateAgent(  # noqa: N802
        self, request: agent_service_pb2.CreateAgentRequest, _context: Context
    ) -> agent_service_pb2.CreateAgentResponse:
        """See the contract."""
        return await self._actions.create(request)

    async def DisableAgent(  # noqa: N802
        self, request: agent_service_pb2.DisableAgentRequest, _context: Context
    ) -> agent_service_pb2.DisableAgentResponse:
        """See the contract."""
        return await self._actions.disable(request)

    async def EnableAgent(  # noqa: N802
        self, request: agent_service_pb2.EnableAgentRequest, _context: Context
    ) -> agent_service_pb2.EnableAgentResponse:
        """See the contract."""
        return await self._actions.enable(request)

    async def AcceptOffer(  # noqa: N802
        self, request: agent_service_pb2.AcceptOfferRequest, context: Context
    ) -> agent_service_pb2.AcceptOfferResponse:
        """See the contract."""
        return await self._peers.unary(
            f"/{AGENTS}/AcceptOffer",
            request.conversation_id,
            request,
            context,
            self._offers.accept,
            agent_service_pb2.AcceptOfferResponse,
        )

    async def DeclineOffer(  # noqa: N802
        self, request: agent_service_pb2.DeclineOfferRequest, context: Context
    ) -> agent_service_pb2.DeclineOfferResponse:
        """See the contract."""
        return await self._peers.unary(
            f"/{AGENTS}/DeclineOffer",
            request.conversation_id,
            request,
            context,
            self._offers.decline,
            agent_service_pb2.DeclineOfferResponse,
        )

    async def GetAgent(  # noqa: N802
        self, request: agent_service_pb2.GetAgentRequest, _context: Context
    ) -> agent_service_pb2.GetAgentResponse:
        """See the contract."""
        return await self._actions.get(request)

    async def ListAgents(  # noqa: N802
        self, request: agent_service_pb2.ListAgentsRequest, _context: Context
    ) -> agent_service_pb2.ListAgentsResponse:
        """See the contract."""
        return await self._actions.list(request)


class TenantApi(tenant_service_pb2_grpc.TenantServiceServicer):
    """The servicer. Errors are the actions'; the server puts them on the wire."""

    def __init__(self, actions: TenantActions) -> None:
        self._actions = actions

    async def CreateTenant(  # noqa: N802
        self, request: tenant_service_pb2.CreateTenantRequest, _context: Context
    ) -> tenant_service_pb2.CreateTenantResponse:
        """See the contract."""
        return await self._actions.create(request)

    async def GetTenant(  # noqa: N802
        self, request: tenant_service_pb2.GetTenantRequest, _context: Context
    ) -> tenant_service_pb2.GetTenantResponse:
        """See the contract."""
        return await self._actions.get(request)

    async def ListTenants(  # noqa: N802
        self, request: tenant_service_pb2.ListTenantsRequest, _context: Context
    ) -> tenant_service_pb2.ListTenantsResponse:
        """See the contract."""
        return await self._actions.list(request)

    async def DisableTenant(  # noqa: N802
        self, request: tenant_service_pb2.DisableTenantRequest, _context: Context
    ) -> tenant_service_pb2.DisableTenantResponse:
        """See the contract."""
        return await self._actions.disable(request)

    async def EnableTenant(  # noqa: N802
        self, request: tenant_service_pb2.EnableTenantRequest, _context: Context
    ) -> tenant_service_pb2.EnableTenantResponse:
        """See the contract."""
        return await self._actions.enable(request)


class IntegrationKeyApi(integration_key_service_pb2_grpc.IntegrationKeyServiceServicer):
    """The servicer. Errors are the actions'; the server puts them on the wire."""

    def __init__(self, actions: IntegrationKeyActions) -> None:
        self._actions = actions

    async def CreateIntegrationKey(  # noqa: N802
        self, request: integration_key_service_pb2.CreateIntegrationKeyRequest, _context: Context
    ) -> integration_key_service_pb2.CreateIntegrationKeyResponse:
        """See the contract."""
        return await self._actions.create(request)

    async def ListIntegrationKeys(  # noqa: N802
        self, request: integration_key_service_pb2.ListIntegrationKeysRequest, _context: Context
    ) -> integration_key_service_pb2.ListIntegrationKeysResponse:
        """See the contract."""
        return await self._actions.list(request)

    async def RevokeIntegrationKey(  # noqa: N802
        self, request: integration_key_service_pb2.RevokeIntegrationKeyRequest, _context: Context
    ) -> integration_key_service_pb2.RevokeIntegrationKeyResponse:
        """See the contract."""
        return await self._actions.revoke(request)

    async def ExchangeIntegrationKey(  # noqa: N802
        self, request: integration_key_service_pb2.ExchangeIntegrationKeyRequest, _context: Context
    ) -> integration_key_service_pb2.ExchangeIntegrationKeyResponse:
        """See the contract."""
        return await self._actions.exchange(request)
