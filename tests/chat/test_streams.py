"""StreamMessages on three databases: acks after the commit, order, refusals, restarts, and what ends a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Self

import grpc
import pytest

import deskwire_chat.app
from deskwire.chat.v1 import conversation_pb2, conversation_service_pb2_grpc
from deskwire.chat.v1 import conversation_service_pb2 as pb
from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat.streams.send import RESULTS, WINDOW
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.errors import from_rpc_error
from deskwire_common.lifecycle import Runtime, running
from deskwire_common.migrations import migrate
from deskwire_common.rpc import make_channel, stream_metadata
from support import eventually
from support.suite import chat_settings, new_id

Start = Callable[..., AbstractAsyncContextManager[Runtime[Any]]]


@pytest.fixture
async def start(database_url: str, kafka: str, keys_file: Path) -> Start:
    """Starts a chat process on the test's database, with the settings that are given."""
    await migrate(database_url, "deskwire_chat")

    def chat(**settings: Any) -> AbstractAsyncContextManager[Runtime[Any]]:
        return running(
            "chat",
            chat_settings(database_url, kafka, keys_file, **settings),
            deskwire_chat.app.build,
        )

    return chat


def message(conversation_id: str, number: object, text: str = "") -> pb.StreamedMessage:
    return pb.StreamedMessage(
        conversation_id=conversation_id,
        client_msg_id=str(number),
        content=conversation_pb2.Content(text=text or f"text {number}"),
    )


class Caller:
    """Somebody with a channel to chat."""

    def __init__(self, chat: Runtime[Any], signer: TokenSigner, role: Role, **more: Any) -> None:
        self.token = signer.mint(
            tenant=more.pop("tenant", "acme"), role=role, subject=more.pop("subject", "me"), **more
        )
        self.bare = make_channel(f"127.0.0.1:{chat.port}", bare=True)
        self.channel = make_channel(f"127.0.0.1:{chat.port}", token=lambda: self.token)
        self.streams = conversation_service_pb2_grpc.ConversationServiceStub(self.bare)
        self.calls = conversation_service_pb2_grpc.ConversationServiceStub(self.channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.bare.close()
        await self.channel.close()

    def stream(self, **more: Any) -> Any:
        """A stream that is open; not through interceptors, as they keep what passes."""
        return self.streams.StreamMessages(metadata=stream_metadata(self.token), **more)

    async def history(self, conversation_id: str) -> list[conversation_pb2.Message]:
        found = await self.calls.ListMessages(
            pb.ListMessagesRequest(conversation_id=conversation_id, page_size=1000)
        )
        return list(found.messages)

    async def head(self, conversation_id: str) -> int:
        found = await self.calls.GetConversation(
            pb.GetConversationRequest(conversation_id=conversation_id)
        )
        return int(found.conversation.head_seq)


async def write(stream: Any, *messages: pb.StreamedMessage) -> None:
    await stream.write(pb.StreamMessagesRequest(messages=messages))


async def results(stream: Any, count: int) -> list[pb.StreamedResult]:
    found: list[pb.StreamedResult] = []
    while len(found) < count:
        response = await stream.read()
        assert response is not grpc.aio.EOF
        assert 0 < len(response.results) <= RESULTS
        found += response.results
    return found


def reason(result: pb.StreamedResult) -> str:
    return reasons.ErrorReason.Name(result.error.reason).removeprefix("ERROR_REASON_")


async def ended(stream: Any) -> str:
    """Why a stream has ended, OK when by itself."""
    try:
        while await stream.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason_name
    return str((await stream.code()).name)


async def test_every_message_is_acknowledged_once_it_is_stored_and_in_order(
    start: Start, signer: TokenSigner
) -> None:
    async with start() as chat, Caller(chat, signer, Role.VISITOR) as me:
        talks = [new_id() for _ in range(3)]
        stream = me.stream()
        sent = [message(talks[number % 3], number) for number in range(1500)]
        writing = asyncio.create_task(write_all(stream, sent))
        found = await results(stream, len(sent))
        await writing
        assert await ended(stream) == "OK"
        for talk in talks:
            acks = [each.ack for each in found if each.ack.conversation_id == talk]
            stored = await me.history(talk)
            assert [each.seq for each in acks] == list(range(1, 501))
            assert [(each.message_id, each.client_msg_id) for each in acks] == [
                (each.message_id, each.client_msg_id) for each in stored
            ]
            assert [each.client_msg_id for each in acks] == [
                each.client_msg_id for each in sent if each.conversation_id == talk
            ]
            assert {each.epoch for each in acks} == {1}
            assert acks[0].create_time == stored[0].create_time


async def write_all(stream: Any, sent: list[pb.StreamedMessage], size: int = 100) -> None:
    for place in range(0, len(sent), size):
        await write(stream, *sent[place : place + size])
    await stream.done_writing()


async def test_a_refusal_is_a_result_and_the_stream_goes_on(
    start: Start, signer: TokenSigner
) -> None:
    async with (
        start() as chat,
        Caller(chat, signer, Role.VISITOR) as me,
        Caller(chat, signer, Role.VISITOR, subject="other") as other,
        Caller(chat, signer, Role.AGENT, subject="alice", tenant="rivals") as rival,
    ):
        talk = new_id()
        stream = me.stream()
        await write(
            stream,
            message("no id", 1),
            message(talk, "x" * 65),
            message(talk, 2, "x" * 8001),
            pb.StreamedMessage(conversation_id=talk, client_msg_id="3"),
            message(talk, "blank "),
            message(talk, "good"),
            message(talk, "good"),
            message(talk, "good", "another text"),
            message(talk.upper(), "last"),
        )
        found = await results(stream, 9)
        by_id = {(each.error.client_msg_id, each.error.conversation_id): each for each in found}
        for refused in (("1", "no id"), ("x" * 64, talk), ("2", talk), ("3", talk)):
            assert reason(by_id[refused]) == "INVALID_FIELD"
            assert not by_id[refused].error.temporary
        assert reason(by_id["blank ", talk]) == "INVALID_FIELD"
        assert reason(by_id["good", talk]) == "CLIENT_MSG_ID_REUSED"
        acks = [each.ack for each in found if each.HasField("ack")]
        assert [(each.client_msg_id, each.seq, each.duplicate) for each in acks] == [
            ("good", 1, False),
            ("good", 1, True),
            ("last", 2, False),
        ]
        for somebody in (other, rival):
            theirs = somebody.stream()
            await write(theirs, message(talk, 1))
            assert [reason(each) for each in await results(theirs, 1)] == ["CONVERSATION_NOT_FOUND"]
            await theirs.done_writing()
            assert await ended(theirs) == "OK"
        assert [each.content.text for each in await me.history(talk)] == ["text good", "text last"]
        await stream.done_writing()
        assert await ended(stream) == "OK"


async def test_a_restart_loses_and_doubles_nothing(start: Start, signer: TokenSigner) -> None:
    talk = new_id()
    sent = [message(talk, number) for number in range(3000)]
    acked: dict[str, int] = {}

    async def go_on(me: Caller, *, enough: int) -> str:
        """Send what has no ack, in order, until the stream ends or there are `enough`."""
        stream = me.stream()
        writing = asyncio.create_task(
            write_all(stream, [each for each in sent if each.client_msg_id not in acked])
        )
        try:
            while len(acked) < enough:
                for each in (await stream.read()).results:
                    assert each.HasField("ack"), each
                    acked[each.ack.client_msg_id] = each.ack.seq
        finally:
            if enough < len(sent):
                stopped.set()
            try:
                rest = stream.read()
                while (response := await rest) is not grpc.aio.EOF:
                    for each in response.results:
                        if each.HasField("ack"):
                            acked[each.ack.client_msg_id] = each.ack.seq
                    rest = stream.read()
                end = "OK"
            except grpc.aio.AioRpcError as error:
                end = from_rpc_error(error).reason_name
            await asyncio.gather(writing, return_exceptions=True)
        return end

    stopped = asyncio.Event()
    async with start() as chat:
        first = Caller(chat, signer, Role.VISITOR)
        going = asyncio.create_task(go_on(first, enough=300))
        await stopped.wait()
    assert await going == "SHUTTING_DOWN"
    await first.__aexit__()
    async with start() as chat, Caller(chat, signer, Role.VISITOR) as me:
        assert await go_on(me, enough=len(sent)) == "OK"
        stored = [each async for each in whole(me, talk)]
        assert [each.client_msg_id for each in stored] == [each.client_msg_id for each in sent]
        assert [each.seq for each in stored] == [acked[each.client_msg_id] for each in stored]


async def whole(me: Caller, talk: str) -> AsyncIterator[conversation_pb2.Message]:
    after = 0
    while True:
        page = await me.calls.ListMessages(
            pb.ListMessagesRequest(conversation_id=talk, after_seq=after, page_size=1000)
        )
        for each in page.messages:
            yield each
        if not page.messages:
            return
        after = page.messages[-1].seq


@pytest.fixture
async def on_sqlite(tmp_path: Path, kafka: str, keys_file: Path) -> Start:
    """As `start`, where the database makes no difference."""
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    await migrate(url, "deskwire_chat")
    settings = partial(chat_settings, url, kafka, keys_file)
    return lambda **more: running("chat", settings(**more), deskwire_chat.app.build)


async def test_a_sender_who_reads_no_results_is_not_read_from(
    on_sqlite: Start, signer: TokenSigner
) -> None:
    # A client whose transport takes little that it doesn't read.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    async with (
        on_sqlite() as chat,
        Caller(chat, signer, Role.VISITOR) as me,
        grpc.aio.insecure_channel(f"127.0.0.1:{chat.port}", options=options) as small,
    ):
        stub: Any = conversation_service_pb2_grpc.ConversationServiceStub(small)
        stream = stub.StreamMessages(metadata=stream_metadata(me.token))
        talk = new_id()
        sent = [message(talk, number) for number in range(6_000)]
        await me.calls.SendMessage(
            pb.SendMessageRequest(conversation_id=talk, client_msg_id="0", content=sent[0].content)
        )
        writing = asyncio.create_task(write_all(stream, sent))
        heads = [0]

        async def stuck() -> bool:
            heads.append(await me.head(talk))
            return 0 < heads[-1] == heads[-2]

        await eventually(stuck, interval=0.3)
        assert heads[-1] < len(sent) - WINDOW
        found = await results(stream, len(sent))
        await writing
        assert [each.ack.seq for each in found] == list(range(1, len(sent) + 1))
        assert found[0].ack.duplicate


async def test_what_ends_a_stream(on_sqlite: Start, signer: TokenSigner) -> None:
    async with (
        on_sqlite(max_streams=3, max_tenant_streams=2) as chat,
        Caller(chat, signer, Role.VISITOR) as me,
        Caller(chat, signer, Role.VISITOR, tenant="others") as other,
        Caller(chat, signer, Role.OPERATOR) as operator,
    ):
        assert await ended(operator.stream()) == "ROLE_NOT_ALLOWED"
        # Good for two seconds or three, as clocks may differ by five.
        async with Caller(chat, signer, Role.VISITOR, ttl=-2.0) as brief:
            short = brief.stream()
            await write(short, message(new_id(), 1))
            await results(short, 1)
            assert await ended(short) == "TOKEN_EXPIRED"
        slow = me.stream(timeout=0.5)
        await write(slow, message(new_id(), 1))
        await results(slow, 1)
        assert await ended(slow) == "DEADLINE_EXCEEDED"
        for broken in ([], [message(new_id(), number) for number in range(501)]):
            stream = me.stream()
            await write(stream, message(new_id(), 1))
            await write(stream, *broken)
            # What came before is answered.
            assert (await results(stream, 1))[0].ack.seq == 1
            assert await ended(stream) == "INVALID_FIELD"
        held = [me.stream(), me.stream(), other.stream()]
        for each in held:
            await write(each, message(new_id(), 1))
            await results(each, 1)
        assert await ended(me.stream()) == "RATE_LIMITED"
        assert await ended(other.stream()) == "OVERLOADED"
        held[0].cancel()
        await eventually(partial(stores, me))


async def stores(me: Caller) -> bool:
    stream = me.stream()
    try:
        await write(stream, message(new_id(), 1))
        await results(stream, 1)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return False
    return True
