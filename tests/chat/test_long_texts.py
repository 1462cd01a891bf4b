"""Runs of the longest texts, on three databases: no answer is larger than its reader takes, and every message comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import deskwire_chat.app
from deskwire.chat.v1 import conversation_pb2, conversation_service_pb2_grpc
from deskwire.chat.v1 import conversation_service_pb2 as pb
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.lifecycle import running
from deskwire_common.migrations import migrate
from deskwire_common.pagination import ANSWER_BYTES
from deskwire_common.rpc import make_channel, stream_metadata
from support.suite import chat_settings, new_id

MANY = 150
LONGEST = "\U0001f642" * 8_000
"""32,000 bytes: as long as a text may be."""
SLACK = 65_536


class Visitor:
    """Somebody with one conversation."""

    def __init__(self, channel: Any, token: str) -> None:
        self.stub = conversation_service_pb2_grpc.ConversationServiceStub(channel)
        self.metadata = stream_metadata(token)
        self.talk = new_id()

    async def stream(self, *messages: pb.StreamedMessage) -> list[pb.StreamMessagesResponse]:
        """Send messages; the responses."""

        async def requests() -> AsyncIterator[pb.StreamMessagesRequest]:
            for start in range(0, len(messages), 50):
                yield pb.StreamMessagesRequest(messages=messages[start : start + 50])

        call = self.stub.StreamMessages(requests(), metadata=self.metadata)
        return [response async for response in call]

    async def fill(self) -> None:
        """Store MANY of the longest texts."""
        responses = await self.stream(
            *(
                pb.StreamedMessage(
                    conversation_id=self.talk,
                    client_msg_id=str(number),
                    content=conversation_pb2.Content(text=LONGEST),
                )
                for number in range(MANY)
            )
        )
        results = [result for response in responses for result in response.results]
        assert [result.ack.seq for result in results] == list(range(1, MANY + 1))

    async def watched(self, started: asyncio.Event) -> list[int]:
        """The seqs that a watch brings, up to the last."""
        request = pb.WatchConversationRequest(conversation_id=self.talk)
        call = self.stub.WatchConversation(request, metadata=self.metadata)
        seqs: list[int] = []
        async for response in call:
            started.set()
            assert response.ByteSize() <= ANSWER_BYTES + SLACK
            seqs += [message.seq for message in response.messages]
            if response.cursor == MANY:
                break
        call.cancel()
        return seqs


@pytest.fixture
async def visitor(
    database_url: str, kafka: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Visitor]:
    await migrate(database_url, "deskwire_chat")
    settings = chat_settings(database_url, kafka, keys_file)
    async with (
        running("chat", settings, deskwire_chat.app.build) as chat,
        make_channel(f"127.0.0.1:{chat.port}", bare=True) as channel,
    ):
        yield Visitor(channel, signer.mint(tenant=new_id(), role=Role.VISITOR, subject="v"))


async def test_they_are_listed_and_watched_to_the_end(visitor: Visitor) -> None:
    await visitor.fill()
    seqs: list[int] = []
    head = 1
    while len(seqs) < head:
        request = pb.ListMessagesRequest(
            conversation_id=visitor.talk, after_seq=len(seqs), page_size=1_000
        )
        answer = await visitor.stub.ListMessages(request, metadata=visitor.metadata)
        assert answer.messages
        assert answer.ByteSize() <= ANSWER_BYTES + SLACK
        head = answer.head_seq
        seqs += [message.seq for message in answer.messages]
    assert seqs == list(range(1, MANY + 1))
    assert await visitor.watched(asyncio.Event()) == seqs


async def test_they_are_watched_as_they_come(visitor: Visitor) -> None:
    first = pb.StreamedMessage(
        conversation_id=visitor.talk,
        client_msg_id="0",
        content=conversation_pb2.Content(text=LONGEST),
    )
    await visitor.stream(first)
    started = asyncio.Event()
    watching = asyncio.create_task(visitor.watched(started))
    await started.wait()
    await visitor.fill()
    assert await watching == list(range(1, MANY + 1))


async def test_results_of_a_stream_are_bounded_too(visitor: Visitor) -> None:
    refused = pb.StreamedMessage(
        conversation_id="\U0001f642" * 200, client_msg_id="\U0001f642" * 200
    )
    responses = await visitor.stream(*[refused] * 3_000)
    assert sum(len(response.results) for response in responses) == 3_000
    assert max(response.ByteSize() for response in responses) <= ANSWER_BYTES
