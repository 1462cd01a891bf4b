"""What people see of each other: receipts, typing, presence, and the queue."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deskwire.chat.v1 import (
    conversation_pb2,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
)
from deskwire.gateway.v1 import frame_pb2
from deskwire_common.auth import Role, TokenSigner
from support import eventually
from support.suite import Desk, desk, new_id
from support.wire import Wire, wire


@pytest.fixture
async def d(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Desk]:
    async with desk(database_url, kafka, valkey, keys_file, signer) as found:
        yield found


async def receipt(socket: Wire) -> tuple[str, int, int]:
    """The next receipt: who, delivered, read."""
    while True:
        push = await socket.hear("push")
        if push.HasField("receipt"):
            found = push.receipt
            return found.user.subject, found.delivered_seq, found.read_seq


async def stored(d: Desk, conversation: str) -> dict[str, tuple[int, int]]:
    stub = conversation_service_pb2_grpc.ConversationServiceStub(d.channel(Role.OPERATOR, "olga"))
    found = await stub.ListMessages(
        conversation_service_pb2.ListMessagesRequest(conversation_id=conversation)
    )
    return {each.user.subject: (each.delivered_seq, each.read_seq) for each in found.receipts}


async def test_receipts_move_forward_and_never_back(d: Desk) -> None:
    ann_token = d.token(Role.AGENT, "ann")
    async with wire(d, d.token(Role.VISITOR, "1")) as visitor, wire(d, ann_token) as ann:
        await d.available("ann")
        conversation = new_id()
        await visitor.send(conversation, "hello")
        assert (await ann.hear("push")).conversation.agent_id == "ann"

        async def say(who: Wire, kind: str, seq: int) -> None:
            of = frame_pb2.Read if kind == "read" else frame_pb2.Delivered
            await who.say(**{kind: of(conversation_id=conversation, seq=seq)})

        await say(ann, "delivered", 1)
        assert await receipt(visitor) == ("ann", 1, 0)
        # What is read has arrived; more than there is means all there is (the greeting is the second one).
        await say(ann, "read", 1_000)
        assert await receipt(visitor) == ("ann", 2, 2)
        await visitor.send(conversation, "three")
        await say(ann, "read", 1)
        await say(ann, "delivered", 3)
        assert await receipt(visitor) == ("ann", 3, 2)
        await say(visitor, "read", 2)
        assert await receipt(ann) == ("1", 2, 2)
        assert await stored(d, conversation) == {"ann": (3, 2), "1": (2, 2)}

        # History has them, too.
        await ann.say(sync=frame_pb2.Sync(conversation_id=conversation))
        synced = await ann.hear("synced")
        assert {(each.user.subject, each.read_seq) for each in synced.receipts} == {
            ("ann", 2),
            ("1", 2),
        }
        assert synced.conversation.state == conversation_pb2.CONVERSATION_STATE_ACTIVE

    # Only those who take part say how far they are.
    async with (
        wire(d, d.token(Role.AGENT, "bob")) as bob,
        wire(d, d.token(Role.VISITOR, "2")) as eve,
    ):
        await bob.say(read=frame_pb2.Read(conversation_id=conversation, seq=1))
        assert await bob.refused() == "NOT_A_PARTICIPANT"
        for unknown in (conversation, new_id()):
            await eve.say(delivered=frame_pb2.Delivered(conversation_id=unknown, seq=1))
            assert await eve.refused() == "CONVERSATION_NOT_FOUND"
        await eve.say(read=frame_pb2.Read(conversation_id="x", seq=1))
        assert await eve.refused() == "INVALID_FIELD"
    assert await stored(d, conversation) == {"ann": (3, 2), "1": (2, 2)}


async def test_the_client_says_what_has_arrived_and_what_was_read(d: Desk) -> None:
    ann = await d.client(Role.AGENT, "ann")
    await d.available("ann")
    visitor = await d.client(Role.VISITOR, "1")
    conversation = new_id()
    await visitor.send(conversation, "hello")

    async def are(expected: dict[str, tuple[int, int]]) -> bool:
        return await stored(d, conversation) == expected

    await eventually(lambda: are({"ann": (2, 0), "1": (2, 0)}))
    await visitor.send(conversation, "three")
    ann.read(conversation)
    await eventually(lambda: are({"ann": (3, 3), "1": (3, 0)}))


async def test_typing_is_told_to_the_others_and_forgotten(d: Desk) -> None:
    async with (
        wire(d, d.token(Role.VISITOR, "1")) as visitor,
        wire(d, d.token(Role.AGENT, "ann")) as ann,
        wire(d, d.token(Role.AGENT, "bob")) as bob,
    ):
        await d.available("ann")
        conversation = new_id()
        await visitor.send(conversation, "hello")
        assert (await ann.hear("push")).conversation.agent_id == "ann"
        # Somebody else's conversation, and nobody's: nobody hears of it, and it isn't worth an answer.
        for unknown in (conversation, new_id()):
            await bob.say(typing=frame_pb2.Typing(conversation_id=unknown, typing=True))
        await ann.say(typing=frame_pb2.Typing(conversation_id=conversation, typing=True))
        # Again, too soon: the others know.
        await ann.say(typing=frame_pb2.Typing(conversation_id=conversation, typing=True))
        await ann.say(typing=frame_pb2.Typing(conversation_id=conversation, typing=False))
        heard = [await visitor.hear("typing") for _ in range(2)]
        assert [(each.user.subject, each.typing) for each in heard] == [
            ("ann", True),
            ("ann", False),
        ]
        number = visitor.number
        await visitor.say(ping=frame_pb2.Ping(id=1))
        await visitor.hear("pong")
        assert visitor.number == number


async def test_presence_is_told_at_once_when_somebody_comes_and_later_when_they_leave(
    d: Desk,
) -> None:
    def of(presence: frame_pb2.Presence) -> tuple[str, bool]:
        return presence.user.subject, presence.online

    token = d.token(Role.AGENT, "ann")
    async with wire(d, d.token(Role.VISITOR, "1")) as visitor:
        conversation = new_id()
        async with wire(d, token) as ann:
            await d.available("ann")
            await visitor.send(conversation, "hello")
            # They are introduced to each other.
            assert of(await visitor.hear("presence")) == ("ann", True)
            assert of(await ann.hear("presence")) == ("1", True)
            await ann.say(goodbye=frame_pb2.Goodbye(code=1000))
            await ann.socket.wait_closed()
        assert of(await visitor.hear("presence")) == ("ann", False)
        async with wire(d, token) as back:
            assert of(await visitor.hear("presence")) == ("ann", True)
            assert of(await back.hear("presence")) == ("1", True)
            # A connection that breaks isn't told of when it is back in a moment, and is when it isn't.
            back.socket.transport.abort()
            await back.socket.wait_closed()
            async with wire(d) as resumed:
                assert (await resumed.resume(token, back)).lossless
                assert of(await visitor.hear("presence")) == ("ann", True)
                resumed.socket.transport.abort()
                await resumed.socket.wait_closed()
                assert of(await visitor.hear("presence")) == ("ann", False)


async def test_agents_see_their_queue(d: Desk) -> None:
    async def queue(agent: Wire, waiting: int) -> Any:
        while True:
            push = await agent.hear("push")
            if push.HasField("queue") and push.queue.waiting == waiting:
                return push.queue

    async with wire(d, d.token(Role.AGENT, "ann")) as ann:
        assert not (await queue(ann, 0)).HasField("oldest_create_time")
        async with (
            wire(d, d.token(Role.VISITOR, "1")) as one,
            wire(d, d.token(Role.VISITOR, "2")) as two,
        ):
            await one.send(new_id(), "hello")
            first = await one.hear("send_ack")
            found = await queue(ann, 1)
            assert found.oldest_create_time == first.create_time
            await two.send(new_id(), "hello")
            assert (await queue(ann, 2)).oldest_create_time == first.create_time
            # Who comes later is told, too; of another tenant's queue nobody is.
            other = d.token(Role.AGENT, "ann", tenant=f"{d.tenant}-2")
            async with wire(d, d.token(Role.AGENT, "bob")) as bob, wire(d, other) as stranger:
                await queue(bob, 2)
                await queue(stranger, 0)
            await d.available("ann")
            await queue(ann, 0)
