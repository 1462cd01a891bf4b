"""Chat on gRPC, one row per RPC: who may call it, its use case, and whose owner must answer."""

from __future__ import annotations

from typing import Final

from deskwire.chat.v1 import agent_service_pb2 as agents_pb
from deskwire.chat.v1 import conversation_service_pb2 as conversations_pb
from deskwire.chat.v1.agent_service_pb2_grpc import AgentServiceServicer as Agents
from deskwire.chat.v1.attachment_service_pb2_grpc import AttachmentServiceServicer as Attachments
from deskwire.chat.v1.conversation_service_pb2_grpc import (
    ConversationServiceServicer as Conversations,
)
from deskwire.chat.v1.customer_service_pb2_grpc import CustomerServiceServicer as Customers
from deskwire.chat.v1.history_service_pb2_grpc import HistoryServiceServicer as History
from deskwire.chat.v1.integration_key_service_pb2_grpc import IntegrationKeyServiceServicer as Keys
from deskwire.chat.v1.tenant_service_pb2_grpc import TenantServiceServicer as Tenants
from deskwire.shard.v1.shard_service_pb2_grpc import ShardServiceServicer as Shard
from deskwire_chat.actions.agents import AGENTS, AgentActions
from deskwire_chat.actions.attachments import ATTACHMENTS, AttachmentActions
from deskwire_chat.actions.conversations import CONVERSATIONS, ConversationActions
from deskwire_chat.actions.customers import CUSTOMERS, CustomerActions
from deskwire_chat.actions.history import HISTORY, MAX_BYTES, HistoryActions
from deskwire_chat.actions.history import conversation_of as imported_conversation
from deskwire_chat.actions.keys import KEYS, IntegrationKeyActions
from deskwire_chat.actions.offers import OfferActions
from deskwire_chat.actions.tenants import TENANTS, TenantActions
from deskwire_chat.live import link
from deskwire_chat.live.link import Links
from deskwire_chat.streams.forward import WatchForwarder
from deskwire_chat.streams.send import MessageStreams
from deskwire_common.auth import Role
from deskwire_common.rpc import MAX_MESSAGE_BYTES
from deskwire_common.rpc.table import Service, Table, stream, unary

_EVERYBODY: Final = frozenset(Role)
_DESK: Final = _EVERYBODY - {Role.VISITOR}
_LISTERS: Final = _DESK - {Role.BOT}
_WRITERS: Final = frozenset({Role.VISITOR, Role.AGENT, Role.BOT, Role.INTEGRATION})
_CHANGERS: Final = frozenset({Role.AGENT, Role.INTEGRATION, Role.OPERATOR})
_OPERATOR: Final = frozenset({Role.OPERATOR})
_AGENT: Final = frozenset({Role.AGENT})


def _conversation(
    request: conversations_pb.SendMessageRequest
    | conversations_pb.CloseConversationRequest
    | conversations_pb.TransferConversationRequest
    | agents_pb.AcceptOfferRequest
    | agents_pb.DeclineOfferRequest,
) -> str:
    """Return the conversation whose owner must answer."""
    return request.conversation_id


TABLE: Final = Table(
    Service(
        CONVERSATIONS,
        unary(Conversations.GetConversation).by(ConversationActions.get, _EVERYBODY),
        unary(Conversations.ListConversations).by(ConversationActions.list, _EVERYBODY),
        unary(Conversations.ListMessages).by(ConversationActions.list_messages, _EVERYBODY),
        unary(Conversations.SendMessage).by(ConversationActions.send, _WRITERS, at=_conversation),
        stream(Conversations.StreamMessages).by(
            MessageStreams.serve, _WRITERS, request_bytes=MAX_MESSAGE_BYTES
        ),
        stream(Conversations.WatchConversation).by(WatchForwarder.serve, _EVERYBODY),
        unary(Conversations.SearchMessages).by(ConversationActions.search, _EVERYBODY),
        unary(Conversations.CloseConversation).by(
            ConversationActions.close, _CHANGERS | {Role.BOT}, at=_conversation
        ),
        unary(Conversations.TransferConversation).by(
            ConversationActions.transfer, _CHANGERS | {Role.BOT}, at=_conversation
        ),
    ),
    Service(
        ATTACHMENTS,
        unary(Attachments.CreateAttachment).by(AttachmentActions.create, _WRITERS),
        unary(Attachments.CompleteAttachment).by(AttachmentActions.complete, _WRITERS),
        unary(Attachments.GetAttachment).by(AttachmentActions.get, _EVERYBODY),
    ),
    Service(
        CUSTOMERS,
        unary(Customers.GetCustomer).by(CustomerActions.get, _DESK),
        unary(Customers.LookupCustomer).by(CustomerActions.lookup, _DESK),
        unary(Customers.ListCustomers).by(CustomerActions.list, _LISTERS),
        unary(Customers.UpdateCustomer).by(CustomerActions.update, _CHANGERS),
        unary(Customers.UpsertCustomer).by(
            CustomerActions.upsert, {Role.INTEGRATION, Role.OPERATOR}
        ),
    ),
    Service(
        HISTORY,
        unary(History.ImportConversation).by(
            HistoryActions.import_conversation,
            {Role.INTEGRATION, Role.OPERATOR},
            at=imported_conversation,
            request_bytes=MAX_BYTES,
        ),
    ),
    Service(
        AGENTS,
        unary(Agents.SetAgentStatus).by(
            AgentActions.set_status, {Role.AGENT, Role.BOT, Role.OPERATOR}
        ),
        unary(Agents.CreateAgent).by(AgentActions.create, _OPERATOR),
        unary(Agents.DisableAgent).by(AgentActions.disable, _OPERATOR),
        unary(Agents.EnableAgent).by(AgentActions.enable, _OPERATOR),
        unary(Agents.AcceptOffer).by(OfferActions.accept, _AGENT, at=_conversation),
        unary(Agents.DeclineOffer).by(OfferActions.decline, _AGENT, at=_conversation),
        unary(Agents.GetAgent).by(AgentActions.get, _DESK),
        unary(Agents.ListAgents).by(AgentActions.list, _LISTERS),
    ),
    Service(
        TENANTS,
        # These are the operators of the suite, which act for all tenants.
        unary(Tenants.CreateTenant).by(TenantActions.create, _OPERATOR, suite=True),
        unary(Tenants.GetTenant).by(TenantActions.get, _OPERATOR, suite=True),
        unary(Tenants.ListTenants).by(TenantActions.list, _OPERATOR, suite=True),
        unary(Tenants.DisableTenant).by(TenantActions.disable, _OPERATOR, suite=True),
        unary(Tenants.EnableTenant).by(TenantActions.enable, _OPERATOR, suite=True),
    ),
    Service(
        KEYS,
        unary(Keys.CreateIntegrationKey).by(IntegrationKeyActions.create, _OPERATOR),
        unary(Keys.ListIntegrationKeys).by(IntegrationKeyActions.list, _OPERATOR),
        unary(Keys.RevokeIntegrationKey).by(IntegrationKeyActions.revoke, _OPERATOR),
        # The call needs no token: the secret in the request tells who calls.
        unary(Keys.ExchangeIntegrationKey).by(
            IntegrationKeyActions.exchange, _EVERYBODY, public=True
        ),
    ),
    Service(
        link.SERVICE,
        stream(Shard.Link).by_encoded(Links.link, link.ROLES, request_bytes=MAX_MESSAGE_BYTES),
    ),
)

AUTHORIZATION: Final = TABLE.authorization
"""Who may call each method, as the contract states it."""

PUBLIC: Final = TABLE.public
"""The methods that need no token."""
