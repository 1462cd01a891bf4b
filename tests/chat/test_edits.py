"""Messages that are edited or taken back, and notes that only the desk sees: in pushes, history and on Kafka."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from deskwire.chat.v1 import (
    conversation_pb2,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
)
from deskwire.gateway.v1 import frame_pb2
from deskwire_common import events, topics
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.errors import from_rpc_error
from deskwire_common.kafka import Reader
from support import eventually
from support.suite import Desk, desk, new_id
from support.wire import Wire, reason, wire


@pytest.fixture
async def d(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Desk]:
    async with desk(database_url, kafka, valkey, keys_file, signer) as found:
        yield found


async def say(who: Wire, conversation: str, client_msg_id: str = "", **content: Any) -> str:
    """Send some content: "" when it is stored, else the reason why not."""
    send = frame_pb2.Send(
        conversation_id=conversation,
        client_msg_id=client_msg_id or new_id(),
        content=conversation_pb2.Content(**content),
    )
    await who.say(send=send)
    answer = await who.hear_one_of("send_ack", "error")
    return "" if isinstance(answer, frame_pb2.SendAck) else reason(answer.reason)


async def pushed(who: Wire) -> conversation_pb2.Message:
    while True:
        push = await who.hear("push")
        if push.HasField("message"):
            found: conversation_pb2.Message = push.message
            return found


def shown(item: conversation_pb2.Message) -> tuple[int, str, str]:
    """Its seq, what it is, and its text."""
    kind = item.content.WhichOneof("kind")
    said = getattr(item.content, str(kind))
    return item.seq, str(kind), said if isinstance(said, str) else getattr(said, "text", "")


async def history(d: Desk, conversation: str, role: Role, subject: str) -> list[Any]:
    stub = conversation_service_pb2_grpc.ConversationServiceStub(d.channel(role, subject))
    found = await stub.ListMessages(
        conversation_service_pb2.ListMessagesRequest(conversation_id=conversation)
    )
    return list(found.messages)


async def published(kafka: str, conversation: str, count: int) -> list[tuple[str, int, str]]:
    """The events of a conversation, in their order: type, sequence, kind of content."""
    reader = Reader(kafka, [topics.MESSAGES.name], start="earliest")
    await reader.start()
    found: list[tuple[str, int, str]] = []
    try:
        while len(found) < count:
            for record in await reader.read(1_000, 0.2):
                event = events.decode(topics.MESSAGES, record.value, record.headers)
                if event.subject == conversation:
                    message = events.to_json(event)["data"]["message"]
                    assert event.event_id == message["message_id"]
                    kind = next(iter(message["content"]))
                    found.append((event.event_type, event.sequence, kind))
    finally:
        await reader.close()
    return found


async def test_edits_redactions_and_notes(d: Desk, kafka: str) -> None:
    async with (
        wire(d, d.token(Role.VISITOR, "1")) as visitor,
        wire(d, d.token(Role.AGENT, "ann")) as ann,
    ):
        await d.available("ann")
        conversation = new_id()
        assert await say(visitor, conversation, "m-1", text="my card is 4711") == ""
        assert shown(await pushed(visitor))[1] == "text"  # the greeting
        assert await say(visitor, conversation, text="helo") == ""
        assert [shown(await pushed(ann))[0] for _ in range(2)] == [2, 3]

        # An edit is an entry of its own, and history has the new text.
        assert await say(visitor, conversation, edit={"seq": 3, "text": "hello"}) == ""
        assert shown(await pushed(ann)) == (4, "edit", "hello")

        # A note keeps its place, and is withheld from the visitor.
        assert await say(ann, conversation, note={"text": "be careful"}) == ""
        withheld = await pushed(visitor)
        assert shown(withheld) == (5, "withheld", "")
        assert b"careful" not in withheld.SerializeToString()

        # The agent takes back what the visitor shouldn't have said, and the visitor what they edited.
        assert await say(ann, conversation, redaction={"seq": 1, "reason": "a card"}) == ""
        assert shown(await pushed(visitor)) == (6, "redaction", "")
        assert await say(visitor, conversation, redaction={"seq": 3}) == ""
        assert shown(await pushed(ann)) == (7, "redaction", "")

        expected = [
            (1, "redacted", ""),
            (2, "text", "Hello, you are talking with ann. How can I help you?"),
            (3, "redacted", ""),
            (4, "redacted", ""),
            (5, "note", "be careful"),
            (6, "redaction", ""),
            (7, "redaction", ""),
        ]
        found = await history(d, conversation, Role.OPERATOR, "olga")
        assert [shown(each)[:2] for each in found] == [each[:2] for each in expected]
        assert shown(found[4]) == expected[4]
        assert found[0].HasField("edit_time")
        assert not found[1].HasField("edit_time")
        for_visitor = await history(d, conversation, Role.VISITOR, "1")
        assert shown(for_visitor[4]) == (5, "withheld", "")
        await visitor.say(sync=frame_pb2.Sync(conversation_id=conversation))
        synced = await visitor.hear("synced")
        assert [shown(each) for each in synced.messages] == [shown(each) for each in for_visitor]
        everything = b"".join(each.SerializeToString() for each in [*found, *for_visitor])
        assert b"my card is 4711" not in everything
        assert b"hello" not in everything

        # What was sent before a redaction is still known: a repeated Send isn't stored again.
        send = frame_pb2.Send(conversation_id=conversation, client_msg_id="m-1")
        send.content.text = "my card is 4711"
        await visitor.say(send=send)
        again = await visitor.hear("send_ack")
        assert (again.seq, again.duplicate) == (1, True)

    assert await published(kafka, conversation, 7) == [
        ("message_sent", 1, "text"),
        ("message_sent", 2, "text"),
        ("message_sent", 3, "text"),
        ("message_edited", 4, "edit"),
        ("note_added", 5, "note"),
        ("message_redacted", 6, "redaction"),
        ("message_redacted", 7, "redaction"),
    ]


async def test_a_message_and_its_edit_may_be_stored_together(d: Desk) -> None:
    async with wire(d, d.token(Role.VISITOR, "1")) as visitor:
        conversation = new_id()
        frames = []
        for number, content in enumerate(
            (
                {"text": "one"},
                {"edit": {"seq": 1, "text": "two"}},
                {"text": "three"},
                {"edit": {"seq": 3, "text": "four"}},
                {"redaction": {"seq": 3}},
                {"edit": {"seq": 3, "text": "five"}},
            )
        ):
            send = frame_pb2.Send(conversation_id=conversation, client_msg_id=f"m-{number}")
            send.content.CopyFrom(conversation_pb2.Content(**content))  # type: ignore[arg-type]
            frames.append(frame_pb2.Frame(send=send))
        await visitor.raw(frame_pb2.Batch(frames=frames).SerializeToString())
        assert await visitor.refused() == "MESSAGE_UNCHANGEABLE"
        found = await history(d, conversation, Role.OPERATOR, "olga")
        assert [shown(each) for each in found] == [
            (1, "text", "two"),
            (2, "edit", "two"),
            (3, "redacted", ""),
            (4, "redacted", ""),
            (5, "redaction", ""),
        ]


async def test_what_may_not_be_changed(d: Desk) -> None:
    async with (
        wire(d, d.token(Role.VISITOR, "1")) as visitor,
        wire(d, d.token(Role.AGENT, "ann")) as ann,
    ):
        await d.available("ann")
        conversation = new_id()
        await say(visitor, conversation, text="one")
        await pushed(ann)
        await say(ann, conversation, note={"text": "three"})
        refusals = {
            "NOT_A_PARTICIPANT": (ann, {"edit": {"seq": 1, "text": "x"}}),
            "ROLE_NOT_ALLOWED": (visitor, {"note": {"text": "x"}}),
            "INVALID_FIELD": (visitor, {"edit": {"seq": 1, "text": ""}}),
        }
        for expected, (who, content) in refusals.items():
            assert await say(who, conversation, **content) == expected
        for content in ({"withheld": {}}, {"redacted": {}}):
            assert await say(ann, conversation, **content) == "INVALID_FIELD"
        # The greeting, an entry that isn't text, and what a visitor can't see or isn't there.
        assert await say(ann, conversation, redaction={"seq": 2}) == "MESSAGE_UNCHANGEABLE"
        assert await say(ann, conversation, edit={"seq": 3, "text": "x"}) == "MESSAGE_UNCHANGEABLE"
        for seq in (3, 9):
            assert await say(visitor, conversation, redaction={"seq": seq}) == "MESSAGE_NOT_FOUND"
        # A conversation isn't opened by one.
        assert await say(visitor, new_id(), redaction={"seq": 1}) == "CONVERSATION_NOT_FOUND"

    # The same over unary calls.
    stub = conversation_service_pb2_grpc.ConversationServiceStub(d.channel(Role.VISITOR, "1"))

    async def send(**content: Any) -> Any:
        return await stub.SendMessage(
            conversation_service_pb2.SendMessageRequest(
                conversation_id=conversation,
                client_msg_id=new_id(),
                content=conversation_pb2.Content(**content),
            )
        )

    edit = await send(edit={"seq": 1, "text": "uno"})
    assert shown(edit.message) == (4, "edit", "uno")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await send(redacted={})
    assert from_rpc_error(refused.value).reason_name == "INVALID_FIELD"
    assert shown((await history(d, conversation, Role.VISITOR, "1"))[0]) == (1, "text", "uno")


async def test_the_reference_client_changes_what_was_said(d: Desk) -> None:
    ann = await d.client(Role.AGENT, "ann")
    await d.available("ann")
    visitor = await d.client(Role.VISITOR, "1")
    conversation = new_id()
    await visitor.send(conversation, "one")
    await eventually(lambda: ann.position(conversation) == 2)
    await visitor.edit(conversation, 1, "uno")
    await ann.note(conversation, "Italian")
    await ann.redact(conversation, 1, "a test")
    found = await history(d, conversation, Role.AGENT, "ann")
    assert [shown(each)[1] for each in found] == [
        "redacted",
        "text",
        "redacted",
        "note",
        "redaction",
    ]
