"""Two processes that both think they own the conversations: the database decides, and no message is numbered twice."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import deskwire_chat.app
import deskwire_gateway.app
from deskwire.chat.v1 import conversation_service_pb2, conversation_service_pb2_grpc
from deskwire_chat.domain.conversations import partition_of
from deskwire_chat.store import partitions
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.db import Database
from deskwire_common.errors import FailedPrecondition
from deskwire_common.lifecycle import running
from deskwire_common.migrations import migrate
from support import eventually
from support.suite import Desk, chat_settings, desk, gateway_settings, new_id


async def history(d: Desk, conversation_id: str) -> list[tuple[int, str]]:
    """What is stored, as the newest process reads it."""
    stub = conversation_service_pb2_grpc.ConversationServiceStub(d.channel(Role.OPERATOR, "olga"))
    found = await stub.ListMessages(
        conversation_service_pb2.ListMessagesRequest(conversation_id=conversation_id)
    )
    return [(each.seq, each.content.text) for each in found.messages]


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
async def test_the_old_owner_stores_nothing_more(
    request: pytest.FixtureRequest,
    kind: str,
    kafka: str,
    valkey: str,
    keys_file: Path,
    signer: TokenSigner,
) -> None:
    server = request.getfixturevalue(kind)
    url = server.fresh()
    async with desk(url, kafka, valkey, keys_file, signer) as old, AsyncExitStack() as stack:
        conversation = new_id()
        late = await old.client(Role.VISITOR, "1001")
        assert (await late.send(conversation, "one")).seq == 1

        # Its next life begins while it still runs: it was taken for dead.
        chat = await stack.enter_async_context(
            running("chat", chat_settings(url, kafka, keys_file), deskwire_chat.app.build)
        )
        gateway = await stack.enter_async_context(
            running(
                "gateway",
                gateway_settings(chat.port, valkey, keys_file),
                deskwire_gateway.app.build,
            )
        )
        new = Desk(signer, chat, gateway, stack, old.tenant)

        # What the old one is asked to store from now on it doesn't store: its gateway is told who owns it now.
        assert (await late.send(conversation, "two")).seq == 2
        visitor = await new.client(Role.VISITOR, "1001")
        assert (await visitor.send(conversation, "three")).seq == 3
        assert await history(new, conversation) == [(1, "one"), (2, "two"), (3, "three")]
        # The old process knows, owns nothing and goes on: all partitions are in the new one's terms.
        assert set((await terms(url)).values()) == {2}
        assert await history(old, conversation) == await history(new, conversation)
        assert not old.chat.crashed.done()
    server.drop(url)


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
async def test_one_partition_that_was_taken_away_is_the_only_one_lost(
    request: pytest.FixtureRequest,
    kind: str,
    kafka: str,
    valkey: str,
    keys_file: Path,
    signer: TokenSigner,
) -> None:
    server = request.getfixturevalue(kind)
    url = server.fresh()
    async with desk(url, kafka, valkey, keys_file, signer) as d:
        visitor = await d.client(Role.VISITOR, "1001")
        taken, kept = next(
            (one, other)
            for one, other in ((new_id(), new_id()) for _ in itertools.count())
            if partition_of(one) != partition_of(other)
        )
        for conversation in (taken, kept):
            assert (await visitor.send(conversation, "one")).seq == 1
        # Somebody takes it, and dies at once: with the next message its owner sees that, and claims it again.
        await take_away(url, partition_of(taken))
        for conversation in (taken, kept):
            assert (await visitor.send(conversation, "two")).seq == 2
            assert await history(d, conversation) == [(1, "one"), (2, "two")]
        found = await terms(url)
        assert found[partition_of(taken)] == 3
        assert {term for number, term in found.items() if number != partition_of(taken)} == {1}
    server.drop(url)


async def take_away(url: str, number: int) -> None:
    """Claim a partition as a process that isn't there."""
    db = await Database.open(url, pool_size=1)
    try:
        async with db.transaction() as uow:
            row = (await partitions.ROWS.load(uow.connection))[number]
            assert await partitions.ROWS.claim(uow.connection, row, owner="chat-9")
            await uow.commit()
    finally:
        await db.close()


async def terms(url: str) -> dict[int, int]:
    """The term of each partition."""
    db = await Database.open(url, pool_size=1)
    try:
        async with db.read() as c:
            return {each.id: each.term for each in await partitions.ROWS.load(c)}
    finally:
        await db.close()


async def test_a_file_has_one_owner(
    tmp_path: Path, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> None:
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    await migrate(url, "deskwire_chat")
    settings = chat_settings(url, kafka, keys_file)
    async with running("chat", settings, deskwire_chat.app.build):
        with pytest.raises(FailedPrecondition, match="chat-shard"):
            async with running("chat", settings, deskwire_chat.app.build):
                pass
    # And when it is gone, the next one.
    async with running("chat", settings, deskwire_chat.app.build) as again:
        await asyncio.wait_for(eventually(lambda: again.port > 0), 5)
