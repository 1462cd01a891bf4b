"""Agents who are gone: their customers wait for so long, and then for somebody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deskwire.chat.v1 import (
    agent_pb2,
    agent_service_pb2,
    agent_service_pb2_grpc,
    conversation_pb2,
)
from deskwire_common import topics
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.metrics import REGISTRY
from support import eventually
from support.suite import Desk, Start, desk, new_id
from support.talks import conversation, is_with, opened
from support.topic import read_rows
from support.wire import Wire, wire

QUEUED = conversation_pb2.CONVERSATION_STATE_QUEUED
AWAY = 1.0


@pytest.fixture
async def d(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Desk]:
    options = {"agent_away_seconds": AWAY}
    async with desk(database_url, kafka, valkey, keys_file, signer, chat=options) as found:
        yield found


@pytest.fixture
def start(tmp_path: Path, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner) -> Start:
    def begun(**chat: Any) -> Any:
        url = f"sqlite:///{tmp_path / 'chat.db'}"
        return desk(url, kafka, valkey, keys_file, signer, chat=chat)

    return begun


def waiting_for(kind: str) -> float | None:
    return REGISTRY.get_sample_value("deskwire_conversations_of_absent", {"kind": kind})


async def given(d: Desk, agent: str, talk: str) -> str:
    """Have an agent who is alone with room get a conversation."""
    await d.available(agent)
    await opened(d, f"of-{agent}", talk)
    await eventually(lambda: is_with(d, talk, agent))
    return talk


async def state_of(visitor: Wire) -> conversation_pb2.Conversation:
    """The next push of a conversation."""
    while True:
        push = await visitor.hear("push")
        if push.HasField("conversation"):
            found: conversation_pb2.Conversation = push.conversation
            return found


async def test_whoever_is_gone_for_too_long_loses_their_conversations(d: Desk, kafka: str) -> None:
    async with wire(d, d.token(Role.VISITOR, "of-ann")) as visitor:
        talk = new_id()
        async with wire(d, d.token(Role.AGENT, "ann")) as ann:
            await given(d, "ann", talk)
            assert (await state_of(visitor)).agent_id == "ann"
            # Her machine dies: not a word, and a session that could still be resumed.
            ann.socket.transport.abort()
            await ann.socket.wait_closed()
        # Nobody else is there. Her customer sees that they wait again, for a person.
        seen = await state_of(visitor)
        assert (seen.state, seen.agent_id, seen.human_wanted) == (QUEUED, "", True)
        bob = await d.client(Role.AGENT, "bob")
        await d.available("bob")
        await eventually(lambda: is_with(d, talk, "bob"))
        assert (await state_of(visitor)).agent_id == "bob"
        await bob.close()

    async def told() -> Any:
        rows = await read_rows(kafka, topics.CONVERSATIONS.name)
        return [each for each in rows if each["subject"] == talk][2:3]

    event = (await eventually(told, timeout=30, interval=0.5))[0]
    assert event["event_type"] == "conversation_transferred"
    assert event["actor"]["role"] == "ROLE_SYSTEM"
    assert event["data"]["cause"] == "TRANSFER_CAUSE_AGENT_ABSENT"
    assert event["data"]["changed"]["agent_id"] == {"from": "ann", "to": None}
    assert (await conversation(d, talk)).human_wanted


async def test_whoever_comes_back_in_time_keeps_them(d: Desk) -> None:
    ann = await d.client(Role.AGENT, "ann")
    kept = await given(d, "ann", new_id())
    bob = await d.client(Role.AGENT, "bob")
    await d.available("ann", capacity=1)
    lost = await given(d, "bob", new_id())
    # Both go, and one of them comes back at once.
    await ann.close()
    await bob.close()
    await d.client(Role.AGENT, "ann")
    await eventually(lambda: is_with(d, lost, ""))
    assert await is_with(d, kept, "ann")


async def test_the_limit_may_be_off_and_who_waits_is_counted(start: Start) -> None:
    async with start(agent_away_seconds=0, bot_away_seconds=0.5) as d:
        ann = await d.client(Role.AGENT, "ann")
        kept = await given(d, "ann", new_id())
        await ann.close()
        await eventually(lambda: waiting_for("agent") == 1)
        # Whoever is looking sees bots go, and her customers stay.
        bot = await d.client(Role.BOT, "helper")
        await a_bot_is_available(d)
        other = await opened(d, "1002")
        await eventually(lambda: is_with(d, other, "helper"))
        await bot.close()
        await eventually(lambda: is_with(d, other, ""))
        assert await is_with(d, kept, "ann")
        await d.client(Role.AGENT, "ann")
        await eventually(lambda: waiting_for("agent") == 0)


async def a_bot_is_available(d: Desk) -> None:
    stub = agent_service_pb2_grpc.AgentServiceStub(d.channel(Role.BOT, "helper"))
    await stub.SetAgentStatus(
        agent_service_pb2.SetAgentStatusRequest(
            request_id=new_id(), status=agent_pb2.AGENT_STATUS_AVAILABLE
        )
    )
