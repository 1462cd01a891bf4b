"""Users who keep talking whatever happens, what they received, and the check of it.

The guarantees by name: *durable* (acknowledged messages are stored), *ordered* (as they were sent), *unique* (stored
once, delivered once), *complete* (every reader and Kafka have everything).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from deskwire.chat.v1 import (
    agent_pb2,
    agent_service_pb2,
    agent_service_pb2_grpc,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
)
from deskwire.gateway.v1 import frame_pb2
from deskwire_client import Client
from deskwire_common import events, topics
from deskwire_common.auth import Role
from deskwire_common.kafka import Reader
from deskwire_common.rpc import make_channel
from support import eventually
from support.world import World


class Reading:
    """What one client received: conversation → (seq, message_id, text), in the order of arrival."""

    def __init__(self) -> None:
        self.messages: dict[str, list[tuple[int, str, str]]] = {}

    def __call__(self, push: frame_pb2.Push) -> None:
        if push.HasField("message"):
            item = push.message
            self.messages.setdefault(item.conversation_id, []).append(
                (item.seq, item.message_id, item.content.text)
            )


class Talker:
    """One visitor and their conversation."""

    def __init__(self, world: World, number: int) -> None:
        self.conversation_id = str(uuid.uuid4())
        self.acked: list[tuple[int, str, str]] = []
        self.reading = Reading()
        self._client = Client(
            world.url, world.token(Role.VISITOR, f"visitor-{number}"), on_push=self.reading
        )

    async def talk(self, stop: asyncio.Event) -> None:
        """Send messages, several at a time, until `stop` is set, and wait for the result of each."""
        number = 0
        waiting: list[tuple[str, asyncio.Future[frame_pb2.SendAck]]] = []
        async with self._client:
            while not stop.is_set() or waiting:
                while len(waiting) < 4 and not stop.is_set():
                    number += 1
                    text = f"message {number}"
                    waiting.append((text, self._client.post(self.conversation_id, text)))
                text, future = waiting.pop(0)
                ack = await future
                self.acked.append((ack.seq, ack.message_id, text))
            last = self.acked[-1][0]
            await eventually(
                lambda: self._client.position(self.conversation_id) >= last, timeout=60
            )


class Crowd:
    """Visitors who talk, and agents who read."""

    def __init__(self, world: World, *, visitors: int = 6, agents: int = 2) -> None:
        self.world = world
        self.talkers = [Talker(world, number) for number in range(visitors)]
        self.readings = [Reading() for _ in range(agents)]
        self._stop = asyncio.Event()

    @asynccontextmanager
    async def talking(self) -> AsyncIterator[None]:
        """Have visitors talk while the block runs, and check everything at its end."""
        async with AsyncExitStack() as stack:
            for number, reading in enumerate(self.readings):
                name = f"agent-{number}"
                token = self.world.token(Role.AGENT, name)
                await stack.enter_async_context(Client(self.world.url, token, on_push=reading))
                await self._available(token)
            talking = [asyncio.create_task(talker.talk(self._stop)) for talker in self.talkers]
            try:
                yield
            finally:
                self._stop.set()
                await asyncio.wait_for(asyncio.gather(*talking), 120)
            await self.check()

    async def goes_on(self, more: int = 8) -> None:
        """Wait until every visitor has got more acknowledgements."""
        before = [len(talker.acked) for talker in self.talkers]
        await eventually(
            lambda: all(
                len(talker.acked) >= had + more
                for talker, had in zip(self.talkers, before, strict=True)
            ),
            timeout=90,
        )

    async def check(self) -> None:
        """Check all guarantees."""
        everything: dict[str, str] = {}
        for talker in self.talkers:
            stored = await self._stored(talker.conversation_id)
            assert [seq for seq, _, _ in stored] == list(range(1, len(stored) + 1))
            own = [entry for entry in stored if entry[2].startswith("message ")]
            # Durable, ordered, unique: the acknowledged messages, in the order of sending, and nothing else.
            assert own == talker.acked
            assert [text for _, _, text in own] == [f"message {n + 1}" for n in range(len(own))]
            # Complete: the visitor and an agent have each message once and in order.
            await eventually(
                lambda t=talker, s=stored: t.reading.messages[t.conversation_id] == s, timeout=60
            )
            await eventually(lambda t=talker, s=stored: self._is_read(t, s), timeout=60)
            everything |= {message_id: talker.conversation_id for _, message_id, _ in stored}
        await check_kafka(self.world.kafka, everything)

    def _is_read(self, talker: Talker, stored: list[tuple[int, str, str]]) -> bool:
        """Return True when an agent has all of a conversation; else raise an error that shows each agent's seqs."""
        theirs = [reading.messages.get(talker.conversation_id, []) for reading in self.readings]
        assert stored in theirs, (
            talker.conversation_id,
            len(stored),
            [_runs([seq for seq, _, _ in messages]) for messages in theirs],
        )
        return True

    async def _available(self, token: str) -> None:
        async with make_channel(self.world.chat, token=lambda: token) as channel:
            await agent_service_pb2_grpc.AgentServiceStub(channel).SetAgentStatus(
                agent_service_pb2.SetAgentStatusRequest(
                    request_id=str(uuid.uuid4()),
                    status=agent_pb2.AGENT_STATUS_AVAILABLE,
                    capacity=100,
                )
            )

    async def _stored(self, conversation_id: str) -> list[tuple[int, str, str]]:
        token = self.world.token(Role.OPERATOR, "checker")
        found: list[Any] = []
        async with make_channel(self.world.chat, token=lambda: token) as channel:
            stub = conversation_service_pb2_grpc.ConversationServiceStub(channel)
            while True:
                answer = await stub.ListMessages(
                    conversation_service_pb2.ListMessagesRequest(
                        conversation_id=conversation_id,
                        after_seq=found[-1].seq if found else 0,
                        page_size=1_000,
                    )
                )
                found += answer.messages
                if not answer.messages or found[-1].seq >= answer.head_seq:
                    return [(each.seq, each.message_id, each.content.text) for each in found]


def _runs(numbers: list[int]) -> str:
    """Show numbers as runs: 1-7 9-12."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(f"{first}-{last}" for first, last in runs)


async def check_kafka(bootstrap: str, stored: dict[str, str]) -> None:
    """Check that every message is on Kafka, in order; of one that a killed publisher sent twice the first counts."""
    reader = Reader(bootstrap, [topics.MESSAGES.name], start="earliest")
    await reader.start()
    found: set[str] = set()
    order: dict[str, list[int]] = {}

    async def all_there() -> bool:
        for record in await reader.read(1_000, 0.2):
            event = events.decode(topics.MESSAGES, record.value, record.headers)
            if event.event_id in stored and event.event_id not in found:
                order.setdefault(event.subject, []).append(event.sequence)
                found.add(event.event_id)
        return found == stored.keys()

    try:
        async with asyncio.timeout(90):
            while not await all_there():
                continue
    finally:
        await reader.close()
    for numbers in order.values():
        assert numbers == list(range(1, len(numbers) + 1))
