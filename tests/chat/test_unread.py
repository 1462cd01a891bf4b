"""How much somebody hasn't read: counted from the log, told when it changes, and never raised by what nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deskwire.chat.v1 import conversation_pb2
from deskwire.chat.v1 import conversation_service_pb2 as pb
from deskwire.chat.v1.conversation_service_pb2_grpc import ConversationServiceStub
from deskwire.gateway.v1 import frame_pb2
from deskwire_chat.domain.actors import ActorRole
from deskwire_chat.domain.messages import Kind, Message, Receipt
from deskwire_chat.store import messages, receipts
from deskwire_chat.store import unread as counting
from deskwire_chat.store.unread import Reader
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.db import Database
from deskwire_common.migrations import migrate
from support import eventually
from support.suite import Desk, a_message, desk, new_id
from support.talks import is_with
from support.wire import Wire, wire

# ------------------------------------------------------------------------------- against a recount

WRITERS = {
    "visitor": (ActorRole.VISITOR, "1"),
    "ann": (ActorRole.AGENT, "ann"),
    # Somebody else with the agent's id, and somebody else at the desk.
    "bot": (ActorRole.BOT, "ann"),
    "bob": (ActorRole.AGENT, "bob"),
    "crm": (ActorRole.INTEGRATION, "crm"),
    "deskwire": (ActorRole.SYSTEM, "deskwire"),
}
READERS = ("visitor", "ann", "bot")
COUNTED = (Kind.TEXT, Kind.ATTACHMENT)
WRITE = st.tuples(
    st.just("write"),
    st.sampled_from(sorted(WRITERS)),
    st.sampled_from([Kind.TEXT, Kind.TEXT, Kind.ATTACHMENT, Kind.NOTE, Kind.EDIT]),
)
REDACT = st.tuples(st.just("redact"), st.sampled_from(sorted(WRITERS)), st.integers(1, 40))
READ = st.tuples(st.just("read"), st.sampled_from(READERS), st.integers(1, 40))
STEPS = st.lists(st.one_of(WRITE, WRITE, REDACT, READ), max_size=40)


@dataclass
class Model:
    """The conversation as a list of (writer, kind), and how far each reader is."""

    entries: list[tuple[str, int]] = field(default_factory=list)
    read: dict[str, int] = field(default_factory=lambda: dict.fromkeys(READERS, 0))

    def recount(self, reader: str) -> int:
        """Look at every entry."""
        ignored = {reader} if reader == "visitor" else {reader, "deskwire"}
        return sum(
            1
            for seq, (writer, kind) in enumerate(self.entries, 1)
            if seq > self.read[reader] and kind in COUNTED and writer not in ignored
        )


class Store:
    """A database, and one conversation after the other in it."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.position = 0

    async def play(self, steps: list[tuple[str, str, Any]]) -> None:
        """Do the steps; after each, compare all counts, and that nothing but a message has raised one."""
        talk, model = new_id(), Model()
        before = dict.fromkeys(READERS, 0)
        for what, who, how in steps:
            if what == "write":
                await self._append(model, talk, who, how)
            elif what == "redact" and how <= len(model.entries):
                await self._append(model, talk, who, Kind.REDACTION)
                model.entries[how - 1] = (model.entries[how - 1][0], Kind.REDACTED)
                await self._changed(talk, how)
            elif what == "read":
                seq = min(how, len(model.entries))
                model.read[who] = max(model.read[who], seq)
                await self._read(talk, who, seq)
            now = await self._counts(talk, len(model.entries))
            assert now == {each: model.recount(each) for each in READERS}
            if (what, how) not in {("write", kind) for kind in COUNTED}:
                assert all(now[each] <= before[each] for each in READERS)
            before = now

    async def _append(self, model: Model, talk: str, who: str, kind: Kind) -> None:
        model.entries.append((who, kind))
        self.position += 1
        role, subject = WRITERS[who]
        item = a_message(
            conversation_id=talk,
            seq=len(model.entries),
            position=self.position,
            role=int(role),
            subject=subject,
            client_msg_id=f"m-{self.position}",
            kind=int(kind),
        )
        async with self.db.transaction() as uow:
            await messages.append(uow, [item])
            await uow.commit()

    async def _changed(self, talk: str, seq: int) -> None:
        async with self.db.transaction() as uow:
            found: Message = (await messages.at(uow.connection, [(talk, seq)]))[talk, seq]
            found.kind = Kind.REDACTED
            await messages.change(uow, [found])
            await uow.commit()

    async def _read(self, talk: str, who: str, seq: int) -> None:
        role, subject = WRITERS[who]
        async with self.db.transaction() as uow:
            receipt = Receipt(talk, int(role), subject, seq, seq)
            await receipts.raise_to(uow, [receipt], now=self.position)
            await uow.commit()

    async def _counts(self, talk: str, head: int) -> dict[str, int]:
        readers = {
            each: Reader(talk, int(WRITERS[each][0]), WRITERS[each][1], head) for each in READERS
        }
        async with self.db.read() as c:
            found = await counting.unread(c, list(readers.values()))
        return {each: found[reader] for each, reader in readers.items()}


@pytest.fixture
def store(database_url: str) -> Iterator[tuple[asyncio.Runner, Store]]:
    with asyncio.Runner() as runner:

        async def opened() -> Database:
            await migrate(database_url, "deskwire_chat")
            return await Database.open(database_url, pool_size=2)

        db = runner.run(opened())
        yield runner, Store(db)
        runner.run(db.close())


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_every_count_is_that_of_a_recount(
    store: tuple[asyncio.Runner, Store], steps: list[tuple[str, str, Any]]
) -> None:
    runner, found = store
    runner.run(found.play(steps))


def test_only_the_last_entries_are_looked_at(
    store: tuple[asyncio.Runner, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "WINDOW", 3)
    runner, found = store

    async def play() -> dict[str, int]:
        talk, model = new_id(), Model()
        for _ in range(7):
            await found._append(model, talk, "visitor", Kind.TEXT)
        return await found._counts(talk, 7)

    assert runner.run(play()) == {"visitor": 0, "ann": 3, "bot": 3}


# ------------------------------------------------------------------------------------ on the wire


@pytest.fixture
async def d(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Desk]:
    async with desk(database_url, kafka, valkey, keys_file, signer) as found:
        yield found


async def told(socket: Wire, seq: int) -> int:
    """The next count that holds at least up to a seq."""
    while True:
        push = await socket.hear("push")
        if push.HasField("unread") and push.unread.seq >= seq:
            found: int = push.unread.count
            return found


async def listed(d: Desk, role: Role, subject: str, talk: str) -> int:
    stub = ConversationServiceStub(d.channel(role, subject))
    found: int = (await stub.ListMessages(pb.ListMessagesRequest(conversation_id=talk))).unread
    return found


async def says(socket: Wire, talk: str, **content: Any) -> int:
    """Send content; its seq."""
    send = frame_pb2.Send(
        conversation_id=talk,
        client_msg_id=new_id(),
        content=conversation_pb2.Content(**content),
    )
    await socket.say(send=send)
    found: int = (await socket.hear("send_ack")).seq
    return found


async def test_both_sides_are_told_what_they_have_not_read(d: Desk) -> None:
    talk = new_id()
    ann_token = d.token(Role.AGENT, "ann")
    async with wire(d, d.token(Role.VISITOR, "1")) as visitor:
        async with wire(d, ann_token) as ann:
            await d.available("ann")
            await says(visitor, talk, text="one")
            await eventually(lambda: is_with(d, talk, "ann"))
            # 1 is the visitor's, 2 the greeting: to ann it is nobody else's.
            assert await listed(d, Role.AGENT, "ann", talk) == 1
            assert await listed(d, Role.VISITOR, "1", talk) == 1
            assert await listed(d, Role.OPERATOR, "olga", talk) == 0
            second = await says(visitor, talk, text="two")
            third = await says(visitor, talk, text="three")
            await ann.say(read=frame_pb2.Read(conversation_id=talk, seq=second))
            assert await told(ann, third) == 1
            # Notes and edits raise nothing, and neither does taking a message back.
            note = conversation_pb2.Note(text="she is angry")
            edit = conversation_pb2.Edit(seq=third, text="three!")
            await says(ann, talk, note=note)
            await says(visitor, talk, edit=edit)
            assert await listed(d, Role.AGENT, "ann", talk) == 1
            assert await listed(d, Role.VISITOR, "1", talk) == 1
            gone = await says(visitor, talk, redaction=conversation_pb2.Redaction(seq=third))
            assert await told(ann, gone) == 0
            await says(ann, talk, text="from ann")
        await says(visitor, talk, text="are you there?")
        # Who comes back learns it from the Head, and from a Sync.
        async with wire(d, ann_token) as back:
            head = await back.hear("head")
            assert (head.conversation_id, head.unread) == (talk, 1)
            await back.say(sync=frame_pb2.Sync(conversation_id=talk))
            synced = await back.hear("synced")
            assert (synced.head_seq, synced.unread) == (head.seq, 1)
            # Read on another device.
            async with wire(d, ann_token) as phone:
                await phone.say(read=frame_pb2.Read(conversation_id=talk, seq=1_000))
                assert await told(back, head.seq) == 0
        # The greeting and ann's text.
        async with wire(d, d.token(Role.VISITOR, "1")) as again:
            assert (await again.hear("head")).unread == 2


async def test_the_client_counts_as_the_server_does(d: Desk) -> None:
    ann = await d.client(Role.AGENT, "ann")
    tablet = await d.client(Role.AGENT, "ann")
    await d.available("ann")
    visitor = await d.client(Role.VISITOR, "1")
    talk = new_id()
    await visitor.send(talk, "one")
    await eventually(lambda: is_with(d, talk, "ann"))
    second = (await visitor.send(talk, "two")).seq
    await ann.note(talk, "hm")
    await tablet.send(talk, "I'll look")
    for each in (ann, tablet):
        await eventually(lambda each=each: each.unread(talk) == 2 and each.position(talk) == 5)
    await eventually(lambda: visitor.unread(talk) == 2)
    await visitor.redact(talk, second)
    for each in (ann, tablet):
        await eventually(lambda each=each: each.unread(talk) == 1)
    ann.read(talk)
    assert ann.unread(talk) == 0
    await eventually(lambda: tablet.unread(talk) == 0)
    await visitor.send(talk, "three")
    for each in (ann, tablet):
        await eventually(lambda each=each: each.unread(talk) == 1)
    assert await listed(d, Role.AGENT, "ann", talk) == 1
    late = await d.client(Role.AGENT, "ann")
    await eventually(lambda: late.unread(talk) == 1)
    await eventually(lambda: visitor.unread(talk) == 2)
