"""Answers are bounded in bytes: what one connection asks for costs nobody else the link between gateway and chat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import deskwire_chat.app
import deskwire_gateway.app
from deskwire.chat.v1 import conversation_pb2, conversation_service_pb2_grpc
from deskwire.chat.v1 import conversation_service_pb2 as pb
from deskwire.gateway.v1 import frame_pb2
from deskwire.shard.v1 import shard_service_pb2 as shard_pb
from deskwire_chat.domain.conversations import Conversation, State
from deskwire_chat.live import stream as streams
from deskwire_chat.log import codec
from deskwire_chat.store import conversations as conversation_rows
from deskwire_chat.store.conversations import MOST_OPEN
from deskwire_chat.views import frames
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.db import Database
from deskwire_common.lifecycle import Runtime, running
from deskwire_common.migrations import migrate
from deskwire_common.pagination import ANSWER_BYTES
from deskwire_common.rpc import make_channel, stream_metadata
from deskwire_gateway import admission, sends
from support import eventually
from support.ports import free_port
from support.relay import relay
from support.suite import Desk, Start, chat_settings, gateway_settings, new_id
from support.wire import Wire, reason, wire

LONG = "中" * 5_400
MiB = 1 << 20


async def fill(d: Desk, talk: str, count: int, text: str = LONG) -> None:
    """Store long texts of the visitor v1."""

    async def requests() -> AsyncIterator[pb.StreamMessagesRequest]:
        for start in range(0, count, 50):
            yield pb.StreamMessagesRequest(
                messages=[
                    pb.StreamedMessage(
                        conversation_id=talk,
                        client_msg_id=str(number),
                        content=conversation_pb2.Content(text=text),
                    )
                    for number in range(start, min(start + 50, count))
                ]
            )

    channel = make_channel(f"127.0.0.1:{d.chat.port}", bare=True)
    d.stack.push_async_callback(channel.close)
    stub = conversation_service_pb2_grpc.ConversationServiceStub(channel)
    metadata = stream_metadata(d.token(Role.VISITOR, "v1"))
    answers = stub.StreamMessages(requests(), metadata=metadata)
    acks = [each async for answer in answers for each in answer.results]
    assert all(each.HasField("ack") for each in acks)
    assert len(acks) == count


async def sync_all(w: Wire, talk: str, **more: int) -> list[int]:
    """The seqs that Syncs bring, until head_seq."""
    seqs: list[int] = []
    while True:
        after = seqs[-1] if seqs else 0
        await w.say(sync=frame_pb2.Sync(conversation_id=talk, after_seq=after, **more))
        synced = await w.hear("synced")
        assert synced.messages, "a run has at least one message"
        assert synced.ByteSize() <= ANSWER_BYTES
        seqs += [each.seq for each in synced.messages]
        if seqs[-1] == synced.head_seq:
            return seqs


async def test_a_sync_of_long_texts_ends_by_bytes_and_no_other_tenant_notices(start: Start) -> None:
    talk, other = new_id(), new_id()
    stop = asyncio.Event()
    async with start() as d:
        await fill(d, talk, 300)

        async def chat(w: Wire) -> int:
            """Send one message after another, each acknowledged."""
            count = 0
            while not stop.is_set():
                await w.send(other, "hello")
                assert (await w.hear("send_ack")).seq == count + 1
                count += 1
            return count

        elsewhere = d.token(Role.VISITOR, "v2", tenant="another")
        async with wire(d, elsewhere) as o, wire(d, d.token(Role.VISITOR, "v1")) as w:
            chatting = asyncio.create_task(chat(o))
            assert await sync_all(w, talk, limit=500) == list(range(1, 301))
            stop.set()
            assert await chatting > 0
            # A link that was made anew would have told where the conversations stand.
            await o.say(sync=frame_pb2.Sync(conversation_id=other))
            assert isinstance(await o.hear_one_of("head", "synced"), frame_pb2.Synced)


async def test_many_syncs_at_once_are_all_answered(start: Start) -> None:
    talk = new_id()
    async with start(max_buffered_bytes=64 * MiB) as d:
        await fill(d, talk, 100)
        async with wire(d, d.token(Role.VISITOR, "v1"), max_size=None) as w:
            for _ in range(100):
                await w.say(sync=frame_pb2.Sync(conversation_id=talk, limit=500))
            for _ in range(100):
                assert (await w.hear("synced")).messages[0].seq == 1


async def test_what_waits_for_chat_is_bounded_in_bytes(
    kafka: str, valkey: str, keys_file: Path, signer: TokenSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "_MAX_WAITING_BYTES", 100_000)
    # There is no chat.
    settings = gateway_settings(free_port(), valkey, keys_file)
    async with (
        running("gateway", settings, deskwire_gateway.app.build) as gateway,
        wire(Address(gateway), signer.mint(tenant="t", role=Role.VISITOR, subject="v")) as w,
    ):
        for number in range(8):
            await w.send(new_id(), LONG, f"m-{number}")
        error = await w.hear("error")
        assert (reason(error.reason), error.temporary) == ("OVERLOADED", True)
        # Seven of 16 KB are more than the limit, which the seventh still was below.
        assert error.client_msg_id == "m-7"


async def test_the_reference_client_asks_on_until_it_has_everything(start: Start) -> None:
    talk = new_id()
    seqs: list[int] = []

    def pushed(push: frame_pb2.Push) -> None:
        if push.HasField("message"):
            seqs.append(push.message.seq)

    async with start() as d:
        await fill(d, talk, 100)
        await d.client(Role.VISITOR, "v1", on_push=pushed)
        await eventually(lambda: seqs == list(range(1, 101)))


async def test_heads_of_very_many_conversations_go_down_in_parts(start: Start) -> None:
    """A bot may have thousands of them; a visitor is told of the newest."""
    many = 10_000
    async with start(max_buffered_bytes=64 * MiB) as d:
        db = await Database.open(d.chat.settings.database_url, pool_size=1)
        try:
            ids = [new_id() for _ in range(many)]
            for first in range(0, many, 1_000):
                rows = [conversation(d, each) for each in ids[first : first + 1_000]]
                await db.run(lambda uow, rows=rows: conversation_rows.add(uow.connection, rows))
        finally:
            await db.close()
        async with wire(d, d.token(Role.BOT, "b1"), max_size=None) as bot:
            heads = {(await bot.hear("head")).conversation_id for _ in range(many)}
            assert heads == set(ids)
        async with wire(d, d.token(Role.VISITOR, "v1"), max_size=None) as w:
            told = [(await w.hear("head")).conversation_id for _ in range(MOST_OPEN)]
            assert len(set(told)) == MOST_OPEN
            assert set(told) < heads
            await w.works()


async def test_a_sync_whose_answer_breaks_the_link_is_given_up(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a chat without these limits answers it: gRPC ends the stream."""
    monkeypatch.setattr(frames, "SYNCED_BYTES", 64 * MiB)
    monkeypatch.setattr(streams, "_MAX_ITEM", 64 * MiB)
    talk, other = new_id(), new_id()
    async with start() as d:
        await fill(d, talk, 300)
        elsewhere = d.token(Role.VISITOR, "v2", tenant="another")
        async with wire(d, elsewhere) as o, wire(d, d.token(Role.VISITOR, "v1")) as w:
            await w.say(sync=frame_pb2.Sync(conversation_id=talk, limit=500))
            error = await w.hear("error")
            assert (reason(error.reason), error.temporary) == ("TOO_LARGE", False)
            assert error.conversation_id == talk
            for seq in range(1, 11):
                await o.send(other, "hello")
                assert (await o.hear("send_ack")).seq == seq
            await w.say(sync=frame_pb2.Sync(conversation_id=talk, limit=5))
            assert len((await w.hear("synced")).messages) == 5


@pytest.mark.parametrize("kind", ["sync", "send"])
async def test_what_breaks_every_link_is_not_said_for_ever(
    kind: str,
    tmp_path: Path,
    kafka: str,
    valkey: str,
    keys_file: Path,
    signer: TokenSigner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sends, "_RESTARTS", 0.5)
    url, port = f"sqlite:///{tmp_path / 'chat.db'}", free_port()
    await migrate(url, "deskwire_chat")
    talk, other = new_id(), new_id()
    async with relay(port) as way:
        chat = chat_settings(
            url,
            kafka,
            keys_file,
            grpc_listen=f"127.0.0.1:{port}",
            advertise=f"127.0.0.1:{way.port}",
        )
        settings = gateway_settings(way.port, valkey, keys_file)
        async with (
            running("chat", chat, deskwire_chat.app.build),
            running("gateway", settings, deskwire_gateway.app.build) as gateway,
            wire(Address(gateway), signer.mint(tenant="t", role=Role.VISITOR, subject="v")) as w,
        ):
            way.breaks_on = talk.encode()
            if kind == "sync":
                await w.say(sync=frame_pb2.Sync(conversation_id=talk))
            else:
                await w.send(talk, "hello", "m-1")
            error = await w.hear("error")
            assert (error.conversation_id, error.temporary) == (talk, True)
            assert error.client_msg_id == ("m-1" if kind == "send" else "")
            assert way.broken >= 3
            broken = way.broken
            await w.send(other, "hello")
            assert (await w.hear("send_ack")).seq == 1
            assert way.broken == broken
            # When it breaks nothing any more it is taken.
            way.breaks_on = b""
            await w.send(talk, "hello", "m-1")
            assert (await w.hear("send_ack")).seq == 1


class Address:
    """Where a gateway's WebSocket is."""

    def __init__(self, gateway: Runtime[Any]) -> None:
        self.url = f"ws://127.0.0.1:{gateway.extra_ports['ws']}/ws"


def conversation(d: Desk, conversation_id: str) -> Conversation:
    return Conversation(
        conversation_id=conversation_id,
        tenant=d.tenant,
        state=State.ACTIVE,
        customer_id=new_id(),
        visitor_id="v1",
        agent_id="b1",
        agent_is_bot=True,
        epoch=1,
        head_seq=0,
        version=1,
        created_at=1,
        assigned_at=0,
        closed_at=0,
    )


async def test_what_is_too_large_for_the_link_becomes_an_error_for_that_connection() -> None:
    stream = streams.Stream()
    stream.put(codec.down_item([7], b"\0" * (4 * MiB), send_id=9))
    stream.put(codec.down_item([8], b"fits"))
    stream.end()
    data = b"".join([each async for each in stream.batches()])
    first, second = shard_pb.LinkResponse.FromString(data).items
    assert (list(first.connection_ids), first.send_id) == ([7], 9)
    (frame,) = frame_pb2.Batch.FromString(first.batch).frames
    assert (reason(frame.error.reason), frame.error.temporary) == ("TOO_LARGE", False)
    assert second.batch == b"fits"
