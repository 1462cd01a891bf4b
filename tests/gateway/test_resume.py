"""Sessions that outlive their connection: what was missed comes again, and nothing is promised that isn't so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from deskwire.chat.v1 import conversation_service_pb2, conversation_service_pb2_grpc
from deskwire.gateway.v1 import frame_pb2
from deskwire_client import Client
from deskwire_common.auth import Role
from support import eventually
from support.suite import Desk, Start, new_id
from support.wire import Wire, wire


async def talk(d: Desk, visitor: Wire) -> tuple[str, Client]:
    """A conversation of a visitor with the agent ann."""
    ann = await d.client(Role.AGENT, "ann", receipts=False)
    await d.available("ann")
    conversation = new_id()
    await visitor.send(conversation, "hello")
    await visitor.hear("send_ack")
    greeting = await message(visitor)
    assert greeting.seq == 2
    return conversation, ann


async def message(visitor: Wire) -> Any:
    """The next message that is pushed."""
    while True:
        push = await visitor.hear("push")
        if push.HasField("message"):
            return push.message


async def cut(broken: Wire) -> None:
    """As when the network goes away: no Goodbye, no close frame."""
    broken.socket.transport.abort()
    await broken.socket.wait_closed()


@asynccontextmanager
async def again(d: Desk, token: str, before: Wire) -> AsyncIterator[tuple[Wire, frame_pb2.Resumed]]:
    async with wire(d) as found:
        yield found, await found.resume(token, before)


async def test_what_was_missed_comes_again_twice_in_a_row(start: Start) -> None:
    async with start() as d:
        token = d.token(Role.VISITOR, "1")
        async with wire(d, token) as first:
            conversation, ann = await talk(d, first)
            await cut(first)
            await ann.send(conversation, "three")
            await ann.send(conversation, "four")
        async with again(d, token, first) as (second, resumed):
            assert resumed == frame_pb2.Resumed(lossless=True)
            assert second.welcome.session_id == first.welcome.session_id
            assert [(await message(second)).seq for _ in range(2)] == [3, 4]
            number = second.number
            await ann.send(conversation, "five")
            await cut(second)
            await ann.send(conversation, "six")
        # It had heard up to four, and so it says.
        assert second.number == number > first.number
        async with again(d, token, second) as (third, resumed):
            assert resumed == frame_pb2.Resumed(lossless=True)
            assert [(await message(third)).seq for _ in range(2)] == [5, 6]
            # And it goes on.
            await third.send(conversation, "seven")
            assert (await third.hear("send_ack")).seq == 7


async def test_a_connection_that_the_server_takes_for_alive_is_taken_over(start: Start) -> None:
    async with start() as d:
        token = d.token(Role.VISITOR, "1")
        async with wire(d, token) as first:
            conversation, ann = await talk(d, first)
            async with again(d, token, first) as (second, resumed):
                assert resumed.lossless
                with pytest.raises(ConnectionClosed):
                    await first.hear("push")
                await ann.send(conversation, "three")
                assert (await message(second)).seq == 3


async def test_the_first_message_after_hello_may_come_with_it(start: Start) -> None:
    async with start() as d:
        token = d.token(Role.VISITOR, "1")
        async with wire(d, token) as first:
            conversation, _ = await talk(d, first)
            await cut(first)
        async with wire(d) as second:
            hello = frame_pb2.Hello(token=token)
            hello.resume.session_id = first.welcome.session_id
            hello.resume.last_number = first.number
            send = frame_pb2.Send(conversation_id=conversation, client_msg_id="m")
            send.content.text = "three"
            frames = [frame_pb2.Frame(hello=hello), frame_pb2.Frame(send=send)]
            await second.raw(frame_pb2.Batch(frames=frames).SerializeToString())
            assert (await second.hear("resumed")).lossless
            assert (await second.hear("send_ack")).seq == 3


async def test_what_is_acknowledged_or_too_much_is_not_kept(start: Start) -> None:
    async with start(ring_bytes=1_024) as d:
        token = d.token(Role.VISITOR, "1")
        async with wire(d, token) as first:
            conversation, ann = await talk(d, first)
            had = first.number
            await ann.send(conversation, "three")
            await message(first)
            ack = frame_pb2.Batch(ack=first.number)
            ack.frames.add().ping.id = 7
            await first.raw(ack.SerializeToString())
            await first.hear("pong")
            await cut(first)
        # A client that has forgotten what it had acknowledged.
        first.number = had
        async with again(d, token, first) as (second, resumed):
            assert resumed == frame_pb2.Resumed()
            head = await second.hear("head")
            assert (head.conversation_id, head.seq) == (conversation, 3)
            await cut(second)
            await ann.send(conversation, "x" * 1_500)
        async with again(d, token, second) as (third, resumed):
            assert resumed == frame_pb2.Resumed()
            assert (await third.hear("head")).seq == 4
            await ann.send(conversation, "five")
            assert (await message(third)).seq == 5
            await cut(third)
            await ann.send(conversation, "six")
        # What fits is lossless again.
        async with again(d, token, third) as (fourth, resumed):
            assert resumed == frame_pb2.Resumed(lossless=True)
            assert (await message(fourth)).seq == 6


async def test_other_users_and_old_sessions_begin_anew(start: Start) -> None:
    async with start(resume_window=0.5) as d:
        token = d.token(Role.VISITOR, "1")
        async with wire(d, token) as first:
            conversation, _ = await talk(d, first)
            await cut(first)
        async with again(d, d.token(Role.VISITOR, "2"), first) as (other, resumed):
            assert resumed == frame_pb2.Resumed(reset=True)
            assert other.welcome.session_id != first.welcome.session_id
            await other.send(conversation, "not mine")
            assert await other.refused() == "CONVERSATION_NOT_FOUND"

        stub = conversation_service_pb2_grpc.ConversationServiceStub(
            d.channel(Role.OPERATOR, "olga")
        )

        async def is_over() -> bool:
            async with again(d, token, first) as (found, resumed):
                if resumed.lossless:
                    await cut(found)
                    return False
                assert resumed == frame_pb2.Resumed(reset=True)
                assert (await found.hear("head")).conversation_id == conversation
                return True

        await eventually(is_over, interval=1.2, timeout=30)
        # Numbers that a server never gave are no session's, either.
        first.number = 10_000
        async with again(d, token, first) as (_, resumed):
            assert resumed.reset
        found = await stub.GetConversation(
            conversation_service_pb2.GetConversationRequest(conversation_id=conversation)
        )
        assert found.conversation.head_seq == 2


async def test_who_said_goodbye_does_not_come_back(start: Start) -> None:
    async with start() as d:
        token = d.token(Role.VISITOR, "1")
        async with wire(d, token) as first:
            await first.works()
            await first.say(goodbye=frame_pb2.Goodbye(code=1000))
            await first.socket.wait_closed()
        async with again(d, token, first) as (_, resumed):
            assert resumed == frame_pb2.Resumed(reset=True)


async def test_an_agent_whose_connection_broke_gets_nothing_new(start: Start) -> None:
    async with start() as d:
        token = d.token(Role.AGENT, "ann")
        async with wire(d, token) as first:
            await d.available("ann")
            await cut(first)
        visitor = await d.client(Role.VISITOR, "1")
        conversation = new_id()
        await visitor.send(conversation, "anybody there?")
        assert not [each async for each in pushed(visitor) if each == "ACTIVE"]
        async with again(d, token, first) as (second, resumed):
            assert resumed.lossless
            assert (await second.hear("push")).conversation.conversation_id == conversation


async def pushed(client: Client) -> AsyncIterator[str]:
    """The states of conversations that were pushed until now."""
    while not client._updates.empty():
        push = client._updates.get_nowait()
        if push is not None and push.HasField("conversation"):
            yield str(push.conversation.state)


async def test_a_device_has_one_connection_the_newest(start: Start) -> None:
    async with start() as d:
        token = d.token(Role.VISITOR, "1")
        async with wire(d) as first, wire(d) as other, wire(d) as second:
            await first.greet(token, device_id="phone")
            await other.greet(token, device_id="laptop")
            await first.works()
            await second.greet(token, device_id="phone")
            assert await first.ended() == ("SESSION_REPLACED", 3504)
            await second.works()
            await other.works()


async def test_a_new_token_keeps_the_connection(start: Start) -> None:
    async with start(ping_interval=1.0, visitor_ping_interval=1.0) as d:
        # The reference client does it by itself.
        minted: list[str] = []

        def mint() -> str:
            minted.append(d.token(Role.VISITOR, "3", ttl=6))
            return minted[-1]

        async with Client(d.url, mint) as client:
            await eventually(lambda: len(minted) >= 3, timeout=30)
            await client.send(new_id(), "still here")
            assert client.reconnects == 0

        async with (
            wire(d, d.token(Role.VISITOR, "1", ttl=60)) as brief,
            wire(d, d.token(Role.VISITOR, "4", ttl=60)) as other,
        ):
            await brief.say(refresh=frame_pb2.Refresh(token=d.token(Role.VISITOR, "2")))
            assert await brief.refused() == "ROLE_NOT_ALLOWED"
            await brief.say(refresh=frame_pb2.Refresh(token="nonsense"))
            assert await brief.refused() == "TOKEN_INVALID"
            await brief.say(refresh=frame_pb2.Refresh(token=d.token(Role.VISITOR, "1", ttl=600)))
            fresh = await brief.hear("refreshed")
            assert fresh.token_expire_time.seconds > brief.welcome.token_expire_time.seconds + 500
            d.let_pass(70)
            assert await other.ended() == ("TOKEN_EXPIRED", 3001)
            await brief.works()


async def test_the_client_resumes_and_hands_out_everything_in_order(start: Start) -> None:
    async with start() as d:
        seen: list[int] = []

        def on_push(push: frame_pb2.Push) -> None:
            if push.HasField("message"):
                seen.append(push.message.seq)

        ann = await d.client(Role.AGENT, "ann")
        await d.available("ann")
        visitor = await d.client(Role.VISITOR, "1", on_push=on_push)
        conversation = new_id()
        await visitor.send(conversation, "hello")
        await eventually(lambda: len(seen) == 2)
        for number in range(5):
            broken = await eventually(lambda: visitor._connection._socket)
            broken.transport.underlying_transport.abort()
            answers = [ann.post(conversation, f"{number}.{part}") for part in range(4)]
            mine = visitor.post(conversation, f"mine {number}")
            for answer in [*answers, mine]:
                await answer
            await eventually(lambda number=number: len(seen) == 2 + 5 * (number + 1))
        assert seen == list(range(1, 28))
        assert visitor.lossless_resumes == visitor.reconnects == 5
