"""Protobuf bytes of the message path, put together from ready parts.

A committed message is encoded once, as `deskwire.chat.v1.Message`; its Push frame, its event on Kafka and the items on
the streams contain these bytes. The general encoder would walk the message again for each of them. tests/chat compares
every function here with the output of the generated classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Final

from deskwire_chat.domain.messages import Kind, Message
from deskwire_wire.protobytes import SHORT, nested, number, text, varint

_FRAME_SEND_ACK: Final = b"\x32"  # Frame.send_ack = 6
_FRAME_PUSH: Final = b"\x3a"  # Frame.push = 7
_TYPES: Final = {
    Kind.EDIT: ("message_edited", "MessageEdited"),
    Kind.REDACTION: ("message_redacted", "MessageRedacted"),
    Kind.NOTE: ("note_added", "NoteAdded"),
}
_SENT: Final = ("message_sent", "MessageSent")


@cache
def event_type(kind: int) -> bytes:
    """Return the event type of a message of this kind."""
    return _TYPES.get(Kind(kind), _SENT)[0].encode()


@cache
def _event_parts(kind: int) -> tuple[bytes, bytes]:
    """Return the encoded Event.event_type, and the start of the event's data."""
    name = f"type.googleapis.com/deskwire.events.v1.{_TYPES.get(Kind(kind), _SENT)[1]}"
    return nested(b"\x12", event_type(kind)), nested(b"\x0a", name.encode())


# There are few tenants and systems.
_known_text: Final = lru_cache(4_096)(text)


@lru_cache(64)  # all messages of a group have the same time
def timestamp(micros: int) -> bytes:
    """Return an encoded google.protobuf.Timestamp."""
    seconds, rest = divmod(micros, 1_000_000)
    return number(b"\x08", seconds) + number(b"\x10", rest * 1000)


@lru_cache(16_384)
def actor(role: int, subject: str, name: str) -> bytes:
    """Return an encoded deskwire.common.v1.Actor."""
    return number(b"\x08", role) + text(b"\x12", subject) + text(b"\x1a", name)


def message(item: Message, encoded_actor: bytes, encoded_time: bytes) -> bytes:
    """Return an encoded deskwire.chat.v1.Message; `item.body` is its encoded Content, its ids have 36 characters."""
    client_msg_id, body = item.client_msg_id.encode(), item.body
    return b"".join(
        (
            b"\x0a$",
            item.message_id.encode(),
            b"\x12$",
            item.conversation_id.encode(),
            b"\x18",
            varint(item.seq),
            b"\x22",
            SHORT[len(encoded_actor)],
            encoded_actor,
            b"\x2a",
            SHORT[len(client_msg_id)],
            client_msg_id,
            b"\x32",
            varint(len(body)),
            body,
            b"\x3a",
            SHORT[len(encoded_time)],
            encoded_time,
            nested(b"\x42", timestamp(item.changed_at)) if item.changed_at else b"",
        )
    )


def message_push(encoded_message: bytes, epoch: int) -> bytes:
    """Return an encoded Batch with one Push frame of a message."""
    push = nested(b"\x0a", encoded_message) + number(b"\x20", epoch)
    return nested(b"\x0a", nested(_FRAME_PUSH, push))


def send_ack(item: Message, epoch: int, encoded_time: bytes, *, duplicate: bool) -> bytes:
    """Return an encoded Batch with one SendAck frame."""
    client_msg_id = item.client_msg_id.encode()
    ack = b"".join(
        (
            b"\x0a$",
            item.conversation_id.encode(),
            b"\x12",
            SHORT[len(client_msg_id)],
            client_msg_id,
            b"\x1a$",
            item.message_id.encode(),
            number(b"\x20", epoch),
            b"\x28",
            varint(item.seq),
            b"\x32",
            SHORT[len(encoded_time)],
            encoded_time,
            b"\x38\x01" if duplicate else b"",
        )
    )
    return nested(b"\x0a", nested(_FRAME_SEND_ACK, ack))


def down_item(
    connection_ids: Sequence[int],
    batch: bytes,
    *,
    send_id: int = 0,
    stored: bool = False,
    ephemeral: bool = False,
    held: bool = False,
) -> bytes:
    """Return an encoded LinkResponse with one LinkDownItem; such bytes concatenate."""
    # There is nearly always only one.
    ids = (
        varint(connection_ids[0])
        if len(connection_ids) == 1
        else b"".join([varint(each) for each in connection_ids])
    )
    item = nested(b"\x0a", ids) + nested(b"\x12", batch)
    if send_id:
        item += b"\x18" + varint(send_id)
    if stored:
        item += b"\x20\x01"
    if ephemeral:
        item += b"\x30\x01"
    if held:
        item += b"\x48\x01"
    return nested(b"\x0a", item)


def not_owner_item(send_id: int) -> bytes:
    """Return an encoded LinkResponse with one LinkDownItem that gives a Send back to the gateway."""
    return nested(b"\x0a", b"\x18" + varint(send_id) + b"\x40\x01")


def refusal_item(connection_ids: Iterable[int], reason: int, why: str) -> bytes:
    """Return an encoded LinkResponse with one LinkDownItem that ends connections for good."""
    ids = b"".join([varint(connection_id) for connection_id in connection_ids])
    refusal = number(b"\x08", reason) + text(b"\x12", why)
    return nested(b"\x0a", nested(b"\x0a", ids) + nested(b"\x2a", refusal))


def message_event(
    item: Message, encoded_message: bytes, encoded_actor: bytes, encoded_time: bytes, trace_id: str
) -> bytes:
    """Return the encoded deskwire.events.v1.Event of a message; all its types hold the message in field 1."""
    encoded_type, data_type = _event_parts(item.kind)
    return b"".join(
        (
            b"\x0a$",
            item.message_id.encode(),
            encoded_type,
            _known_text(b"\x1a", item.tenant),
            b"\x22$",
            item.conversation_id.encode(),
            b"\x28",
            varint(item.seq),
            b"\x32",
            SHORT[len(encoded_time)],
            encoded_time,
            text(b"\x3a", trace_id),
            b"\x42",
            SHORT[len(encoded_actor)],
            encoded_actor,
            _known_text(b"\x4a", item.origin),
            nested(b"\x5a", data_type + nested(b"\x12", nested(b"\x0a", encoded_message))),
        )
    )
