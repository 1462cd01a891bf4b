"""A visitor and an agent talk: stored, delivered both ways, on Kafka, on every database."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from deskwire.chat.v1 import conversation_service_pb2, conversation_service_pb2_grpc
from deskwire_common import events, topics
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.kafka import Reader, Record
from support import eventually
from support.suite import desk, new_id


async def read_topic(kafka: str, topic: str, tenant: str, count: int) -> list[Any]:
    """The first `count` events of a tenant on a topic, waiting for them."""
    reader = Reader(kafka, [topic])
    await reader.start()
    found: list[Any] = []
    try:
        async with asyncio.timeout(20):
            while len(found) < count:
                for record in await reader.read():
                    event = _event(topic, record)
                    if event.tenant_id == tenant:
                        found.append(event)
    finally:
        await reader.close()
    return found


def _event(topic: str, record: Record) -> Any:
    return events.decode(topic, record.value, record.headers)


async def test_visitor_and_agent_talk(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> None:
    async with desk(database_url, kafka, valkey, keys_file, signer) as d:
        visitor_sees: list[Any] = []
        agent_sees: list[Any] = []
        await d.client(Role.AGENT, "alice", name="Alice", on_push=agent_sees.append)
        await d.available("alice")
        visitor = await d.client(Role.VISITOR, "1001", name="Li Na", on_push=visitor_sees.append)
        conversation = new_id()

        ack = await visitor.send(conversation, "hello, where is my order?")
        assert (ack.seq, ack.epoch, ack.duplicate) == (1, 1, False)

        def texts(seen: list[Any]) -> list[str]:
            return [each.message.content.text for each in seen if each.HasField("message")]

        greeting = "Alice is here to help you."
        await eventually(lambda: texts(visitor_sees) == ["hello, where is my order?", greeting])
        await eventually(lambda: texts(agent_sees) == ["hello, where is my order?", greeting])

        # The same Send again has the first one's result.
        again = await visitor.send(
            conversation, "hello, where is my order?", client_msg_id=ack.client_msg_id
        )
        assert (again.seq, again.message_id, again.duplicate) == (1, ack.message_id, True)

        stub = conversation_service_pb2_grpc.ConversationServiceStub(
            d.channel(Role.AGENT, "alice", name="Alice")
        )
        request = conversation_service_pb2.SendMessageRequest(
            conversation_id=conversation, client_msg_id="a-1"
        )
        request.content.text = "let me look"
        stored = await stub.SendMessage(request)
        assert stored.message.seq == 3
        await eventually(lambda: texts(visitor_sees)[-1] == "let me look")

        history = await stub.ListMessages(
            conversation_service_pb2.ListMessagesRequest(conversation_id=conversation)
        )
        assert [each.seq for each in history.messages] == [1, 2, 3]
        assert history.head_seq == 3

        found = await read_topic(kafka, topics.MESSAGES.name, d.tenant, 3)
        assert [each.event_id for each in found] == [each.message_id for each in history.messages]
        assert [each.sequence for each in found] == [1, 2, 3]
        opened = await read_topic(kafka, topics.CONVERSATIONS.name, d.tenant, 2)
        assert [each.event_type for each in opened] == [
            "conversation_opened",
            "conversation_assigned",
        ]
        assert [each.sequence for each in opened] == [1, 2]
