"""Receipts and typing: passed on to the conversation's owner, and lost when there is none for a moment."""

from __future__ import annotations

from zlib import crc32

from deskwire.gateway.v1 import frame_pb2
from deskwire.shard.v1 import shard_service_pb2 as pb
from deskwire_gateway.items import up_item
from deskwire_gateway.owner_map import OwnerMap
from deskwire_gateway.session import Session


class Signals:
    """Signals may be lost: a client repeats its last receipt after a break."""

    def __init__(self, owners: OwnerMap) -> None:
        self._owners = owners

    def receipt(self, session: Session, conversation_id: str, *, delivered: int, read: int) -> None:
        """Pass on how far a user has got."""
        receipt = pb.LinkReceipt(
            connection_id=session.number,
            conversation_id=conversation_id,
            delivered_seq=delivered,
            read_seq=read,
        )
        self._put(session, conversation_id, up_item(receipt=receipt))

    def typing(self, session: Session, typing: frame_pb2.Typing) -> None:
        """Pass on that a user is typing, or has stopped."""
        item = pb.LinkTyping(
            connection_id=session.number,
            conversation_id=typing.conversation_id,
            typing=typing.typing,
        )
        self._put(session, typing.conversation_id, up_item(typing=item))

    def _put(self, session: Session, conversation_id: str, item: bytes) -> None:
        owner = self._owners.owner_of(crc32(conversation_id.encode()))
        if owner is not None:
            owner[0].put(item, session)
