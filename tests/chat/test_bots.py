"""Bots: routed to first, they hand over to people and get conversations back; one that dies leaves nobody alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from deskwire.chat.v1 import (
    agent_pb2,
    agent_service_pb2,
    agent_service_pb2_grpc,
    conversation_pb2,
    conversation_service_pb2_grpc,
    customer_service_pb2,
    customer_service_pb2_grpc,
)
from deskwire.chat.v1 import conversation_service_pb2 as pb
from deskwire.common.v1 import actor_pb2
from deskwire.gateway.v1 import frame_pb2, gateway_service_pb2_grpc
from deskwire_chat.domain.conversations import partition_of
from deskwire_common import topics
from deskwire_common.auth import Role, TokenSigner
from support import eventually
from support.refusals import refused
from support.servers import DatabaseServer
from support.suite import Desk, desk, new_id, owner_of_two, second_process
from support.talks import conversation, is_with
from support.topic import read_rows

QUEUED = conversation_pb2.CONVERSATION_STATE_QUEUED
ACTIVE = conversation_pb2.CONVERSATION_STATE_ACTIVE
CLOSED = conversation_pb2.CONVERSATION_STATE_CLOSED
#: Longer than it takes to come back, and short for a test.
AWAY = 1.0


@pytest.fixture
async def d(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Desk]:
    options = {"bot_away_seconds": AWAY}
    async with desk(database_url, kafka, valkey, keys_file, signer, chat=options) as found:
        yield found


class Bot:
    """A program that answers visitors, over GatewayService.Connect and the raw stubs."""

    def __init__(self, d: Desk, name: str) -> None:
        self.name = name
        self.heard: list[frame_pb2.Frame] = []
        self._desk = d
        self.conversations = conversation_service_pb2_grpc.ConversationServiceStub(
            d.channel(Role.BOT, name)
        )
        self._agents = agent_service_pb2_grpc.AgentServiceStub(
            d.channel(Role.BOT, name, name=name.title())
        )
        self._call: Any = None
        self._reading: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._desk.gateway.port}")
        self._desk.stack.push_async_callback(channel.close)
        self._call = gateway_service_pb2_grpc.GatewayServiceStub(channel).Connect()
        hello = frame_pb2.Hello(token=self._desk.token(Role.BOT, self.name, name=self.name.title()))
        await self.say(hello=hello)
        self._reading = asyncio.create_task(self._read())
        self._desk.stack.push_async_callback(self.die)
        await eventually(lambda: self.of("welcome"))

    async def die(self) -> None:
        """Be gone without a word."""
        if self._reading is not None:
            self._call.cancel()
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None

    async def say(self, **kind: Any) -> None:
        await self._call.write(frame_pb2.Batch(frames=[frame_pb2.Frame(**kind)]))

    async def send(self, conversation_id: str, **content: Any) -> None:
        send = frame_pb2.Send(
            conversation_id=conversation_id,
            client_msg_id=new_id(),
            content=conversation_pb2.Content(**content),
        )
        await self.say(send=send)
        await eventually(
            lambda: send.client_msg_id in [each.client_msg_id for each in self.of("send_ack")]
        )

    async def available(self, **more: Any) -> agent_pb2.Agent:
        request = agent_service_pb2.SetAgentStatusRequest(
            request_id=new_id(), status=agent_pb2.AGENT_STATUS_AVAILABLE, **more
        )
        found: agent_pb2.Agent = (await self._agents.SetAgentStatus(request)).agent
        return found

    async def transfer(self, conversation_id: str, agent: str = "") -> None:
        request = pb.TransferConversationRequest(
            request_id=new_id(), conversation_id=conversation_id, agent_id=agent
        )
        await self.conversations.TransferConversation(request)

    async def close(self, conversation_id: str) -> None:
        request = pb.CloseConversationRequest(request_id=new_id(), conversation_id=conversation_id)
        await self.conversations.CloseConversation(request)

    def of(self, kind: str) -> list[Any]:
        """The frames of a kind that came."""
        return [getattr(each, kind) for each in self.heard if each.HasField(kind)]  # type: ignore[arg-type]

    def texts(self, conversation_id: str) -> list[str]:
        return [
            each.message.content.text
            for each in self.of("push")
            if each.HasField("message") and each.message.conversation_id == conversation_id
        ]

    async def _read(self) -> None:
        async for batch in self._call:
            self.heard += batch.frames


class Person:
    """An agent or a visitor with deskwire's own client, and what they were shown."""

    def __init__(self) -> None:
        self.client: Any = None
        self.pushes: list[Any] = []

    def texts(self, conversation_id: str) -> list[str]:
        return [
            each.message.content.text
            for each in self.pushes
            if each.HasField("message") and each.message.conversation_id == conversation_id
        ]


async def person(d: Desk, role: Role, subject: str) -> Person:
    found = Person()
    found.client = await d.client(role, subject, on_push=found.pushes.append)
    return found


async def handed_off_and_back(d: Desk, talk: str, kafka: str) -> None:
    """A visitor talks to a bot, to a person, and to the bot again."""
    bot = Bot(d, "helper")
    await bot.connect()
    assert (await bot.available()).bot
    ann = await person(d, Role.AGENT, "ann")
    await d.available("ann")
    visitor = await person(d, Role.VISITOR, "1001")

    # The bot comes first, though ann is free.
    await visitor.client.send(talk, "hello")
    await eventually(lambda: is_with(d, talk, "helper"))
    found = await conversation(d, talk)
    assert (found.agent_role, found.human_wanted) == (actor_pb2.ROLE_BOT, False)
    await eventually(lambda: "Helper is here to help you." in bot.texts(talk))
    await visitor.client.send(talk, "where is my order?")
    await eventually(lambda: "where is my order?" in bot.texts(talk))
    await bot.say(typing=frame_pb2.Typing(conversation_id=talk, typing=True))
    await bot.say(read=frame_pb2.Read(conversation_id=talk, seq=3))
    await bot.send(talk, text="I'll look")
    await eventually(lambda: "I'll look" in visitor.texts(talk))
    assert ann.texts(talk) == []

    # A person is wanted: the bot has done what it could, and says why.
    await bot.send(talk, note=conversation_pb2.Note(text="order 7 is lost"))
    await bot.transfer(talk)
    await eventually(lambda: is_with(d, talk, "ann"))
    found = await conversation(d, talk)
    assert (found.agent_role, found.human_wanted) == (actor_pb2.ROLE_AGENT, True)
    # ann reads it from its beginning, with what the bot wrote.
    await eventually(lambda: "I'll look" in ann.texts(talk))
    assert ann.texts(talk)[0] == "hello"
    notes = [each.message.content.note.text for each in ann.pushes if each.HasField("message")]
    assert "order 7 is lost" in notes
    last = [each.conversation for each in bot.of("push") if each.HasField("conversation")][-1]
    assert (last.state, last.human_wanted) == (QUEUED, True)
    # It isn't the bot's any more.
    send = pb.SendMessageRequest(conversation_id=talk, client_msg_id="x")
    send.content.text = "one more thing"
    assert (await refused(bot.conversations.SendMessage(send))).reason_name == "NOT_A_PARTICIPANT"
    assert (await refused(bot.close(talk))).reason_name == "NOT_A_PARTICIPANT"
    assert (await refused(bot.transfer(talk))).reason_name == "NOT_A_PARTICIPANT"
    heard = len(bot.texts(talk))
    await ann.client.send(talk, "I'll send another one")
    await eventually(lambda: "I'll send another one" in visitor.texts(talk))
    assert len(bot.texts(talk)) == heard

    # And back to the bot, which ends it.
    stub = conversation_service_pb2_grpc.ConversationServiceStub(d.channel(Role.AGENT, "ann"))
    await stub.TransferConversation(
        pb.TransferConversationRequest(request_id=new_id(), conversation_id=talk, agent_id="helper")
    )
    found = await conversation(d, talk)
    assert (found.agent_id, found.agent_role) == ("helper", actor_pb2.ROLE_BOT)
    assert not found.human_wanted
    await visitor.client.send(talk, "thank you")
    await eventually(lambda: "thank you" in bot.texts(talk))
    await bot.close(talk)
    assert (await conversation(d, talk)).state == CLOSED

    steps = await eventually(lambda: events_of(kafka, talk, 6), timeout=30, interval=0.5)
    assert [name for name, _ in steps] == [
        "conversation_opened",
        "conversation_assigned",
        "conversation_transferred",
        "conversation_assigned",
        "conversation_transferred",
        "conversation_closed",
    ]
    handed_off = steps[2][1]
    assert handed_off["changed"]["human_wanted"] == {"from": False, "to": True}
    assert handed_off["changed"]["agent_role"] == {"from": "ROLE_BOT", "to": None}
    assert handed_off["conversation"]["human_wanted"]
    assert handed_off["cause"] == "TRANSFER_CAUSE_ASKED"
    assert steps[3][1]["conversation"]["agent_role"] == "ROLE_AGENT"
    await bot.die()


async def events_of(kafka: str, talk: str, count: int) -> list[tuple[str, Any]]:
    rows = await read_rows(kafka, topics.CONVERSATIONS.name)
    found = [(row["event_type"], row["data"]) for row in rows if row["subject"] == talk]
    return found if len(found) == count else []


async def test_a_bot_answers_hands_off_and_gets_it_back(d: Desk, kafka: str) -> None:
    await handed_off_and_back(d, new_id(), kafka)


async def test_a_bot_that_dies_leaves_nobody_alone(d: Desk) -> None:
    bot = Bot(d, "helper")
    await bot.connect()
    await bot.available()
    visitor = await person(d, Role.VISITOR, "1001")
    talk, kept = new_id(), new_id()
    await visitor.client.send(talk, "hello")
    await visitor.client.send(kept, "hello")
    await eventually(lambda: is_with(d, talk, "helper"))
    await eventually(lambda: is_with(d, kept, "helper"))
    await bot.transfer(kept)
    await bot.die()
    # Nobody else is there: it waits for a person, also when the bot is back.
    await eventually(lambda: is_with(d, talk, ""))
    found = await conversation(d, talk)
    assert (found.state, found.human_wanted) == (QUEUED, True)
    again = Bot(d, "helper")
    await again.connect()
    new = new_id()
    await visitor.client.send(new, "hello again")
    await eventually(lambda: is_with(d, new, "helper"))
    assert (await conversation(d, talk)).state == QUEUED
    await person(d, Role.AGENT, "ann")
    await d.available("ann")
    await eventually(lambda: is_with(d, talk, "ann"))
    await eventually(lambda: is_with(d, kept, "ann"))
    assert await is_with(d, new, "helper")


async def test_two_processes_share_a_bot(
    postgres: DatabaseServer, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> None:
    """Calls go to the one process, and the conversation is the other one's."""
    url = postgres.fresh()
    options = {"bot_away_seconds": AWAY, "lease_seconds": 1.0}
    async with (
        desk(url, kafka, valkey, keys_file, signer, chat=options) as d,
        second_process(url, kafka, keys_file, **options),
    ):
        talk, dead = (next(each for each in iter(new_id, "") if owner_of_two(partition_of(each)) == "chat-1")
                      for _ in range(2))  # fmt: skip
        await handed_off_and_back(d, talk, kafka)
        bot = Bot(d, "helper")
        await bot.connect()
        visitor = await person(d, Role.VISITOR, "1002")
        # The agent who has room takes what the bot leaves.
        await visitor.client.send(dead, "hello")
        await eventually(lambda: is_with(d, dead, "helper"))
        await bot.die()
        await eventually(lambda: is_with(d, dead, "ann"))
        assert (await conversation(d, dead)).human_wanted
    postgres.drop(url)


async def test_a_bot_hears_of_its_customers(d: Desk) -> None:
    bot = Bot(d, "helper")
    await bot.connect()
    await bot.available()
    visitor = await person(d, Role.VISITOR, "1001")
    talk = new_id()
    await visitor.client.send(talk, "hello")
    await eventually(lambda: is_with(d, talk, "helper"))
    stub = customer_service_pb2_grpc.CustomerServiceStub(
        d.channel(Role.INTEGRATION, "crm", system="crm:main")
    )
    request = customer_service_pb2.UpsertCustomerRequest(
        request_id=new_id(), source_version=2, update_mask={"paths": ["mobile"]}
    )
    request.customer.identities.add(namespace="visitor", value="1001")
    request.customer.mobile = "+8613800138000"
    await stub.UpsertCustomer(request)
    await eventually(
        lambda: (
            "+8613800138000"
            in [each.customer.mobile for each in bot.of("push") if each.HasField("customer")]
        )
    )
    # One that comes back has its conversations and customers told, as agents have.
    await bot.die()
    again = Bot(d, "helper")
    await again.connect()
    await eventually(lambda: [each.conversation_id for each in again.of("head")] == [talk])
    await eventually(lambda: any(each.HasField("customer") for each in again.of("push")))


async def test_an_agent_and_a_bot_cannot_share_an_id(d: Desk) -> None:
    await d.available("ann")
    assert (await refused(Bot(d, "ann").available())).reason_name == "ALREADY_EXISTS"
    await Bot(d, "helper").available()
    assert (await refused(d.available("helper"))).reason_name == "ALREADY_EXISTS"
    # Somebody with a person's id and a bot's token is told nothing, and nothing is given to them.
    impostor = Bot(d, "ann")
    await impostor.connect()
    visitor = await person(d, Role.VISITOR, "1001")
    talk = new_id()
    await visitor.client.send(talk, "hello")
    ann = await person(d, Role.AGENT, "ann")
    await eventually(lambda: is_with(d, talk, "ann"))
    await eventually(lambda: "hello" in ann.texts(talk))
    assert impostor.texts(talk) == []
    # An operator may say beforehand what somebody will be.
    agents = agent_service_pb2_grpc.AgentServiceStub(d.channel(Role.OPERATOR, "olga"))
    made = await agents.CreateAgent(
        agent_service_pb2.CreateAgentRequest(request_id=new_id(), agent_id="later", bot=True)
    )
    assert made.agent.bot
    assert (await refused(d.available("later"))).reason_name == "ALREADY_EXISTS"
    assert (await Bot(d, "later").available()).status == agent_pb2.AGENT_STATUS_AVAILABLE
    request = agent_service_pb2.SetAgentStatusRequest(
        request_id=new_id(), agent_id="later", status=agent_pb2.AGENT_STATUS_AWAY
    )
    stub = agent_service_pb2_grpc.AgentServiceStub(d.channel(Role.BOT, "helper"))
    assert (await refused(stub.SetAgentStatus(request))).reason_name == "ROLE_NOT_ALLOWED"


async def test_a_disabled_bot_is_shut_out(d: Desk) -> None:
    bot = Bot(d, "helper")
    await bot.connect()
    await bot.available()
    visitor = await person(d, Role.VISITOR, "1001")
    talk = new_id()
    await visitor.client.send(talk, "hello")
    await eventually(lambda: is_with(d, talk, "helper"))
    agents = agent_service_pb2_grpc.AgentServiceStub(d.channel(Role.OPERATOR, "olga"))
    await agents.DisableAgent(
        agent_service_pb2.DisableAgentRequest(request_id=new_id(), agent_id="helper")
    )
    assert (await refused(bot.available())).reason_name == "AGENT_DISABLED"
    await eventually(lambda: bot.of("goodbye"))
    await eventually(lambda: is_with(d, talk, ""))
    assert (await conversation(d, talk)).human_wanted


async def test_the_bot_with_room_comes_before_people_and_then_people(d: Desk) -> None:
    bot = Bot(d, "helper")
    await bot.connect()
    await bot.available(capacity=1)
    await person(d, Role.AGENT, "ann")
    await d.available("ann")
    visitor = await person(d, Role.VISITOR, "1001")
    first, second, third = new_id(), new_id(), new_id()
    await visitor.client.send(first, "hello")
    await eventually(lambda: is_with(d, first, "helper"))
    await visitor.client.send(second, "hello")
    await eventually(lambda: is_with(d, second, "ann"))
    # Directly to a person, and its room is another's.
    await bot.transfer(first, "ann")
    assert await is_with(d, first, "ann")
    other = await person(d, Role.VISITOR, "1002")
    await other.client.send(third, "hello")
    await eventually(lambda: is_with(d, third, "helper"))
    # What an agent gives back is for people, too.
    stub = conversation_service_pb2_grpc.ConversationServiceStub(d.channel(Role.AGENT, "ann"))
    agents = agent_service_pb2_grpc.AgentServiceStub(d.channel(Role.AGENT, "ann"))
    await agents.SetAgentStatus(
        agent_service_pb2.SetAgentStatusRequest(
            request_id=new_id(), status=agent_pb2.AGENT_STATUS_AWAY
        )
    )
    await bot.close(third)
    await stub.TransferConversation(
        pb.TransferConversationRequest(request_id=new_id(), conversation_id=second)
    )
    found = await conversation(d, second)
    assert (found.state, found.human_wanted) == (QUEUED, True)
