"""kill -9 under load: every acknowledged message is stored once, in order, and on Kafka once."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from typing import Any

from deskwire.chat.v1 import conversation_service_pb2, conversation_service_pb2_grpc
from deskwire_cli.launch import Launch
from deskwire_cli.suite import TENANT
from deskwire_client import Client
from deskwire_common import events, topics
from deskwire_common.auth import KeySet, Role, TokenSigner
from deskwire_common.kafka import Reader
from deskwire_common.rpc import make_channel
from support import eventually
from support.command import kill

VISITORS = 8
# CI keeps this short.
ROUNDS = ("chat", "gateway", "chat")


class Talker:
    """A visitor who goes on writing, and knows what was acknowledged: seq → text."""

    def __init__(self, launch: Launch, signer: TokenSigner, number: int) -> None:
        self.conversation_id = str(uuid.uuid4())
        self.acked: dict[int, str] = {}
        self._url = f"ws://{launch.plan.ports.address('websocket')}/ws"
        self._token = signer.mint(tenant=TENANT, role=Role.VISITOR, subject=f"v-{number}")

    async def talk(self, stop: asyncio.Event) -> None:
        number = 0
        async with Client(self._url, self._token, on_push=lambda _: None) as client:
            while not stop.is_set():
                number += 1
                ack = await client.send(self.conversation_id, f"message {number}")
                self.acked[ack.seq] = f"message {number}"


async def test_kill_9(launch: Launch) -> None:
    signer = TokenSigner(KeySet.load(launch.plan.home.keys_file))
    talkers = [Talker(launch, signer, number) for number in range(VISITORS)]
    stop = asyncio.Event()
    talking = [asyncio.create_task(each.talk(stop)) for each in talkers]
    for name in ROUNDS:
        before = [len(each.acked) for each in talkers]
        await eventually(
            lambda before=before: all(
                len(each.acked) >= had + 10 for each, had in zip(talkers, before, strict=True)
            ),
            timeout=60,
        )
        await kill(launch, name)
    stop.set()
    await asyncio.wait_for(asyncio.gather(*talking), 60)

    token = signer.mint(tenant=TENANT, role=Role.OPERATOR, subject="checker")
    async with make_channel(launch.plan.ports.address("chat"), token=lambda: token) as channel:
        stub = conversation_service_pb2_grpc.ConversationServiceStub(channel)
        stored: dict[str, str] = {}
        for each in talkers:
            messages = await history(stub, each.conversation_id)
            assert [m.seq for m in messages] == list(range(1, len(messages) + 1))
            assert {m.seq: m.content.text for m in messages} == each.acked
            stored |= {m.message_id: each.conversation_id for m in messages}
    # A message was stored once, under one number, however often it was sent.
    assert all(
        list(each.acked.values()) == sorted(each.acked.values(), key=number_of) for each in talkers
    )
    await check_kafka(launch.kafka, stored)


def number_of(text: str) -> int:
    return int(text.rpartition(" ")[2])


async def history(stub: Any, conversation_id: str) -> list[Any]:
    request = conversation_service_pb2.ListMessagesRequest(
        conversation_id=conversation_id, page_size=1_000
    )
    answer = await stub.ListMessages(request)
    assert len(answer.messages) == answer.head_seq
    return list(answer.messages)


async def check_kafka(bootstrap: str, stored: dict[str, str]) -> None:
    """Each message is there; in order, taking the first of those that a killed publisher sent twice."""
    reader = Reader(bootstrap, [topics.MESSAGES.name], start="earliest")
    await reader.start()
    found: Counter[str] = Counter()
    order: dict[str, list[int]] = {}

    async def all_there() -> bool:
        for record in await reader.read(1_000, 0.2):
            event = events.decode(topics.MESSAGES, record.value, record.headers)
            if event.event_id in stored:
                if event.event_id not in found:
                    order.setdefault(event.subject, []).append(event.sequence)
                found[event.event_id] += 1
        return found.keys() == stored.keys()

    try:
        async with asyncio.timeout(60):
            while not await all_there():
                continue
    finally:
        await reader.close()
    assert all(numbers == sorted(numbers) for numbers in order.values())
