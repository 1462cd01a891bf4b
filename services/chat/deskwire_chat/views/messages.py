"""The objects of the domain as messages of the contract."""

from __future__ import annotations

from deskwire.chat.v1 import (
    agent_pb2,
    attachment_pb2,
    attachment_service_pb2,
    conversation_pb2,
    customer_pb2,
    integration_key_pb2,
    tenant_pb2,
)
from deskwire.common.v1 import actor_pb2
from deskwire_chat.attachments.base import Signed
from deskwire_chat.domain.access import IntegrationKey, Tenant
from deskwire_chat.domain.actors import Actor, ActorRole
from deskwire_chat.domain.agents import Agent
from deskwire_chat.domain.attachments import Attachment
from deskwire_chat.domain.conversations import Conversation
from deskwire_chat.domain.customers import Customer
from deskwire_chat.domain.messages import Kind, Message, Receipt
from deskwire_chat.views.content import (
    WITHHELD,
)
from deskwire_common.clock import to_timestamp


def actor(who: Actor) -> actor_pb2.Actor:
    """Return who caused a change, as callers see it."""
    return actor_pb2.Actor(
        role=actor_pb2.Role.ValueType(int(who.role)),
        subject=who.subject,
        display_name=who.name,
    )


def conversation(item: Conversation) -> conversation_pb2.Conversation:
    """Return a conversation as callers see it."""
    return conversation_pb2.Conversation(
        conversation_id=item.conversation_id,
        state=conversation_pb2.ConversationState.ValueType(int(item.state)),
        customer_id=item.customer_id,
        visitor_id=item.visitor_id,
        agent_id=item.agent_id,
        epoch=item.epoch,
        head_seq=item.head_seq,
        version=item.version,
        create_time=to_timestamp(item.created_at),
        assign_time=to_timestamp(item.assigned_at) if item.assigned_at else None,
        close_time=to_timestamp(item.closed_at) if item.closed_at else None,
        agent_role=actor_pb2.Role.ValueType(int(item.agent_role) if item.agent_id else 0),
        human_wanted=item.human_wanted,
    )


def message(item: Message, who: Actor) -> conversation_pb2.Message:
    """Return a message as `who` sees it: notes are withheld from visitors."""
    withheld = item.kind == Kind.NOTE and who.role == ActorRole.VISITOR
    return conversation_pb2.Message(
        message_id=item.message_id,
        conversation_id=item.conversation_id,
        seq=item.seq,
        sender=actor_pb2.Actor(
            role=actor_pb2.Role.ValueType(item.role), subject=item.subject, display_name=item.name
        ),
        client_msg_id=item.client_msg_id,
        content=conversation_pb2.Content.FromString(WITHHELD if withheld else item.body),
        create_time=to_timestamp(item.created_at),
        edit_time=to_timestamp(item.changed_at) if item.changed_at else None,
    )


def customer(item: Customer) -> customer_pb2.Customer:
    """Return a customer as callers see it."""
    return customer_pb2.Customer(
        customer_id=item.customer_id,
        display_name=item.display_name,
        email=item.email,
        mobile=item.mobile,
        mobile_raw=item.mobile_raw,
        identities=[
            customer_pb2.Identity(namespace=identity.namespace, value=identity.value)
            for identity in item.identities
        ],
        version=item.version,
        create_time=to_timestamp(item.created_at),
        update_time=to_timestamp(item.updated_at),
    )


def agent(item: Agent, *, connected: bool) -> agent_pb2.Agent:
    """Return an agent as callers see it."""
    return agent_pb2.Agent(
        agent_id=item.agent_id,
        display_name=item.display_name,
        status=agent_pb2.AgentStatus.ValueType(int(item.status)),
        capacity=item.capacity,
        active_conversations=item.active,
        connected=connected,
        idle_since=to_timestamp(item.idle_since),
        version=item.version,
        disabled=item.disabled,
        bot=item.bot,
    )


def tenant(item: Tenant) -> tenant_pb2.Tenant:
    """Return a tenant as operators of the suite see it."""
    return tenant_pb2.Tenant(
        tenant_id=item.tenant_id,
        display_name=item.display_name,
        disabled=item.disabled,
        version=item.version,
        create_time=to_timestamp(item.created_at),
        update_time=to_timestamp(item.updated_at),
    )


def integration_key(item: IntegrationKey) -> integration_key_pb2.IntegrationKey:
    """Return an integration key as operators see it, without its secret."""
    return integration_key_pb2.IntegrationKey(
        key_id=item.key_id,
        system_id=item.system_id,
        display_name=item.display_name,
        revoked=item.revoked,
        version=item.version,
        create_time=to_timestamp(item.created_at),
        update_time=to_timestamp(item.updated_at),
    )


def attachment(item: Attachment) -> attachment_pb2.Attachment:
    """Return an attachment as callers see it."""
    return attachment_pb2.Attachment(
        attachment_id=item.attachment_id,
        conversation_id=item.conversation_id,
        file_name=item.file_name,
        content_type=item.content_type,
        size_bytes=item.size_bytes,
        sha256=item.sha256,
        state=attachment_pb2.AttachmentState.ValueType(int(item.state)),
        uploader=actor_pb2.Actor(
            role=actor_pb2.Role.ValueType(item.uploader_role),
            subject=item.uploader_id,
            display_name=item.uploader_name,
        ),
        create_time=to_timestamp(item.created_at),
    )


def signed_url(item: Signed, expires: int) -> attachment_service_pb2.SignedUrl:
    """Return a URL that is good until `expires` (microseconds since 1970)."""
    return attachment_service_pb2.SignedUrl(
        method=item.method,
        url=item.url,
        headers=[
            attachment_service_pb2.HttpHeader(name=name, value=value)
            for name, value in item.headers.items()
        ],
        expire_time=to_timestamp(expires),
    )


def receipt(item: Receipt) -> conversation_pb2.Receipt:
    """Return how far a user has got."""
    return conversation_pb2.Receipt(
        conversation_id=item.conversation_id,
        user=actor_pb2.Actor(role=actor_pb2.Role.ValueType(item.role), subject=item.subject),
        delivered_seq=item.delivered_seq,
        read_seq=item.read_seq,
    )
