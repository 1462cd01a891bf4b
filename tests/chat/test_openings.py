"""How many conversations a visitor may open, and that one customer is one agent's where that can be."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from deskwire.chat.v1 import conversation_pb2
from deskwire.chat.v1 import conversation_service_pb2 as pb
from deskwire.chat.v1.conversation_service_pb2_grpc import ConversationServiceStub
from deskwire.gateway.v1 import frame_pb2
from deskwire_chat.domain.conversations import partition_of
from deskwire_chat.domain.openings import MINUTE, Opened, OpeningLimits, check_may_open
from deskwire_chat.store import conversations
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.errors import DeskwireError, ResourceExhausted, from_rpc_error
from deskwire_common.rpc import stream_metadata
from support import eventually
from support.refusals import refused
from support.servers import DatabaseServer
from support.suite import Desk, desk, new_id, owner_of_two, second_process
from support.talks import conversation, operator
from support.wire import Wire, reason, wire

ROUNDS = 4
TABS = 6


@pytest.fixture
async def d(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Desk]:
    options = {"visitor_max_open": 2, "visitor_openings_per_minute": 4}
    async with desk(database_url, kafka, valkey, keys_file, signer, chat=options) as found:
        yield found


def says(talk: str, text: str = "hello", key: str = "") -> pb.SendMessageRequest:
    return pb.SendMessageRequest(
        conversation_id=talk,
        client_msg_id=key or new_id(),
        content=conversation_pb2.Content(text=text),
    )


def stub_of(d: Desk, visitor: str, port: int = 0) -> Any:
    return ConversationServiceStub(d.channel(Role.VISITOR, visitor, port=port))


async def close(d: Desk, talk: str) -> None:
    await operator(d).CloseConversation(
        pb.CloseConversationRequest(request_id=new_id(), conversation_id=talk)
    )


async def sent_again(visitor: Wire, talk: str, text: str, key: str) -> int:
    """Send until it is taken, and return its seq: for a moment after a refusal more openings are refused unasked."""
    while True:
        await visitor.send(talk, text, key)
        answer = await visitor.hear_one_of("send_ack", "error")
        if isinstance(answer, frame_pb2.SendAck):
            return answer.seq
        assert reason(answer.reason) == "TOO_MANY_CONVERSATIONS"
        await asyncio.sleep(0.1)


async def test_a_visitor_has_so_many_open_and_no_more(d: Desk) -> None:
    async with wire(d, d.token(Role.VISITOR, "1")) as visitor:
        talks = [new_id() for _ in range(3)]
        for talk in talks[:2]:
            await visitor.send(talk, "hello")
            assert (await visitor.hear("send_ack")).seq == 1
        await visitor.send(talks[2], "one too many", "m-1")
        await visitor.send(talks[2], "and on", "m-2")
        error = await visitor.hear("error")
        assert reason(error.reason) == "TOO_MANY_CONVERSATIONS"
        assert (error.client_msg_id, error.conversation_id) == ("m-1", talks[2])
        assert error.temporary
        assert error.retry_after.seconds == 30
        assert error.metadata == {"limit": "2"}
        # What comes after it doesn't overtake it, whatever is closed meanwhile.
        assert await visitor.refused() == "LINE_HELD"
        await close(d, talks[0])
        await visitor.send(talks[2], "and on", "m-2")
        assert await visitor.refused() == "LINE_HELD"
        assert await sent_again(visitor, talks[2], "one too many", "m-1") == 1
        await visitor.send(talks[2], "and on", "m-2")
        assert (await visitor.hear("send_ack")).seq == 2
        # In those that are open everything goes on, and another visitor isn't concerned.
        await visitor.send(talks[1], "more")
        assert (await visitor.hear("send_ack")).seq == 2
    await stub_of(d, "2").SendMessage(says(new_id()))


async def test_calls_and_streams_are_refused_alike(d: Desk) -> None:
    visitor = stub_of(d, "1")
    first, second = new_id(), new_id()
    for talk in (first, second):
        await visitor.SendMessage(says(talk))
    error = await refused(visitor.SendMessage(says(new_id())))
    assert (error.code.name, error.reason_name) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CONVERSATIONS")
    assert error.retry_after == 30
    metadata = stream_metadata(d.token(Role.VISITOR, "1"))
    stream = visitor.StreamMessages(metadata=metadata)
    message = says(new_id())
    await stream.write(
        pb.StreamMessagesRequest(
            messages=[
                pb.StreamedMessage(
                    conversation_id=message.conversation_id,
                    client_msg_id="s-1",
                    content=message.content,
                )
            ]
        )
    )
    (result,) = (await stream.read()).results
    assert reason(result.error.reason) == "TOO_MANY_CONVERSATIONS"
    assert result.error.temporary
    assert result.error.retry_after.seconds == 30
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    # Nothing was made for what was refused.
    found = (await operator(d).ListConversations(pb.ListConversationsRequest())).conversations
    assert {each.conversation_id for each in found} == {first, second}


async def test_a_visitor_opens_so_many_a_minute(d: Desk) -> None:
    visitor = stub_of(d, "1")
    for _ in range(4):
        talk = new_id()
        await visitor.SendMessage(says(talk, key="m"))
        await close(d, talk)
    error = await refused(visitor.SendMessage(says(new_id())))
    assert error.reason_name == "TOO_MANY_OPENINGS"
    assert error.retry_after is not None
    assert 0 < error.retry_after <= 60
    # A repeated first message opens nothing.
    assert (await visitor.SendMessage(says(talk, key="m"))).duplicate


def test_the_next_may_come_when_the_minute_is_over() -> None:
    limits = OpeningLimits(per_minute=2)
    has = Opened(9, [0, 5 * MINUTE + 7, 5 * MINUTE])
    with pytest.raises(ResourceExhausted) as error:
        check_may_open(has, limits, 5 * MINUTE + 20_000_000)
    assert error.value.retry_after == 40
    check_may_open(has, limits, 6 * MINUTE)
    check_may_open(Opened(9, [1] * 99), OpeningLimits(), 2)


async def outcome(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        found: DeskwireError = from_rpc_error(error)
        return found.reason_name
    return "opened"


async def test_first_messages_at_once_open_no_more_than_allowed(d: Desk) -> None:
    """Of one who is no customer yet, and of one who is."""
    for number in range(ROUNDS):
        visitor = stub_of(d, f"v-{number}")
        for allowed in (2, 0):
            ends = await asyncio.gather(
                *(outcome(visitor.SendMessage(says(new_id()))) for _ in range(TABS))
            )
            wanted = Counter(opened=allowed, TOO_MANY_CONVERSATIONS=TABS - allowed)
            assert Counter(ends) == wanted


async def test_two_processes_count_as_one(
    postgres: DatabaseServer, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> None:
    url = postgres.fresh()
    options = {"visitor_max_open": 1, "lease_seconds": 1.0}
    async with (
        desk(url, kafka, valkey, keys_file, signer, chat=options) as d,
        second_process(url, kafka, keys_file, **options) as other,
    ):
        for number in range(ROUNDS):
            both = [stub_of(d, f"v-{number}"), stub_of(d, f"v-{number}", other.port)]
            ends = await asyncio.gather(
                *(outcome(stub.SendMessage(says(new_id()))) for stub in both * TABS)
            )
            assert ends.count("opened") == 1, ends
    postgres.drop(url)


async def two_agents(d: Desk, capacity: int = 5) -> None:
    for agent in ("ann", "bob"):
        await d.client(Role.AGENT, agent)
        await d.available(agent, capacity=capacity)


async def agents_of(d: Desk, talks: list[str]) -> list[str]:
    async def all_given() -> list[str]:
        found = [(await conversation(d, talk)).agent_id for talk in talks]
        assert all(found), found
        return found

    return await eventually(all_given)


async def test_two_tabs_are_one_agents(d: Desk) -> None:
    await two_agents(d)
    for number in range(ROUNDS):
        tabs = [await d.client(Role.VISITOR, f"v-{number}") for _ in range(2)]
        talks = [new_id(), new_id()]
        await asyncio.gather(
            *(tab.send(talk, "my parcel is lost") for tab, talk in zip(tabs, talks, strict=True))
        )
        assert len(set(await agents_of(d, talks))) == 1


async def test_two_processes_give_one_customer_to_one_agent(
    postgres: DatabaseServer, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> None:
    url = postgres.fresh()
    options = {"lease_seconds": 1.0}
    async with (
        desk(url, kafka, valkey, keys_file, signer, chat=options) as d,
        second_process(url, kafka, keys_file, **options),
    ):
        await two_agents(d, capacity=50)
        for number in range(ROUNDS):
            visitor = await d.client(Role.VISITOR, f"v-{number}")
            talks = [
                next(each for each in iter(new_id, "") if owner_of_two(partition_of(each)) == owner)
                for owner in ("chat-0", "chat-1")
            ]
            await asyncio.gather(*(visitor.send(talk, "hello") for talk in talks))
            assert len(set(await agents_of(d, talks))) == 1
    postgres.drop(url)


async def test_an_agent_without_room_does_not_hold_their_customer_up(d: Desk) -> None:
    await two_agents(d, capacity=1)
    visitor = await d.client(Role.VISITOR, "1")
    talks = [new_id(), new_id()]
    for talk in talks:
        await visitor.send(talk, "hello")
        await agents_of(d, [talk])
    assert set(await agents_of(d, talks)) == {"ann", "bob"}


async def test_offers_go_to_whoever_has_the_customer(
    tmp_path: Path, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> None:
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    offered: dict[str, list[str]] = {"ann": [], "bob": []}
    options = {"offer_seconds": 60}
    async with desk(url, kafka, valkey, keys_file, signer, chat=options) as d:
        for agent, theirs in offered.items():

            def note(push: Any, theirs: list[str] = theirs) -> None:
                if push.HasField("offer"):
                    theirs.append(push.offer.conversation.conversation_id)

            await d.client(Role.AGENT, agent, on_push=note)
        visitor = await d.client(Role.VISITOR, "1")
        first, second = new_id(), new_id()
        await d.available("ann")
        await visitor.send(first, "hello")
        await operator(d).TransferConversation(
            pb.TransferConversationRequest(
                request_id=new_id(), conversation_id=first, agent_id="ann"
            )
        )
        # bob has been idle longer.
        await d.available("bob")
        await visitor.send(second, "hello again")
        await eventually(lambda: second in offered["ann"] + offered["bob"])
        assert second in offered["ann"]


async def test_a_visitor_who_connects_is_told_of_the_newest(
    d: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "MOST_OPEN", 1)
    visitor = stub_of(d, "1")
    talks = [new_id(), new_id()]
    for talk in talks:
        await visitor.SendMessage(says(talk))
    async with wire(d, d.token(Role.VISITOR, "1")) as again:
        assert (await again.hear("head")).conversation_id == talks[1]
        await again.send(talks[0], "still open")
        frame = await again.hear_one_of("head", "send_ack")
        assert frame.DESCRIPTOR.name == "SendAck"
