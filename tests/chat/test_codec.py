"""The bytes of the message path are those that the generated classes give."""

from __future__ import annotations

from typing import Any

import pytest

from deskwire.chat.v1 import conversation_pb2
from deskwire.common.v1 import actor_pb2
from deskwire.events.v1 import chat_events_pb2, event_pb2
from deskwire.gateway.v1 import frame_pb2
from deskwire.shard.v1 import shard_service_pb2 as shard_pb
from deskwire_chat.domain.messages import Kind, Message
from deskwire_chat.log import codec
from deskwire_chat.views.content import text_content
from deskwire_common.clock import to_timestamp
from deskwire_wire import protobytes
from support.suite import a_message

SIZES = [0, 1, 127, 128, 16_383, 16_384, 2**31, 2**63]


def expected(item: Message) -> conversation_pb2.Message:
    return conversation_pb2.Message(
        message_id=item.message_id,
        conversation_id=item.conversation_id,
        seq=item.seq,
        sender=actor_pb2.Actor(
            role=actor_pb2.Role.ValueType(item.role), subject=item.subject, display_name=item.name
        ),
        client_msg_id=item.client_msg_id,
        content=conversation_pb2.Content.FromString(item.body),
        create_time=to_timestamp(item.created_at),
        edit_time=to_timestamp(item.changed_at) if item.changed_at else None,
    )


MESSAGES = [
    a_message(),
    a_message(seq=2**32 - 1, name="", client_msg_id="x" * 64, body=text_content("x" * 8_000)),
    a_message(changed_at=1_795_532_271_000_001, created_at=1_795_532_270_000_000),
    a_message(body=text_content("字" * 8_000), kind=int(Kind.NOTE)),
]


def encoded(item: Message) -> tuple[bytes, bytes, bytes]:
    actor = codec.actor(item.role, item.subject, item.name)
    time = codec.timestamp(item.created_at)
    return codec.message(item, actor, time), actor, time


@pytest.mark.parametrize("number", SIZES)
def test_numbers(number: int) -> None:
    item = shard_pb.LinkSend(send_id=number).SerializeToString()
    assert protobytes.number(b"\x10", number) == item
    batch = b"x" * min(number, 20_000)
    down = shard_pb.LinkDownItem(batch=batch).SerializeToString()
    assert (protobytes.nested(b"\x12", batch) if batch else b"") == down
    assert protobytes.text(b"\x12", "ü" * len(batch)) == (
        shard_pb.LinkReceipt(conversation_id="ü" * len(batch)).SerializeToString()
    )


@pytest.mark.parametrize("item", MESSAGES)
def test_a_message_and_its_frames(item: Message) -> None:
    message, _, time = encoded(item)
    assert message == expected(item).SerializeToString()
    push = frame_pb2.Push(message=expected(item), epoch=3)
    assert codec.message_push(message, 3) == (
        frame_pb2.Batch(frames=[frame_pb2.Frame(push=push)]).SerializeToString()
    )
    for duplicate in (False, True):
        ack = frame_pb2.SendAck(
            conversation_id=item.conversation_id,
            client_msg_id=item.client_msg_id,
            message_id=item.message_id,
            epoch=3,
            seq=item.seq,
            create_time=to_timestamp(item.created_at),
            duplicate=duplicate,
        )
        assert codec.send_ack(item, 3, time, duplicate=duplicate) == (
            frame_pb2.Batch(frames=[frame_pb2.Frame(send_ack=ack)]).SerializeToString()
        )


@pytest.mark.parametrize("item", MESSAGES)
def test_its_event(item: Message) -> None:
    message, actor, time = encoded(item)
    event = event_pb2.Event(
        event_id=item.message_id,
        event_type="note_added" if item.kind == Kind.NOTE else "message_sent",
        tenant_id=item.tenant,
        subject=item.conversation_id,
        sequence=item.seq,
        occurred_at=to_timestamp(item.created_at),
        trace_id="0af7651916cd43dd8448eb211c80319c",
        actor=expected(item).sender,
        origin=item.origin,
    )
    data: Any = chat_events_pb2.NoteAdded if item.kind == Kind.NOTE else chat_events_pb2.MessageSent
    event.data.Pack(data(message=expected(item)))
    found = codec.message_event(item, message, actor, time, event.trace_id)
    assert found == event.SerializeToString(deterministic=True)


@pytest.mark.parametrize("ids", [[1], [300, 70_000], []])
def test_what_goes_down_a_link(ids: list[int]) -> None:
    for more in ({}, {"send_id": 2**40, "stored": True}, {"ephemeral": True}, {"held": True}):
        item = shard_pb.LinkDownItem(connection_ids=ids, batch=b"bytes", **more)
        got = shard_pb.LinkResponse.FromString(codec.down_item(ids, b"bytes", **more))
        assert list(got.items) == [item]
    refused = shard_pb.LinkResponse.FromString(codec.refusal_item(ids, 25, "no"))
    assert refused.items[0].refusal == shard_pb.Refusal(reason=25, message="no")  # type: ignore[arg-type]
    given_back = shard_pb.LinkResponse.FromString(codec.not_owner_item(2**40))
    assert list(given_back.items) == [shard_pb.LinkDownItem(send_id=2**40, not_owner=True)]
