"""WatchConversation on three databases: history and what comes, once, in order, across restarts and slow readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

import deskwire_chat.app
from deskwire.chat.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    conversation_pb2,
    conversation_service_pb2_grpc,
)
from deskwire.chat.v1 import conversation_service_pb2 as pb
from deskwire_chat.streams import watch
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.errors import from_rpc_error
from deskwire_common.lifecycle import Runtime, running
from deskwire_common.migrations import migrate
from deskwire_common.rpc import make_channel, stream_metadata
from support import eventually
from support.servers import DatabaseServer
from support.suite import chat_settings, new_id, second_process

Start = Callable[..., AbstractAsyncContextManager[Runtime[Any]]]
QUEUED = conversation_pb2.CONVERSATION_STATE_QUEUED
CLOSED = conversation_pb2.CONVERSATION_STATE_CLOSED


@pytest.fixture
async def start(database_url: str, kafka: str, keys_file: Path) -> Start:
    """Starts a chat process on the test's database, with the settings that are given."""
    await migrate(database_url, "deskwire_chat")
    settings = partial(chat_settings, database_url, kafka, keys_file)
    return lambda **more: running("chat", settings(**more), deskwire_chat.app.build)


@pytest.fixture
async def on_sqlite(tmp_path: Path, kafka: str, keys_file: Path) -> Start:
    """As `start`, where the database makes no difference."""
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    await migrate(url, "deskwire_chat")
    settings = partial(chat_settings, url, kafka, keys_file)
    return lambda **more: running("chat", settings(**more), deskwire_chat.app.build)


class Somebody:
    """A caller of chat."""

    def __init__(self, channel: grpc.aio.Channel, bare: grpc.aio.Channel, token: str) -> None:
        self.token = token
        self.streams = conversation_service_pb2_grpc.ConversationServiceStub(bare)
        self.agents = agent_service_pb2_grpc.AgentServiceStub(channel)
        self.calls = conversation_service_pb2_grpc.ConversationServiceStub(channel)

    async def send(self, talk: str, *texts: str) -> None:
        for text in texts:
            await self.calls.SendMessage(
                pb.SendMessageRequest(
                    conversation_id=talk,
                    client_msg_id=text[:64],
                    content=conversation_pb2.Content(text=text),
                )
            )

    async def fill(self, talk: str, count: int, first: int = 0) -> None:
        """Send `count` texts: their numbers from `first` on."""
        numbers = range(first, first + count)
        for place in range(0, count, 100):
            await asyncio.gather(
                *(self.send(talk, str(number)) for number in numbers[place : place + 100])
            )

    async def close(self, talk: str) -> None:
        await self.calls.CloseConversation(
            pb.CloseConversationRequest(request_id=new_id(), conversation_id=talk)
        )

    def watch(self, talk: str, after_seq: int = 0, **more: Any) -> Watched:
        request = pb.WatchConversationRequest(
            conversation_id=talk, after_seq=after_seq, epoch=more.pop("epoch", 0)
        )
        call = self.streams.WatchConversation(request, metadata=stream_metadata(self.token), **more)
        return Watched(call, after_seq)


class Watched:
    """What a watch has told, each response checked against the promises."""

    def __init__(self, call: Any, cursor: int) -> None:
        self.call = call
        self.cursor = cursor
        self.texts: list[str] = []
        self.conversations: list[conversation_pb2.Conversation] = []

    async def next(self) -> bool:
        """Take a response; False at the end."""
        response = await self.call.read()
        if response is grpc.aio.EOF:
            return False
        for each in response.messages:
            assert each.seq == self.cursor + 1
            self.cursor = each.seq
            self.texts.append(each.content.text)
        assert response.cursor == self.cursor
        assert response.epoch == 1
        if response.HasField("conversation"):
            versions = [each.version for each in self.conversations]
            assert response.conversation.version > max(versions, default=0)
            self.conversations.append(response.conversation)
        return True

    async def until(self, cursor: int) -> None:
        while self.cursor < cursor:
            assert await self.next()

    async def end(self) -> str:
        """Why it ends: OK when by itself."""
        try:
            while await self.next():
                pass
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error).reason_name
        return str((await self.call.code()).name)


@asynccontextmanager
async def somebody(
    chat: Runtime[Any], signer: TokenSigner, role: Role, **more: Any
) -> AsyncIterator[Somebody]:
    token = signer.mint(
        tenant=more.pop("tenant", "acme"), role=role, subject=more.pop("subject", "me"), **more
    )
    address = f"127.0.0.1:{chat.port}"
    async with (
        make_channel(address, token=lambda: token) as channel,
        make_channel(address, bare=True) as bare,
    ):
        yield Somebody(channel, bare, token)


async def test_history_then_what_comes_then_the_end(start: Start, signer: TokenSigner) -> None:
    talk = new_id()
    async with (
        start() as chat,
        somebody(chat, signer, Role.VISITOR) as me,
        somebody(chat, signer, Role.OPERATOR, subject="olga") as desk,
    ):
        await me.fill(talk, 450)
        mine, theirs, late = me.watch(talk), desk.watch(talk.upper()), desk.watch(talk, 440)
        await mine.until(100)
        await me.fill(talk, 150, 450)
        for each in (mine, theirs, late):
            await each.until(600)
        assert sorted(theirs.texts, key=int) == [str(number) for number in range(600)]
        assert mine.texts == theirs.texts
        assert late.texts == theirs.texts[440:]
        assert [each.state for each in theirs.conversations] == [QUEUED]
        await desk.close(talk)
        for each in (mine, theirs, late):
            assert await each.end() == "OK"
            assert [each.state for each in each.conversations] == [QUEUED, CLOSED]
            assert each.conversations[-1].head_seq == 600
        # A watch of what is over tells it, and ends.
        again = me.watch(talk, 599)
        assert await again.end() == "OK"
        assert (again.texts, again.cursor) == (theirs.texts[599:], 600)


async def test_a_watch_goes_on_after_a_restart(start: Start, signer: TokenSigner) -> None:
    talk = new_id()
    texts: list[str] = []
    cursor = 0
    for life in range(3):
        async with AsyncExitStack() as stack, start() as chat:
            me = await stack.enter_async_context(somebody(chat, signer, Role.VISITOR))
            watched = me.watch(talk, cursor) if life else None
            await me.fill(talk, 60, life * 100)
            watched = watched or me.watch(talk)
            await watched.until(cursor + 40)
            await me.fill(talk, 40, life * 100 + 60)
            ending = asyncio.create_task(watched.end())
            stack.push_async_callback(said, ending, "SHUTTING_DOWN")
        texts += watched.texts
        cursor = watched.cursor
    async with start() as chat, somebody(chat, signer, Role.VISITOR) as me:
        watched = me.watch(talk, cursor, epoch=1)
        await watched.until(300)
        texts += watched.texts
        assert sorted(texts, key=int) == [str(number) for number in range(300)]


async def said(ending: asyncio.Task[str], reason: str) -> None:
    assert await ending == reason


async def test_any_process_serves_a_watch_and_another_goes_on_with_it(
    postgres: DatabaseServer, kafka: str, keys_file: Path, signer: TokenSigner
) -> None:
    url = postgres.fresh()
    await migrate(url, "deskwire_chat")
    talks = [new_id() for _ in range(12)]
    async with running(
        "chat", chat_settings(url, kafka, keys_file, lease_seconds=5.0), deskwire_chat.app.build
    ) as there:
        stays = await there.stack.enter_async_context(somebody(there, signer, Role.VISITOR))
        async with AsyncExitStack() as stack:
            here = await stack.enter_async_context(
                second_process(url, kafka, keys_file, lease_seconds=5.0)
            )
            me = await there.stack.enter_async_context(somebody(here, signer, Role.VISITOR))
            for talk in talks:
                await me.fill(talk, 10)
            watched = [each.watch(talk) for talk in talks for each in (me, stays)]
            for each in watched:
                await each.until(10)
            for talk in talks:
                await stays.fill(talk, 10, 10)
            for each in watched:
                await each.until(20)
            ends = [asyncio.create_task(each.end()) for each in watched]
        # The process that has gone had some of them itself, and some for the other one.
        await stays.fill(talks[0], 1, 20)
        for talk, ending, each in zip(talks, ends[1::2], watched[1::2], strict=True):
            if ending.done():
                assert await ending in {"NOT_OWNER", "SHUTTING_DOWN"}
                assert each.cursor == 20
            await stays.fill(talk, 5, 20)
            again = stays.watch(talk, 20)
            await again.until(25)
            assert sorted(again.texts) == [str(number) for number in range(20, 25)]
        for ending in ends[::2]:
            assert await ending in {"NOT_OWNER", "SHUTTING_DOWN"}


async def test_a_slow_reader_loses_nothing(on_sqlite: Start, signer: TokenSigner) -> None:
    talk = new_id()
    async with on_sqlite() as chat, somebody(chat, signer, Role.VISITOR) as me:
        await me.send(talk, "0")
        slow, quick = me.watch(talk), me.watch(talk)
        await slow.until(1)
        # Far more than waits in memory, and than the transport takes unread.
        long = "x" * 7_900
        count = watch.TAIL * 4
        for place in range(0, count, 64):
            await asyncio.gather(
                *(me.send(talk, f"{number} {long}") for number in range(place, place + 64))
            )
        await quick.until(count + 1)
        await slow.until(count + 1)
        assert slow.texts == quick.texts
        assert len(slow.texts) == count + 1


async def test_who_may_watch_what(on_sqlite: Start, signer: TokenSigner) -> None:
    talk = new_id()
    async with (
        on_sqlite(max_streams=3, max_tenant_streams=2) as chat,
        somebody(chat, signer, Role.VISITOR) as me,
        somebody(chat, signer, Role.VISITOR, subject="other") as other,
        somebody(chat, signer, Role.OPERATOR, tenant="rivals") as rival,
        somebody(chat, signer, Role.AGENT, subject="alice") as alice,
        somebody(chat, signer, Role.OPERATOR, subject="olga") as desk,
    ):
        await me.send(talk, "hello")
        for stranger in (other, rival):
            assert await stranger.watch(talk).end() == "CONVERSATION_NOT_FOUND"
        assert await me.watch(new_id()).end() == "CONVERSATION_NOT_FOUND"
        assert await me.watch("nonsense").end() == "INVALID_FIELD"
        assert await me.watch(talk, 2).end() == "CURSOR_EXPIRED"
        assert await me.watch(talk, 1, epoch=2).end() == "CURSOR_EXPIRED"
        # Good for two seconds or three, as clocks may differ by five.
        async with somebody(chat, signer, Role.VISITOR, ttl=-2.0) as brief:
            watched = brief.watch(talk)
            await watched.until(1)
            assert await watched.end() == "TOKEN_EXPIRED"
        assert await me.watch(talk, timeout=0.3).end() == "DEADLINE_EXCEEDED"
        # Two of a tenant, three of the process.
        theirs = new_id()
        async with somebody(chat, signer, Role.VISITOR, tenant="rivals", subject="you") as you:
            await you.send(theirs, "hello")
        held = [me.watch(talk), alice.watch(talk)]
        for each in held:
            await each.until(1)
        assert await me.watch(talk).end() == "RATE_LIMITED"
        there = rival.watch(theirs)
        await there.until(1)
        assert await rival.watch(theirs).end() == "OVERLOADED"
        held[0].call.cancel()
        await eventually(partial(may_watch, me, talk))
        # Who is shut out stops seeing.
        await desk.agents.CreateAgent(
            agent_service_pb2.CreateAgentRequest(request_id=new_id(), agent_id="alice")
        )
        await desk.agents.DisableAgent(
            agent_service_pb2.DisableAgentRequest(request_id=new_id(), agent_id="alice")
        )
        assert await held[1].end() == "AGENT_DISABLED"


async def may_watch(me: Somebody, talk: str) -> bool:
    watched = me.watch(talk)
    try:
        await watched.until(1)
    except grpc.aio.AioRpcError:
        return False
    return True
