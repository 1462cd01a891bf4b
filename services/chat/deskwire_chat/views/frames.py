"""The objects of the domain as the frames that clients get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from deskwire.gateway.v1 import frame_pb2
from deskwire_chat.domain.actors import Actor
from deskwire_chat.domain.agents import OfferEnd
from deskwire_chat.domain.conversations import Conversation
from deskwire_chat.domain.customers import Customer
from deskwire_chat.domain.messages import Message, Receipt
from deskwire_chat.views.messages import (
    conversation,
    customer,
    message,
    receipt,
)
from deskwire_common.clock import to_timestamp
from deskwire_common.pagination import fit
from deskwire_wire.batches import encoded

SYNCED_BYTES: Final = 256 * 1024
"""Most bytes of one Synced: of the 1 MiB that the gateway keeps for a slow connection, several should fit."""


def conversation_push(item: Conversation) -> bytes:
    """Return an encoded Batch that pushes a conversation."""
    return encoded(push=frame_pb2.Push(conversation=conversation(item)))


def customer_push(item: Customer) -> bytes:
    """Return an encoded Batch that pushes a customer."""
    return encoded(push=frame_pb2.Push(customer=customer(item)))


def offer_push(item: Conversation, of: Customer | None, expires_at: int) -> frame_pb2.Push:
    """Return the Push that tells an agent of an offer."""
    return frame_pb2.Push(
        offer=frame_pb2.Offer(
            conversation=conversation(item),
            customer=customer(of) if of is not None else None,
            expire_time=to_timestamp(expires_at),
        )
    )


def offer_ended(conversation_id: str, end: OfferEnd) -> bytes:
    """Return an encoded Batch that ends an offer."""
    ended = frame_pb2.OfferEnded(
        conversation_id=conversation_id, reason=frame_pb2.OfferEndReason.ValueType(int(end))
    )
    return encoded(push=frame_pb2.Push(offer_ended=ended))


def unread_push(item: Conversation, count: int) -> bytes:
    """Return an encoded Batch that tells a reader how much of a conversation they haven't read."""
    unread = frame_pb2.Unread(
        conversation_id=item.conversation_id, epoch=item.epoch, seq=item.head_seq, count=count
    )
    return encoded(push=frame_pb2.Push(unread=unread))


def heads(item: Conversation, of: Customer | None, unread: int) -> list[frame_pb2.Frame]:
    """Return the Frames with a conversation's state; for agents and bots its customer (`of`) too."""
    frames = [
        frame_pb2.Frame(
            head=frame_pb2.Head(
                conversation_id=item.conversation_id,
                epoch=item.epoch,
                seq=item.head_seq,
                unread=unread,
            )
        ),
        frame_pb2.Frame(push=frame_pb2.Push(conversation=conversation(item))),
    ]
    if of is not None:
        frames.append(frame_pb2.Frame(push=frame_pb2.Push(customer=customer(of))))
    return frames


def synced(
    item: Conversation,
    run: Sequence[Message],
    receipts: Sequence[Receipt],
    who: Actor,
    unread: int,
) -> bytes:
    """Return an encoded Batch with the messages of `run` that fit into SYNCED_BYTES."""
    return encoded(
        synced=frame_pb2.Synced(
            conversation_id=item.conversation_id,
            epoch=item.epoch,
            head_seq=item.head_seq,
            messages=fit((message(each, who) for each in run), SYNCED_BYTES),
            receipts=[receipt(each) for each in receipts],
            conversation=conversation(item),
            unread=unread,
        )
    )
