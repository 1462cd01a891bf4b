"""Commits whose answer was lost: nobody knows whether they succeeded, and nobody may miss what they changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire.chat.v1 import conversation_pb2, customer_pb2, customer_service_pb2_grpc
from deskwire.chat.v1 import customer_service_pb2 as pb
from deskwire.chat.v1.conversation_service_pb2 import (
    CloseConversationRequest,
    TransferConversationRequest,
)
from deskwire_chat.log.commit import Committer
from deskwire_chat.log.group import Group
from deskwire_chat.store import conversations, customers
from deskwire_common import topics
from deskwire_common.auth import Profile, Role, TokenSigner
from deskwire_common.db import CommitInDoubt, ConnectionLost, UnitOfWork
from deskwire_common.rpc import stream_metadata
from support import eventually
from support.refusals import refused
from support.suite import Desk, desk, new_id
from support.talks import conversation, is_with, operator
from support.topic import read_rows


@pytest.fixture
async def d(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Desk]:
    async with desk(database_url, kafka, valkey, keys_file, signer) as found:
        yield found


class Talk:
    """ann's conversation with visitor 1001, and the customers that she was shown."""

    def __init__(self, d: Desk) -> None:
        self.desk = d
        self.shown: list[customer_pb2.Customer] = []
        self.customer_id = ""

    async def begin(self) -> None:
        d = self.desk
        await d.client(Role.AGENT, "ann", on_push=self._note)
        await d.available("ann")
        visitor = await d.client(Role.VISITOR, "1001")
        talk = new_id()
        await visitor.send(talk, "hello")
        await eventually(lambda: is_with(d, talk, "ann"))
        self.customer_id = (await conversation(d, talk)).customer_id

    def _note(self, push: Any) -> None:
        if push.HasField("customer"):
            self.shown.append(push.customer)

    def update(self, mobile: str) -> pb.UpdateCustomerRequest:
        return pb.UpdateCustomerRequest(
            request_id=new_id(),
            customer=customer_pb2.Customer(customer_id=self.customer_id, mobile=mobile),
            update_mask=FieldMask(paths=["mobile"]),
        )

    async def is_shown(self, mobile: str, times: int = 1) -> None:
        await eventually(
            lambda: sum(each.mobile == mobile for each in self.shown) >= times, timeout=20
        )


@pytest.fixture
async def talk(d: Desk) -> Talk:
    found = Talk(d)
    await found.begin()
    return found


@pytest.fixture
def doubt(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Lose the answers to commits that change a customer, as often as the list has entries."""
    losses: list[bool] = []
    changing: set[int] = set()
    save, commit = customers.save, UnitOfWork.commit

    async def noted(c: AsyncConnection, *args: Any) -> None:
        changing.add(id(c))
        await save(c, *args)

    async def lost(self: UnitOfWork) -> None:
        await commit(self)
        if id(self.connection) in changing and losses:
            changing.discard(id(self.connection))
            losses.pop()
            raise CommitInDoubt("the answer was lost")

    monkeypatch.setattr(customers, "save", noted)
    monkeypatch.setattr(UnitOfWork, "commit", lost)
    return losses


def stub_of(d: Desk) -> Any:
    return customer_service_pb2_grpc.CustomerServiceStub(d.channel(Role.AGENT, "bob"))


async def test_a_customer_whose_change_is_in_doubt_is_shown(talk: Talk, doubt: list[bool]) -> None:
    d, update = talk.desk, talk.update("+8613800138000")
    doubt.append(True)
    # A channel that repeats nothing by itself.
    async with grpc.aio.insecure_channel(f"127.0.0.1:{d.chat.port}") as channel:
        call = customer_service_pb2_grpc.CustomerServiceStub(channel).UpdateCustomer
        token = stream_metadata(d.token(Role.AGENT, "bob"))
        error = await refused(call(update, metadata=token))
    assert error.reason_name == "DEPENDENCY_UNAVAILABLE"
    # Whether or not the caller says it again.
    await talk.is_shown("+8613800138000")
    assert (await stub_of(d).UpdateCustomer(update)).customer.version == 2
    await talk.is_shown("+8613800138000", times=2)


async def test_a_customer_is_shown_when_the_database_is_back(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = conversations.agents_of_customers
    failures = [ConnectionLost("gone"), ConnectionLost("gone")]

    async def failing(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return await read(*args)

    monkeypatch.setattr(conversations, "agents_of_customers", failing)
    await stub_of(talk.desk).UpdateCustomer(talk.update("+8613800138001"))
    await talk.is_shown("+8613800138001")
    assert not failures


async def test_a_customer_whom_an_opening_completed_is_shown(talk: Talk, doubt: list[bool]) -> None:
    profile = Profile(mobile="+8613800138002")
    visitor = await talk.desk.client(Role.VISITOR, "1001", profile=profile)
    doubt.append(True)
    second = new_id()
    await visitor.send(second, "me again, with a number")
    assert not doubt
    assert (await conversation(talk.desk, second)).customer_id == talk.customer_id
    await talk.is_shown("+8613800138002")


@pytest.fixture
def lost_group(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lose the answers to groups that store a message with one of these texts, once each."""
    texts: list[str] = []

    def loses(group: Group) -> bool:
        for each in group.stored.values():
            body = conversation_pb2.Content.FromString(each.message.body)
            if body.text in texts:
                texts.remove(body.text)
                return True
        return False

    transact, append = Committer._transact, Group.append_to_log

    async def plain(self: Group, *args: Any) -> bool:
        done = await append(self, *args)
        if loses(self):
            raise CommitInDoubt("the answer was lost")
        return done

    async def flushed(self: Committer, *args: Any) -> Group:
        commit = UnitOfWork.commit
        group: list[Group] = []

        async def lost(uow: UnitOfWork) -> None:
            await commit(uow)
            if group and loses(group[0]):
                raise CommitInDoubt("the answer was lost")

        flush = Group.flush

        async def noted(found: Group, uow: UnitOfWork) -> Any:
            group[:] = [found]
            return await flush(found, uow)

        with monkeypatch.context() as patch:
            patch.setattr(Group, "flush", noted)
            patch.setattr(UnitOfWork, "commit", lost)
            return await transact(self, *args)

    monkeypatch.setattr(Group, "append_to_log", plain)
    monkeypatch.setattr(Committer, "_transact", flushed)
    return texts


async def test_a_message_whose_commit_is_in_doubt_reaches_everybody(
    d: Desk, kafka: str, lost_group: list[str]
) -> None:
    texts: list[str] = []
    ann = await d.client(
        Role.AGENT, "ann", on_push=lambda push: texts.append(push.message.content.text)
    )
    await d.available("ann")
    visitor = await d.client(Role.VISITOR, "1001")
    talk = new_id()
    await visitor.send(talk, "hello")
    await eventually(lambda: ann.position(talk) == 2)
    lost_group.append("the last word")
    ack = await visitor.send(talk, "the last word")
    assert not lost_group
    assert ack.duplicate
    # Nothing comes after it that would show that it is missing.
    await eventually(lambda: "the last word" in texts)

    async def is_published() -> bool:
        rows = await read_rows(kafka, topics.MESSAGES.name)
        return [each["sequence"] for each in rows if each["subject"] == talk] == [1, 2, 3]

    await eventually(is_published, timeout=30, interval=0.5)


async def test_a_conversation_whose_opening_is_in_doubt_is_given_to_somebody(
    d: Desk, lost_group: list[str]
) -> None:
    await d.client(Role.AGENT, "ann")
    await d.available("ann", capacity=2)
    visitor = await d.client(Role.VISITOR, "1001")
    talk = new_id()
    lost_group.append("hello?")
    await visitor.send(talk, "hello?")
    await eventually(lambda: is_with(d, talk, "ann"))
    # And one whose giving is in doubt is known to whoever got it, and counts once.
    second = new_id()
    lost_group.append("Ann is here to help you.")
    heard: list[Any] = []
    also = await d.client(Role.AGENT, "ann", on_push=heard.append)
    await visitor.send(second, "and this")
    await eventually(lambda: also.position(second) == 2)
    assert not lost_group
    assert any(each.HasField("customer") for each in heard)
    third = new_id()
    await visitor.send(third, "one too many")
    await operator(d).CloseConversation(
        CloseConversationRequest(request_id=new_id(), conversation_id=second)
    )
    await eventually(lambda: is_with(d, third, "ann"))


async def test_a_change_of_a_conversation_in_doubt_is_seen(
    d: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await d.client(Role.AGENT, "ann")
    await d.available("ann", capacity=1)
    pushed: list[Any] = []
    visitor = await d.client(Role.VISITOR, "1001", on_push=pushed.append)
    talk = new_id()
    await visitor.send(talk, "hello")
    await eventually(lambda: is_with(d, talk, "ann"))
    await ann.close()
    save, commit = conversations.save, UnitOfWork.commit
    changing: set[int] = set()

    async def noted(c: AsyncConnection, item: Any, **more: Any) -> bool:
        changing.add(id(c))
        return await save(c, item, **more)

    async def lost(self: UnitOfWork) -> None:
        await commit(self)
        if id(self.connection) in changing:
            monkeypatch.undo()
            raise CommitInDoubt("the answer was lost")

    monkeypatch.setattr(conversations, "save", noted)
    monkeypatch.setattr(UnitOfWork, "commit", lost)
    await operator(d).TransferConversation(
        TransferConversationRequest(request_id=new_id(), conversation_id=talk)
    )
    # It waits, and whoever comes gets it.
    await eventually(lambda: any(each.conversation.human_wanted for each in pushed))
    await d.client(Role.AGENT, "bob")
    await d.available("bob")
    await eventually(lambda: is_with(d, talk, "bob"))
