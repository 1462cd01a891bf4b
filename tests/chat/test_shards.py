"""Several chat processes: partitions come and go, a process is killed, and no message is lost, doubled or reordered."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from deskwire.chat.v1 import conversation_pb2, conversation_service_pb2
from deskwire.chat.v1.conversation_service_pb2_grpc import ConversationServiceStub
from deskwire_chat.domain.conversations import partition_of
from deskwire_chat.store import partitions
from deskwire_client import Client
from deskwire_common import topics
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.db import Database
from deskwire_common.rpc import stream_metadata
from support import eventually
from support.ports import free_port
from support.servers import DatabaseServer
from support.suite import Desk, desk, new_id, owner_of_two
from support.talks import is_with, opened
from support.topic import read_rows

LEASE = 1.0
WINDOW = 6
FEW = 12


class Talker:
    """A visitor who goes on writing, several messages at a time; `acked` is number → seq."""

    def __init__(self, conversation_id: str) -> None:
        self.conversation_id = conversation_id
        self.acked: dict[int, int] = {}
        self.watched: list[int] = []

    async def talk(self, client: Client, stop: asyncio.Event) -> None:
        waiting: deque[tuple[int, Any]] = deque()
        for number in itertools.count(1):
            if stop.is_set():
                break
            waiting.append((number, client.post(self.conversation_id, f"message {number}")))
            if len(waiting) == WINDOW:
                await self._next(waiting)
                # A person's pause: below the gateway's rate, so that it isn't what is tested.
                await asyncio.sleep(0.01)
        while waiting:
            await self._next(waiting)

    async def call(self, stub: ConversationServiceStub, stop: asyncio.Event) -> None:
        """Write with unary calls, at whichever process the stub leads to."""
        for number in itertools.count(1):
            if stop.is_set():
                return
            answer = await stub.SendMessage(
                conversation_service_pb2.SendMessageRequest(
                    conversation_id=self.conversation_id,
                    client_msg_id=f"call-{number}",
                    content=conversation_pb2.Content(text=f"message {number}"),
                ),
                timeout=20,
            )
            self.acked[number] = answer.message.seq

    async def stream(self, stub: ConversationServiceStub, token: str, stop: asyncio.Event) -> None:
        """Write on a public stream, several messages at a time."""
        call = stub.StreamMessages(metadata=stream_metadata(token))
        numbers = itertools.count(1)
        under_way: set[int] = set()
        while under_way or not stop.is_set():
            while len(under_way) < WINDOW and not stop.is_set():
                number = next(numbers)
                under_way.add(number)
                message = conversation_service_pb2.StreamedMessage(
                    conversation_id=self.conversation_id,
                    client_msg_id=f"stream-{number}",
                    content=conversation_pb2.Content(text=f"message {number}"),
                )
                await call.write(conversation_service_pb2.StreamMessagesRequest(messages=[message]))
            answer = await call.read()
            for each in answer.results:
                assert each.WhichOneof("result") == "ack", each
                number = int(each.ack.client_msg_id.removeprefix("stream-"))
                self.acked[number] = each.ack.seq
                under_way.remove(number)
            await asyncio.sleep(0.01)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF

    async def watch(self, stub: ConversationServiceStub, token: str) -> None:
        """Follow the conversation as an integrator, from the cursor again whenever the owner is another one."""
        while True:
            request = conversation_service_pb2.WatchConversationRequest(
                conversation_id=self.conversation_id, after_seq=len(self.watched)
            )
            try:
                async for answer in stub.WatchConversation(
                    request, metadata=stream_metadata(token)
                ):
                    self.watched += [m.seq for m in answer.messages]
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)

    async def _next(self, waiting: deque[tuple[int, Any]]) -> None:
        number, ack = waiting.popleft()
        self.acked[number] = (await ack).seq


class Agent:
    """An agent who notes what comes, per conversation."""

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = {}

    def push(self, push: Any) -> None:
        if push.WhichOneof("subject") == "message":
            self.seen.setdefault(push.message.conversation_id, []).append(push.message.seq)


class Cluster:
    """A desk on chat-0, and chat-1 that comes and goes as a process of its own."""

    def __init__(
        self, d: Desk, db: Database, url: str, kafka: str, keys_file: Path, **more: str
    ) -> None:
        self.desk = d
        self._db = db
        self.port = free_port()
        self._environment = {
            **os.environ,
            "DESKWIRE_GRPC_LISTEN": f"127.0.0.1:{self.port}",
            "DESKWIRE_SHARD_NAME": "chat-1",
            "DESKWIRE_LEASE_SECONDS": str(LEASE),
            "DESKWIRE_DATABASE_URL": url,
            "DESKWIRE_KAFKA": kafka,
            "DESKWIRE_KEYS_FILE": str(keys_file),
            "DESKWIRE_VISITOR_MAX_OPEN": "0",
            "DESKWIRE_VISITOR_OPENINGS_PER_MINUTE": "0",
            **more,
        }
        self._other: Process | None = None

    async def owners(self) -> Counter[str]:
        """How many partitions each process has, as the database says."""
        async with self._db.read() as c:
            return Counter(each.owner for each in await partitions.ROWS.load(c))

    async def two(self) -> None:
        """Start chat-1, and wait until it has its share."""
        self._other = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deskwire_chat", "serve",
            env=self._environment, stdout=DEVNULL, stderr=DEVNULL,
        )  # fmt: skip
        await self._until(Counter(owner_of_two(number) for number in partitions.PARTITION_IDS))

    async def one(self, how: signal.Signals) -> None:
        """End chat-1, and wait until chat-0 has everything."""
        assert self._other is not None
        self._other.send_signal(how)
        await self._other.wait()
        await self._until({"chat-0": 16})

    async def close(self) -> None:
        if self._other is not None and self._other.returncode is None:
            self._other.kill()
            await self._other.wait()

    async def _until(self, owners: Mapping[str, int]) -> None:
        async def are_so() -> bool:
            now = await self.owners()
            assert now == owners, now
            return True

        await eventually(are_so, timeout=40, interval=0.2)


@pytest.fixture(params=["postgres", "mariadb"], name="url")
async def fresh_url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    server = request.getfixturevalue(request.param)
    url = server.fresh()
    yield url
    server.drop(url)


@asynccontextmanager
async def cluster(
    url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner, **chat: float
) -> AsyncIterator[Cluster]:
    """`chat` has settings of both processes."""
    options = {"lease_seconds": LEASE, **chat}
    async with desk(url, kafka, valkey, keys_file, signer, chat=options) as d:
        db = await Database.open(url, pool_size=1)
        settings = {f"DESKWIRE_{name.upper()}": str(value) for name, value in chat.items()}
        found = Cluster(d, db, url, kafka, keys_file, **settings)
        try:
            yield found
        finally:
            await found.close()
            await db.close()


def ids_of(shard: int, count: int) -> list[str]:
    """New conversations that chat-0 or chat-1 has when both are there."""
    fresh = (new_id() for _ in itertools.count())
    return list(
        itertools.islice(
            (each for each in fresh if owner_of_two(partition_of(each)) == f"chat-{shard}"), count
        )
    )


async def test_no_change_of_owners_loses_doubles_or_reorders(
    url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> None:
    async with cluster(url, kafka, valkey, keys_file, signer) as c:
        d = c.desk
        agent = Agent()
        await d.available("ann", capacity=50)
        ann = await d.client(Role.AGENT, "ann", on_push=agent.push)
        # Whom the gateway serves, and who call a process that may be the wrong one.
        chatting = [Talker(each) for shard in (0, 1) for each in ids_of(shard, 3)]
        calling = [Talker(each) for shard in (0, 1) for each in ids_of(shard, 1)]
        streaming = [Talker(each) for shard in (0, 1) for each in ids_of(shard, 1)]
        talkers = [*chatting, *calling, *streaming]
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number, each in enumerate(chatting):
                client = await d.client(Role.VISITOR, f"v-{number}", on_push=lambda _: None)
                group.create_task(each.talk(client, stop))
            for number, each in enumerate(calling):
                stub = ConversationServiceStub(d.channel(Role.VISITOR, f"c-{number}"))
                group.create_task(each.call(stub, stop))
            for number, each in enumerate(streaming):
                stub = ConversationServiceStub(d.channel(Role.VISITOR, f"s-{number}"))
                token = d.token(Role.VISITOR, f"s-{number}")
                group.create_task(each.stream(stub, token, stop))
            await more(talkers)
            stub = ConversationServiceStub(d.channel(Role.OPERATOR, "olga"))
            token = d.token(Role.OPERATOR, "olga")
            watching = [asyncio.create_task(each.watch(stub, token)) for each in talkers]
            await c.two()
            await more(talkers)
            await c.one(signal.SIGTERM)
            await more(talkers)
            await c.two()
            await more(talkers)
            await c.one(signal.SIGKILL)
            await more(talkers)
            stop.set()

        stored: dict[str, list[Any]] = {
            each.conversation_id: await history(stub, each.conversation_id) for each in talkers
        }
        for each in talkers:
            messages = stored[each.conversation_id]
            assert [m.seq for m in messages] == list(range(1, len(messages) + 1))
            texts = {
                m.seq: m.content.text
                for m in messages
                if m.sender.subject[:2] in {"v-", "c-", "s-"}
            }
            # Each acknowledged message once, where its ack said, in the order in which they were sent.
            assert texts == {seq: f"message {number}" for number, seq in each.acked.items()}
            assert list(each.acked.values()) == sorted(each.acked.values())
        await eventually(
            lambda: all(
                ann.position(conversation_id) == len(messages)
                for conversation_id, messages in stored.items()
            )
        )
        assert agent.seen == {
            conversation_id: [m.seq for m in messages]
            for conversation_id, messages in stored.items()
        }

        def everything_was_watched() -> bool:
            for watcher, each in zip(watching, talkers, strict=True):
                if watcher.done():
                    watcher.result()
                assert each.watched == [m.seq for m in stored[each.conversation_id]]
            return True

        await eventually(everything_was_watched)
        for watcher in watching:
            watcher.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await check_kafka(kafka, stored)


async def more(talkers: list[Talker]) -> None:
    """Wait until each has some more acknowledged."""
    wanted = [len(each.acked) + FEW for each in talkers]
    await eventually(
        lambda: all(len(each.acked) >= count for each, count in zip(talkers, wanted, strict=True)),
        timeout=30,
    )


async def history(stub: ConversationServiceStub, conversation_id: str) -> list[Any]:
    found: list[Any] = []
    while True:
        answer = await stub.ListMessages(
            conversation_service_pb2.ListMessagesRequest(
                conversation_id=conversation_id, after_seq=len(found), page_size=1_000
            )
        )
        found += answer.messages
        if len(found) >= answer.head_seq:
            return found


async def check_kafka(bootstrap: str, stored: dict[str, list[Any]]) -> None:
    """Everything is there, in order of the first time."""

    async def is_there() -> bool:
        order: dict[str, list[int]] = {each: [] for each in stored}
        for row in await read_rows(bootstrap, topics.MESSAGES.name):
            if row["subject"] in order:
                order[row["subject"]].append(row["sequence"])
        assert order == {each: [m.seq for m in messages] for each, messages in stored.items()}
        return True

    await eventually(is_there, timeout=30, interval=0.5)


async def test_a_kill_leaves_nobody_with_an_agent_who_is_gone(
    postgres: DatabaseServer, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> None:
    """The process that has the conversation dies together with the agent's machine."""
    url = postgres.fresh()
    async with cluster(url, kafka, valkey, keys_file, signer, agent_away_seconds=1.5) as c:
        await c.two()
        d = c.desk
        ann = await d.client(Role.AGENT, "ann")
        await d.available("ann")
        talks = [*ids_of(0, 1), *ids_of(1, 1)]
        for talk in talks:
            await opened(d, "v-1", talk)
            await eventually(lambda talk=talk: is_with(d, talk, "ann"))
        await d.client(Role.AGENT, "bob")
        await d.available("bob")
        await ann.close()
        await c.one(signal.SIGKILL)
        for talk in talks:
            await eventually(lambda talk=talk: is_with(d, talk, "bob"), timeout=30)
    postgres.drop(url)
