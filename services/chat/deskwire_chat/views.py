"""What chat says of its things: domain → contract messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from google.protobuf import timestamp_pb2

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
from deskwire.gateway.v1 import frame_pb2
from deskwire_chat.attachments.base import Signed
from deskwire_chat.attachments.rules import Attachment, Reference
from deskwire_chat.domain import (
    ActorRole,
    Agent,
    Conversation,
    Customer,
    IntegrationKey,
    Kind,
    Message,
    OfferEnd,
    Receipt,
    Tenant,
    Writer,
)
from deskwire_common.errors import InvalidArgument
from deskwire_wire.batches import encoded


def timestamp(micros: int) -> timestamp_pb2.Timestamp:
    """Return a Timestamp of microseconds since 1970."""
    seconds, rest = divmod(micros, 1_000_000)
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=rest * 1000)


def actor(writer: Writer) -> actor_pb2.Actor:
    """Return who caused a change."""
    return actor_pb2.Actor(
        role=actor_pb2.Role.ValueType(int(writer.role)),
        subject=writer.subject,
        display_name=writer.name,
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
        create_time=timestamp(item.created_at),
        assign_time=timestamp(item.assigned_at) if item.assigned_at else None,
        close_time=timestamp(item.closed_at) if item.closed_at else None,
        agent_role=actor_pb2.Role.ValueType(int(item.agent_role) if item.agent_id else 0),
        human_wanted=item.human_wanted,
    )


def message(item: Message, who: Writer) -> conversation_pb2.Message:
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
        create_time=timestamp(item.created_at),
        edit_time=timestamp(item.changed_at) if item.changed_at else None,
    )


def customer(item: Customer) -> customer_pb2.Customer:
    """Return a customer as callers see it."""
    return customer_pb2.Customer(
        customer_id=item.customer_id,
        display_name=item.display_name,
        email=item.email,
        mobile=item.mobile,
        identities=[
            customer_pb2.Identity(namespace=identity.namespace, value=identity.value)
            for identity in item.identities
        ],
        version=item.version,
        create_time=timestamp(item.created_at),
        update_time=timestamp(item.updated_at),
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
        idle_since=timestamp(item.idle_since),
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
        create_time=timestamp(item.created_at),
        update_time=timestamp(item.updated_at),
    )


def integration_key(item: IntegrationKey) -> integration_key_pb2.IntegrationKey:
    """Return an integration key as operators see it: nothing of its secret."""
    return integration_key_pb2.IntegrationKey(
        key_id=item.key_id,
        system_id=item.system_id,
        display_name=item.display_name,
        revoked=item.revoked,
        version=item.version,
        create_time=timestamp(item.created_at),
        update_time=timestamp(item.updated_at),
    )


def conversation_push(item: Conversation) -> bytes:
    """Return an encoded Batch that pushes a conversation."""
    return encoded(push=frame_pb2.Push(conversation=conversation(item)))


def customer_push(item: Customer) -> bytes:
    """Return an encoded Batch that pushes a customer."""
    return encoded(push=frame_pb2.Push(customer=customer(item)))


def offer_push(item: Conversation, of: Customer | None, expires_at: int) -> frame_pb2.Push:
    """Return what an agent is told of an offer."""
    return frame_pb2.Push(
        offer=frame_pb2.Offer(
            conversation=conversation(item),
            customer=customer(of) if of is not None else None,
            expire_time=timestamp(expires_at),
        )
    )


def offer_ended(conversation_id: str, end: OfferEnd) -> bytes:
    """Return an encoded Batch that ends an offer."""
    ended = frame_pb2.OfferEnded(
        conversation_id=conversation_id, reason=frame_pb2.OfferEndReason.ValueType(int(end))
    )
    return encoded(push=frame_pb2.Push(offer_ended=ended))


def heads(item: Conversation, of: Customer | None) -> list[frame_pb2.Frame]:
    """Return the Frames that tell where a conversation stands; to agents and bots also whose it is."""
    frames = [
        frame_pb2.Frame(
            head=frame_pb2.Head(
                conversation_id=item.conversation_id, epoch=item.epoch, seq=item.head_seq
            )
        ),
        frame_pb2.Frame(push=frame_pb2.Push(conversation=conversation(item))),
    ]
    if of is not None:
        frames.append(frame_pb2.Frame(push=frame_pb2.Push(customer=customer(of))))
    return frames


WITHHELD: Final = conversation_pb2.Content(withheld=conversation_pb2.Withheld()).SerializeToString()
REDACTED: Final = conversation_pb2.Content(redacted=conversation_pb2.Redacted()).SerializeToString()


def kind_of(content: conversation_pb2.Content) -> tuple[Kind, int]:
    """Return what a client wants to write, and the seq of the message that it changes.

    Raises InvalidArgument for kinds that only the server writes.
    """
    kind = content.WhichOneof("kind")
    if kind == "edit":
        return Kind.EDIT, content.edit.seq
    if kind == "redaction":
        return Kind.REDACTION, content.redaction.seq
    if kind == "note":
        return Kind.NOTE, 0
    if kind == "attachment":
        return Kind.ATTACHMENT, 0
    if kind != "text":
        raise InvalidArgument(f"content.{kind} is for the server to say", field="content")
    return Kind.TEXT, 0


def edited(body: bytes) -> bytes:
    """Return the body of a message after the edit that is encoded in `body`."""
    return text_content(conversation_pb2.Content.FromString(body).edit.text)


def reference_of(body: bytes) -> Reference:
    """Return what the body of an ATTACHMENT message says of its file."""
    said = conversation_pb2.Content.FromString(body).attachment
    return Reference(said.attachment_id.lower(), said.file_name, said.content_type, said.size_bytes)


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
        create_time=timestamp(item.created_at),
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
        expire_time=timestamp(expires),
    )


def text_content(text: str) -> bytes:
    """Return an encoded Content of plain text: the body of a message."""
    return conversation_pb2.Content(text=text).SerializeToString()


def receipt(item: Receipt) -> conversation_pb2.Receipt:
    """Return how far somebody has got."""
    return conversation_pb2.Receipt(
        conversation_id=item.conversation_id,
        user=actor_pb2.Actor(role=actor_pb2.Role.ValueType(item.role), subject=item.subject),
        delivered_seq=item.delivered_seq,
        read_seq=item.read_seq,
    )


def synced(
    item: Conversation, run: Sequence[Message], receipts: Sequence[Receipt], who: Writer
) -> bytes:
    """Return an encoded Batch with a run of messages."""
    return encoded(
        synced=frame_pb2.Synced(
            conversation_id=item.conversation_id,
            epoch=item.epoch,
            head_seq=item.head_seq,
            messages=[message(each, who) for each in run],
            receipts=[receipt(each) for each in receipts],
            conversation=conversation(item),
        )
    )
