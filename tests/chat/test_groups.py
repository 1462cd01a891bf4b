"""Groups of the writer: one statement on PostgreSQL, all or nothing, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import itertools
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import deskwire_chat.app
from deskwire.chat.v1 import conversation_pb2
from deskwire.chat.v1.conversation_service_pb2 import CloseConversationRequest, SendMessageRequest
from deskwire.chat.v1.conversation_service_pb2_grpc import ConversationServiceStub
from deskwire_chat.domain.actors import Actor, ActorRole
from deskwire_chat.domain.conversations import partition_of
from deskwire_chat.domain.messages import Message
from deskwire_chat.log import memory
from deskwire_chat.log.commands import Put
from deskwire_chat.log.commit import Committer
from deskwire_chat.log.group import Group
from deskwire_chat.store import messages, partitions
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.db import Database, Statements
from deskwire_common.lifecycle import running
from deskwire_common.migrations import migrate
from deskwire_common.rpc import make_channel
from support.servers import DatabaseServer
from support.suite import a_message, chat_settings, desk, new_id


@pytest.fixture
async def db(postgres: DatabaseServer) -> AsyncIterator[Database]:
    url = postgres.fresh()
    await migrate(url, "deskwire_chat")
    database = await Database.open(url)
    await database.run(lambda uow: partitions.ROWS.add(uow, partitions.PARTITION_IDS))
    yield database
    await database.close()
    postgres.drop(url)


@pytest.fixture
async def statements(db: Database) -> AsyncIterator[Statements]:
    statements = db.statements()
    yield statements
    await statements.close()


def an_item(conversation_id: str, seq: int, position: int, name: str = "") -> Message:
    """A message with what is awkward in an array of PostgreSQL."""
    return a_message(
        conversation_id=conversation_id,
        seq=seq,
        position=position,
        name=name,
        subject="v:1@x.y-z",
        client_msg_id=f"{name} {seq}",
        origin="",
        body=b'\x00\x01\\"{},\xff' * seq,
    )


async def stored(db: Database, conversation_id: str) -> list[Message]:
    async with db.read() as c:
        return await messages.after_seq(c, conversation_id, seq=0, limit=100, max_bytes=1 << 20)


async def send(stub: ConversationServiceStub, talk: str, number: int) -> tuple[int, bool]:
    """Send a message with this number as its text and id; its seq, and whether it was there."""
    answer = await stub.SendMessage(
        SendMessageRequest(
            conversation_id=talk,
            client_msg_id=str(number),
            content=conversation_pb2.Content(text=str(number)),
        )
    )
    return answer.message.seq, answer.duplicate


async def test_messages_come_back_as_they_went_in(db: Database, statements: Statements) -> None:
    talk = str(uuid.uuid4())
    names = ["", 'Ann "the" {Agent}, NULL\\', "NULL", "Zoë 李 🙂", "\\", "a\tb"]
    items = [an_item(talk, place, place, name) for place, name in enumerate(names, 1)]
    number = partition_of(talk)
    assert await messages.append_to_log(statements, items[:2], {number: (0, 0, 2)}, {number: 1})
    assert await messages.append_to_log(statements, items[2:4], {number: (0, 2, 4)}, {})
    async with db.transaction() as uow:
        await messages.append(uow, items[4:])
        await uow.commit()
    assert await stored(db, talk) == items
    async with db.read() as c:
        found = {each.id: each for each in await partitions.ROWS.load(c)}
    assert (found[number].head, found[number].published) == (4, 1)


async def test_without_all_of_its_heads_a_group_writes_nothing(
    db: Database, statements: Statements
) -> None:
    one, other = "", ""
    while not one or not other:
        talk = str(uuid.uuid4())
        one, other = (talk, other) if partition_of(talk) == 3 else (one, other)
        one, other = (one, talk) if partition_of(talk) == 4 else (one, other)
    items = [an_item(one, 1, 1), an_item(other, 1, 1)]
    good = {3: (0, 0, 1), 4: (0, 0, 1)}
    for wrong in ({4: (1, 0, 1)}, {4: (0, 7, 8)}, {3: (1, 0, 1), 4: (1, 0, 1)}):
        assert not await messages.append_to_log(statements, items, good | wrong, {3: 5})
        assert [await stored(db, each) for each in (one, other)] == [[], []]
        async with db.read() as c:
            assert {(each.head, each.published) for each in await partitions.ROWS.load(c)} == {
                (0, 0)
            }
    assert await messages.append_to_log(statements, items, good, {})
    assert [await stored(db, each) for each in (one, other)] == [items[:1], items[1:]]


async def test_groups_are_no_work_for_the_collector(
    postgres: DatabaseServer, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> None:
    url = postgres.fresh()
    async with desk(url, kafka, valkey, keys_file, signer) as d:
        await d.available("ann")
        visitor = await d.client(Role.VISITOR, "1001")
        talk = new_id()
        await visitor.send(talk, "0")
        gc.collect()
        gc.disable()
        try:
            for number in range(1, 20):
                await visitor.send(talk, str(number))
            assert not [each for each in gc.get_objects() if isinstance(each, Group)]
        finally:
            gc.enable()
    postgres.drop(url)


async def test_what_was_forgotten_to_make_room_is_still_stored_once(
    database_url: str,
    kafka: str,
    keys_file: Path,
    signer: TokenSigner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "CACHED", 1)
    await migrate(database_url, "deskwire_chat")
    settings = chat_settings(database_url, kafka, keys_file)
    token = signer.mint(tenant="acme", role=Role.VISITOR, subject="me")
    async with (
        running("chat", settings, deskwire_chat.app.build) as chat,
        make_channel(f"127.0.0.1:{chat.port}", token=lambda: token) as channel,
    ):
        stub = ConversationServiceStub(channel)

        talks = [new_id() for _ in range(6)]
        for number in range(1, 6):
            # Together, so that they are in one group and each makes the others forgotten.
            assert await asyncio.gather(*(send(stub, talk, number) for talk in talks)) == [
                (number, False)
            ] * len(talks)
            again = await asyncio.gather(*(send(stub, talk, 1) for talk in talks))
            assert again == [(1, True)] * len(talks)

    me = Actor("acme", ActorRole.VISITOR, "me")
    repeated = [Put(me, talk, "1", b"", lambda _: None) for talk in talks]
    database = await Database.open(database_url)
    known = await memory.Memory(database).load(repeated)
    await database.close()
    assert known.conversations.keys() == set(talks)
    assert known.sent.keys() == {each.key for each in repeated}


async def test_what_is_little_is_one_group_of_both_lanes_and_nothing_waits_for_ever(
    postgres: DatabaseServer,
    kafka: str,
    keys_file: Path,
    signer: TokenSigner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups: list[set[int]] = []
    write = Committer.write

    async def recorded(
        self: Committer, commands: list[Any], statements: Statements | None = None
    ) -> None:
        groups.append({partition_of(each.conversation_id) % 2 for each in commands})
        await write(self, commands, statements)

    monkeypatch.setattr(Committer, "write", recorded)
    url = postgres.fresh()
    await migrate(url, "deskwire_chat")
    settings = chat_settings(url, kafka, keys_file)
    me = signer.mint(tenant="acme", role=Role.VISITOR, subject="me")
    operator = signer.mint(tenant="acme", role=Role.OPERATOR, subject="op")
    talks: dict[int, str] = {}
    while len(talks) < 2:
        talk = new_id()
        talks.setdefault(partition_of(talk) % 2, talk)
    async with (
        running("chat", settings, deskwire_chat.app.build) as chat,
        make_channel(f"127.0.0.1:{chat.port}", token=lambda: me) as channel,
        make_channel(f"127.0.0.1:{chat.port}", token=lambda: operator) as desk_channel,
    ):
        stub = ConversationServiceStub(channel)
        closed = asyncio.Event()

        async def send_ten(talk: str, round_number: int) -> None:
            numbers = range(10 * round_number + 1, 10 * round_number + 11)
            answers = await asyncio.gather(*(send(stub, talk, each) for each in numbers))
            assert sorted(answers) == [(each, False) for each in numbers]

        async def busy(talk: str) -> None:
            for number in itertools.count():
                await send_ten(talk, number)
                if number >= 10 and closed.is_set():
                    return

        async def quiet(talk: str) -> None:
            for number in range(10):
                await send_ten(talk, number)
            # A command that has to be alone, in a lane that the other's groups would take along.
            await ConversationServiceStub(desk_channel).CloseConversation(
                CloseConversationRequest(request_id="1", conversation_id=talk)
            )
            closed.set()

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(busy(talks[0]))
            group.create_task(quiet(talks[1]))
    postgres.drop(url)
    assert {0, 1} in groups
