"""Who gets which conversation: the agent who was idle longest and has room; else it waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deskwire.chat.v1 import (
    agent_pb2,
    agent_service_pb2,
    agent_service_pb2_grpc,
    conversation_pb2,
)
from deskwire.chat.v1 import conversation_service_pb2 as pb
from deskwire_common.auth import Role, TokenSigner
from support import eventually
from support.refusals import refused
from support.suite import Desk, desk, new_id
from support.talks import conversation, is_with, opened, operator

QUEUED = conversation_pb2.CONVERSATION_STATE_QUEUED
ACTIVE = conversation_pb2.CONVERSATION_STATE_ACTIVE
CLOSED = conversation_pb2.CONVERSATION_STATE_CLOSED


@pytest.fixture
async def d(
    tmp_path: Path, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Desk]:
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    async with desk(url, kafka, valkey, keys_file, signer) as found:
        yield found


async def away(d: Desk, agent: str) -> None:
    stub = agent_service_pb2_grpc.AgentServiceStub(d.channel(Role.AGENT, agent))
    await stub.SetAgentStatus(
        agent_service_pb2.SetAgentStatusRequest(
            request_id=new_id(), status=agent_pb2.AGENT_STATUS_AWAY
        )
    )


async def close(d: Desk, conversation_id: str) -> None:
    await operator(d).CloseConversation(
        pb.CloseConversationRequest(request_id=new_id(), conversation_id=conversation_id)
    )


async def transfer(d: Desk, conversation_id: str, agent: str = "") -> None:
    await operator(d).TransferConversation(
        pb.TransferConversationRequest(
            request_id=new_id(), conversation_id=conversation_id, agent_id=agent
        )
    )


async def test_it_waits_until_somebody_is_there_and_the_first_comes_first(d: Desk) -> None:
    waiting = [await opened(d, f"v-{number}") for number in range(3)]
    assert [(await conversation(d, each)).state for each in waiting] == [QUEUED] * 3
    await d.client(Role.AGENT, "alice")
    await d.available("alice", capacity=2)
    await eventually(lambda: is_with(d, waiting[1], "alice"))
    assert [(await conversation(d, each)).state for each in waiting] == [ACTIVE, ACTIVE, QUEUED]
    # Room for one more.
    await close(d, waiting[0])
    await eventually(lambda: is_with(d, waiting[2], "alice"))


async def test_the_one_who_was_idle_longest(d: Desk) -> None:
    for agent in ("alice", "bob", "carol"):
        await d.client(Role.AGENT, agent)
        await d.available(agent, capacity=1)
    for agent in ("alice", "bob", "carol"):
        talk = await opened(d, f"v-{agent}")
        await eventually(lambda talk=talk, agent=agent: is_with(d, talk, agent))


async def test_who_is_away_or_not_connected_gets_none(d: Desk) -> None:
    await d.available("ghost")  # says so, and isn't there
    await d.client(Role.AGENT, "alice")
    await d.available("alice")
    await away(d, "alice")
    talk = await opened(d, "v-1")
    assert (await conversation(d, talk)).state == QUEUED
    await d.available("alice")
    await eventually(lambda: is_with(d, talk, "alice"))
    # Away means no new ones: those that they have stay.
    await away(d, "alice")
    assert await is_with(d, talk, "alice")


async def test_a_transfer(d: Desk) -> None:
    seen: dict[str, list[str]] = {"alice": [], "bob": []}

    def note(texts: list[str], push: Any) -> None:
        if push.HasField("message"):
            texts.append(push.message.content.text)

    for agent, texts in seen.items():
        await d.client(Role.AGENT, agent, on_push=partial(note, texts))
    await d.available("alice")
    visitor = await d.client(Role.VISITOR, "v-1")
    talk = new_id()
    await visitor.send(talk, "for alice")
    await eventually(lambda: is_with(d, talk, "alice"))
    assert (await refused(transfer(d, talk, "nobody"))).reason_name == "AGENT_NOT_FOUND"
    await away(d, "bob")
    assert (await refused(transfer(d, talk, "bob"))).reason_name == "AGENT_UNAVAILABLE"
    await d.available("bob")
    await transfer(d, talk, "bob")
    await visitor.send(talk, "for bob")
    # The whole conversation is bob's, from its beginning.
    await eventually(lambda: seen["bob"] and seen["bob"][-1] == "for bob")
    assert seen["bob"][0] == "for alice"
    assert "for bob" not in seen["alice"]
    # Back to the queue: somebody takes it on.
    await away(d, "bob")
    await transfer(d, talk)
    await eventually(lambda: is_with(d, talk, "alice"))


async def test_what_is_closed_stays_closed_and_a_reload_finds_what_is_open(d: Desk) -> None:
    await d.client(Role.AGENT, "alice")
    await d.available("alice")
    ended, talk = await opened(d, "v-1"), await opened(d, "v-1")
    await close(d, ended)
    assert (await conversation(d, ended)).state == CLOSED
    seen: list[Any] = []
    again = await d.client(Role.VISITOR, "v-1", on_push=seen.append)
    await eventually(lambda: again.position(talk) >= 2)
    assert {each.message.conversation_id for each in seen if each.HasField("message")} == {talk}
    with pytest.raises(Exception, match="CONVERSATION_CLOSED"):
        await again.send(ended, "one more thing")
    assert (await again.send(talk, "go on")).seq == 3
