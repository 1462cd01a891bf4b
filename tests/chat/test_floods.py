"""Floods of frames that name conversations which aren't there: they cost next to nothing, and nothing else is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire.gateway.v1 import frame_pb2
from deskwire_chat.log.writer import LogWriter
from deskwire_chat.store import conversations
from deskwire_common.auth import Role, TokenSigner
from support import eventually
from support.suite import Desk, desk, new_id
from support.wire import Wire, reason, wire


class Looks:
    """Counts the conversations that are looked up in the database."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ids: list[str] = []
        get, get_many = conversations.get, conversations.get_many

        async def one(c: AsyncConnection, tenant: str, conversation_id: str) -> Any:
            self.ids.append(conversation_id)
            return await get(c, tenant, conversation_id)

        async def many(c: AsyncConnection, ids: Sequence[str]) -> Any:
            self.ids.extend(ids)
            return await get_many(c, ids)

        monkeypatch.setattr(conversations, "get", one)
        monkeypatch.setattr(conversations, "get_many", many)

    def of(self, ids: Sequence[str]) -> int:
        return len(set(ids) & set(self.ids))


@pytest.fixture
async def d(
    tmp_path: Path, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Desk]:
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    # The gateway lets everything through, so that chat has to cope.
    async with desk(
        url, kafka, valkey, keys_file, signer, send_rate=1e6, send_burst=1_000_000
    ) as found:
        yield found


def frames(kind: str, ids: Sequence[str]) -> list[bytes]:
    made = {
        "typing": lambda each: frame_pb2.Typing(conversation_id=each, typing=True),
        "read": lambda each: frame_pb2.Read(conversation_id=each, seq=1),
        "delivered": lambda each: frame_pb2.Delivered(conversation_id=each, seq=1),
        "sync": lambda each: frame_pb2.Sync(conversation_id=each),
    }[kind]
    found = [frame_pb2.Frame(**{kind: made(each)}) for each in ids]
    return [
        frame_pb2.Batch(frames=found[start : start + 200]).SerializeToString()
        for start in range(0, len(found), 200)
    ]


async def own(one: Wire, conversation: str) -> None:
    """Check that a user's own conversation is still read and written."""
    await one.send(conversation, "still here")
    await one.hear("send_ack")


@pytest.mark.parametrize("kind", ["typing", "read", "delivered", "sync"])
async def test_unknown_conversations_cost_one_look_up_a_second(
    d: Desk, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    loop = asyncio.get_running_loop()
    async with (
        wire(d, d.token(Role.VISITOR, "eve")) as eve,
        wire(d, d.token(Role.VISITOR, "ann", tenant=f"{d.tenant}-2")) as ann,
    ):
        mine, other = new_id(), new_id()
        await own(eve, mine)
        await own(ann, other)
        looks = Looks(monkeypatch)
        ids = [new_id() for _ in range(2_000)]
        began = loop.time()
        for data in frames(kind, ids):
            await eve.raw(data)
        # Who isn't flooding is answered, though all of the flood came before.
        await own(ann, other)
        await ann.say(sync=frame_pb2.Sync(conversation_id=other))
        assert (await ann.hear("synced")).head_seq == 2
        if kind != "typing":
            refused: Counter[str] = Counter()
            while refused.total() < len(ids) - 300:
                error = await eve.hear("error")
                assert error.conversation_id in ids
                refused[reason(error.reason)] += 1
            assert set(refused) <= {"RATE_LIMITED", "CONVERSATION_NOT_FOUND"}
        await own(eve, mine)
        looked = looks.of(ids)
        assert looked <= loop.time() - began + 1
        assert looked or kind == "typing"


async def test_what_an_honest_user_asks_for_at_once_is_all_answered(
    d: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after chat was started anew: nothing is in memory, and an agent comes back with all they have."""
    talks = [new_id() for _ in range(100)]
    async with wire(d, d.token(Role.AGENT, "ann")) as ann:
        await d.available("ann", capacity=100)
        async with wire(d, d.token(Role.VISITOR, "1")) as visitor:
            for talk in talks:
                await visitor.send(talk, "hello")
                await visitor.hear("send_ack")
        taken: set[str] = set()
        while len(taken) < len(talks):
            push = await ann.hear("push")
            if push.HasField("conversation") and push.conversation.agent_id == "ann":
                taken.add(push.conversation.conversation_id)
        forgotten: dict[str, Any] = {}

        def nothing(self: Any, conversation_id: str) -> None:
            forgotten[conversation_id] = self

        monkeypatch.setattr("deskwire_chat.log.memory.Memory.get", nothing)
        for talk in talks:
            await ann.say(read=frame_pb2.Read(conversation_id=talk, seq=1))
            await ann.say(sync=frame_pb2.Sync(conversation_id=talk))
        answered: set[str] = set()
        while len(answered) < len(talks):
            answer = await ann.hear_one_of("synced", "error")
            assert isinstance(answer, frame_pb2.Synced), answer
            answered.add(answer.conversation_id)
        assert answered == set(talks)
        assert set(talks) <= set(forgotten)

        async def is_read(talk: str) -> bool:
            await ann.say(sync=frame_pb2.Sync(conversation_id=talk))
            synced = await ann.hear("synced")
            return any(each.user.subject == "ann" and each.read_seq for each in synced.receipts)

        for talk in talks[::10]:
            await eventually(lambda talk=talk: is_read(talk))


async def test_after_an_unknown_conversation_the_next_ones_wait_and_are_answered(
    d: Desk,
) -> None:
    async with wire(d, d.token(Role.VISITOR, "1")) as visitor:
        mine = new_id()
        await own(visitor, mine)
        unknown = [new_id() for _ in range(2)]
        for talk in (*unknown, mine):
            await visitor.say(sync=frame_pb2.Sync(conversation_id=talk))
        for talk in unknown:
            error = await visitor.hear("error")
            assert (error.conversation_id, reason(error.reason)) == (
                talk,
                "CONVERSATION_NOT_FOUND",
            )
        assert (await visitor.hear("synced")).conversation_id == mine


async def test_openings_beyond_a_visitors_limit_dont_reach_the_writer(
    tmp_path: Path,
    kafka: str,
    valkey: str,
    keys_file: Path,
    signer: TokenSigner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    written: list[str] = []
    submit = LogWriter.submit

    def counted(self: LogWriter, command: Any) -> None:
        written.append(command.conversation_id)
        submit(self, command)

    monkeypatch.setattr(LogWriter, "submit", counted)
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    limits: dict[str, Any] = {
        "chat": {"visitor_max_open": 2, "visitor_openings_per_minute": 0},
        "send_rate": 1e6,
        "send_burst": 1_000_000,
    }
    async with (
        desk(url, kafka, valkey, keys_file, signer, **limits) as d,
        wire(d, d.token(Role.VISITOR, "eve")) as eve,
    ):
        mine = [new_id(), new_id()]
        for talk in mine:
            await own(eve, talk)
        began = loop.time()
        ids = [new_id() for _ in range(500)]
        for talk in ids:
            await eve.send(talk, "one more")
            error = await eve.hear("error")
            assert error.temporary
            assert reason(error.reason) == "TOO_MANY_CONVERSATIONS"
            assert error.conversation_id == talk
        looked = len(set(ids) & set(written))
        assert 1 <= looked <= loop.time() - began + 1
        # What is open goes on.
        for talk in mine:
            await own(eve, talk)
