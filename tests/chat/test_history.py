"""Imported history: closed conversations with the times they had, each message once, and nobody is disturbed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import update

from deskwire.chat.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    conversation_pb2,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
    customer_pb2,
    customer_service_pb2,
    customer_service_pb2_grpc,
    history_service_pb2_grpc,
)
from deskwire.chat.v1 import history_service_pb2 as pb
from deskwire.common.v1 import actor_pb2
from deskwire_chat.api import TABLE
from deskwire_chat.domain.conversations import partition_of
from deskwire_chat.domain.history import Provenance, conversation_id_of
from deskwire_chat.store.tables import partitions
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.db import Database
from deskwire_common.rpc import stream_metadata
from support import eventually
from support.refusals import refusal, refused
from support.suite import Desk, desk, new_id, second_process
from support.topic import read_rows

BEGAN = datetime(2019, 5, 4, 8, 15, 0, 123456, UTC)
VISITOR, AGENT, BOT = actor_pb2.ROLE_VISITOR, actor_pb2.ROLE_AGENT, actor_pb2.ROLE_BOT


@pytest.fixture
async def d(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Desk]:
    async with desk(database_url, kafka, valkey, keys_file, signer) as found:
        yield found


def stub_of(d: Desk, role: Role = Role.OPERATOR, **more: Any) -> Any:
    system = "crm:main" if role is Role.INTEGRATION else ""
    return history_service_pb2_grpc.HistoryServiceStub(d.channel(role, "me", system=system, **more))


def talks_of(d: Desk, role: Role = Role.OPERATOR, subject: str = "me") -> Any:
    return conversation_service_pb2_grpc.ConversationServiceStub(d.channel(role, subject))


def said(
    number: int, text: str = "", role: Any = VISITOR, *, sender: str = "", note: str = ""
) -> pb.ImportedMessage:
    content = conversation_pb2.Content(text=text or f"text {number}")
    if note:
        content = conversation_pb2.Content(note=conversation_pb2.Note(text=note))
    return pb.ImportedMessage(
        external_id=f"m{number}",
        sender_role=role,
        sender_id=sender,
        content=content,
        sent_time=at(number),
    )


def at(minute: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(BEGAN + timedelta(minutes=minute))
    return stamp


def customer(*values: str, namespace: str = "old", **fields: str) -> customer_pb2.Customer:
    found = customer_pb2.Customer(**fields)
    for value in values or ("c-1",):
        found.identities.add(namespace=namespace, value=value)
    return found


def a_request(*messages: pb.ImportedMessage, **more: Any) -> pb.ImportConversationRequest:
    given = {"source": "old", "external_id": "t-1", "customer": customer()}
    return pb.ImportConversationRequest(messages=messages, **{**given, **more})


async def history(stub: Any, conversation_id: str) -> list[conversation_pb2.Message]:
    answer = await stub.ListMessages(
        conversation_service_pb2.ListMessagesRequest(conversation_id=conversation_id)
    )
    return list(answer.messages)


def texts(messages: list[conversation_pb2.Message]) -> list[str]:
    return [each.content.text or each.content.note.text for each in messages]


async def test_a_conversation_is_as_it_was(d: Desk) -> None:
    answer = await stub_of(d).ImportConversation(
        a_request(
            said(0, "where is it?"),
            said(1, "hello", BOT, sender="robo"),
            said(2, "中文 🙂 a\x00b", AGENT, sender="ann"),
            said(3, role=AGENT, sender="ann", note="angry"),
            customer=customer(display_name="Li Na", email="li@example.org"),
        )
    )
    found = answer.conversation
    assert (answer.stored, answer.duplicates, found.version, found.head_seq) == (4, 0, 1, 4)
    assert found.state == conversation_pb2.CONVERSATION_STATE_CLOSED
    assert found.conversation_id == conversation_id_of(d.tenant, Provenance("old", "t-1"))
    assert (found.create_time, found.assign_time, found.close_time) == (at(0), at(1), at(3))
    assert (found.agent_id, found.agent_role, found.visitor_id) == ("ann", AGENT, "")
    talks = talks_of(d)
    read = await history(talks, found.conversation_id)
    assert texts(read) == ["where is it?", "hello", "中文 🙂 a\x00b", "angry"]
    assert [each.seq for each in read] == [1, 2, 3, 4]
    assert [each.create_time for each in read] == [at(0), at(1), at(2), at(3)]
    assert [each.client_msg_id for each in read] == ["m0", "m1", "m2", "m3"]
    assert [(each.sender.role, each.sender.subject) for each in read] == [
        (VISITOR, found.customer_id),
        (BOT, "robo"),
        (AGENT, "ann"),
        (AGENT, "ann"),
    ]
    assert read[0].sender.display_name == "Li Na"
    # The same to a watcher, whose stream ends as the conversation is closed.
    watch = talks.WatchConversation(
        conversation_service_pb2.WatchConversationRequest(conversation_id=found.conversation_id),
        metadata=stream_metadata(d.token(Role.OPERATOR, "me")),
    )
    watched = [message async for each in watch for message in each.messages]
    assert watched == read


async def test_it_is_found_by_its_words_and_in_the_order_of_its_times(d: Desk) -> None:
    await stub_of(d).ImportConversation(a_request(said(0, "an ancient parcel")))
    talks = talks_of(d)

    async def found() -> bool:
        answer = await talks.SearchMessages(
            conversation_service_pb2.SearchMessagesRequest(query="ancient")
        )
        return [each.message.create_time for each in answer.hits] == [at(0)]

    await eventually(found)


async def test_again_nothing_is_stored_twice_and_more_is_appended(d: Desk) -> None:
    calls = stub_of(d)
    first = await calls.ImportConversation(a_request(said(0), said(1)))
    again = await calls.ImportConversation(a_request(said(0), said(1)))
    assert (again.stored, again.duplicates, again.conversation) == (0, 2, first.conversation)
    # From another caller, in another role, it is the same conversation.
    more = await stub_of(d, Role.INTEGRATION).ImportConversation(
        a_request(said(1), said(2, role=AGENT, sender="ann"))
    )
    assert (more.stored, more.duplicates) == (1, 1)
    assert (more.conversation.version, more.conversation.head_seq) == (2, 3)
    assert (more.conversation.agent_id, more.conversation.close_time) == ("ann", at(2))
    read = await history(talks_of(d), first.conversation.conversation_id)
    assert texts(read) == ["text 0", "text 1", "text 2"]


async def test_what_differs_is_refused_whole(d: Desk) -> None:
    calls = stub_of(d)
    first = await calls.ImportConversation(a_request(said(0), said(2)))
    for changed in (said(2, "another text"), said(2, role=AGENT)):
        error = await refused(calls.ImportConversation(a_request(changed, said(3))))
        assert (error.code.name, error.reason_name) == ("ALREADY_EXISTS", "CLIENT_MSG_ID_REUSED")
        assert (error.metadata["external_id"], error.violations[0][0]) == ("m2", "messages[0]")
    # Its place is taken: it isn't put at the end.
    error = await refused(calls.ImportConversation(a_request(said(0), said(1), said(2))))
    assert (error.code.name, error.reason_name) == ("FAILED_PRECONDITION", "INVALID_STATE")
    assert error.metadata["external_id"] == "m1"
    assert len(await history(talks_of(d), first.conversation.conversation_id)) == 2


async def test_what_can_never_be_stored_names_its_field(d: Desk) -> None:
    late, early, odd = said(1), said(1), said(1)
    late.sent_time.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    early.sent_time.FromSeconds(-1)
    odd.sent_time.nanos = -1
    edit = said(1)
    edit.content.edit.seq, edit.content.edit.text = 1, "x"
    blank_name = said(1)
    blank_name.sender_name = "a\u202eb"
    cases = {
        "messages[1].sent_time": [late, early, odd],
        "messages[1].content": [edit, said(1, note="from a visitor")],
        "messages[1].external_id": [said(0, "again")],
        "messages[1].sender_name": [blank_name],
    }
    calls = stub_of(d)
    for field, messages in cases.items():
        for message in messages:
            error = await refused(calls.ImportConversation(a_request(said(0), message)))
            assert (error.code.name, error.reason_name) == ("INVALID_ARGUMENT", "INVALID_FIELD")
            assert error.violations[0][0] == field
    nobody = a_request(said(0), customer=customer_pb2.Customer(display_name="x"))
    assert (await refused(calls.ImportConversation(nobody))).violations[0][0] == (
        "customer.identities"
    )
    found = await talks_of(d).ListConversations(conversation_service_pb2.ListConversationsRequest())
    assert list(found.conversations) == []


async def test_a_request_is_bounded_in_bytes(d: Desk) -> None:
    calls = stub_of(d)
    texts_ = ["\u4e2d" * 8_000] * 43
    most = [said(number, text) for number, text in enumerate(texts_)]
    limit = TABLE.request_bytes["/deskwire.chat.v1.HistoryService/ImportConversation"]
    assert 0 <= limit - a_request(*most).ByteSize() < 25_000
    assert (await calls.ImportConversation(a_request(*most))).stored == 43
    over = [said(number, text) for number, text in enumerate(texts_ * 2)]
    assert await refusal(calls.ImportConversation(a_request(*over))) == (
        "RESOURCE_EXHAUSTED",
        "TOO_LARGE",
    )
    # The way to go on: the next messages, as a request of their own.
    assert (await calls.ImportConversation(a_request(*over[43:]))).stored == 43


async def test_an_id_that_a_visitor_has_taken_is_not_overwritten(d: Desk) -> None:
    talk = conversation_id_of(d.tenant, Provenance("old", "t-1"))
    visitor = await d.client(Role.VISITOR, "eve")
    await visitor.send(talk, "mine")
    assert await refusal(stub_of(d).ImportConversation(a_request(said(0)))) == (
        "ALREADY_EXISTS",
        "ALREADY_EXISTS",
    )
    assert texts(await history(talks_of(d), talk)) == ["mine"]


async def test_customers_are_matched_filled_and_never_overwritten(d: Desk) -> None:
    crm = customer_service_pb2_grpc.CustomerServiceStub(
        d.channel(Role.INTEGRATION, "me", system="crm:main")
    )
    known = customer_service_pb2.UpsertCustomerRequest(
        request_id=new_id(), customer=customer("4711", namespace="crm:main", display_name="Li Na")
    )
    known.update_mask.paths.append("display_name")
    made = (await crm.UpsertCustomer(known)).customer
    request = a_request(
        said(0),
        said(1, role=AGENT),
        customer=customer("4711", namespace="crm:main", display_name="L.", email="li@example.org"),
    )
    request.customer.identities.add(namespace="visitor", value="li-na")
    answer = await stub_of(d).ImportConversation(request)
    assert answer.conversation.customer_id == made.customer_id
    # What the visitor says of themselves is theirs to see, but no note of the desk.
    assert answer.conversation.visitor_id == "li-na"
    now = (
        await crm.GetCustomer(customer_service_pb2.GetCustomerRequest(customer_id=made.customer_id))
    ).customer
    assert (now.display_name, now.email, now.version) == ("Li Na", "li@example.org", 2)
    assert {each.namespace for each in now.identities} == {"crm:main", "visitor"}
    theirs = await talks_of(d, Role.VISITOR, "li-na").ListConversations(
        conversation_service_pb2.ListConversationsRequest()
    )
    assert [each.conversation_id for each in theirs.conversations] == [
        answer.conversation.conversation_id
    ]
    # The visitor who looks into it has read it in the other system.
    told = await talks_of(d, Role.VISITOR, "li-na").ListMessages(
        conversation_service_pb2.ListMessagesRequest(
            conversation_id=answer.conversation.conversation_id
        )
    )
    assert (len(told.messages), told.unread) == (2, 0)
    assert await refusal(
        talks_of(d, Role.VISITOR, "eve").GetConversation(
            conversation_service_pb2.GetConversationRequest(
                conversation_id=answer.conversation.conversation_id
            )
        )
    ) == ("NOT_FOUND", "CONVERSATION_NOT_FOUND")

    other = await stub_of(d).ImportConversation(
        a_request(said(0), external_id="t-2", customer=customer("c-9"))
    )
    both = customer("4711", namespace="crm:main")
    both.identities.add(namespace="old", value="c-9")
    for wrong in (both, customer("4711", namespace="crm:main")):
        error = await refused(
            stub_of(d).ImportConversation(a_request(said(1), external_id="t-2", customer=wrong))
        )
        assert error.reason_name == "IDENTITY_CONFLICT"
        assert set(error.metadata.values()) == {made.customer_id, other.conversation.customer_id}


async def test_nobody_is_disturbed_and_one_event_tells(d: Desk, kafka: str) -> None:
    pushes: list[Any] = []
    await d.client(Role.AGENT, "ann", on_push=pushes.append)
    await d.client(Role.VISITOR, "li-na", on_push=pushes.append)
    await d.available("ann")
    who = customer("li-na", namespace="visitor")
    answer = await stub_of(d).ImportConversation(
        a_request(said(0), said(1, role=AGENT, sender="ann"), customer=who)
    )
    talk = answer.conversation.conversation_id
    # What comes after it in the same partition is pushed and published, so the import would have been by now.
    live = await d.client(Role.VISITOR, "bob")
    later = _same_partition(talk)
    await live.send(later, "hello")
    await eventually(lambda: any(each.HasField("message") for each in pushes))
    mentioned = {each.message.conversation_id for each in pushes if each.HasField("message")}
    mentioned |= {
        each.conversation.conversation_id for each in pushes if each.HasField("conversation")
    }
    assert mentioned == {later}
    agents = agent_service_pb2_grpc.AgentServiceStub(d.channel(Role.OPERATOR, "me"))
    ann = (await agents.GetAgent(agent_service_pb2.GetAgentRequest(agent_id="ann"))).agent
    assert ann.active_conversations == 1

    async def is_published() -> bool:
        rows = await read_rows(kafka, "deskwire.messages")
        subjects = [each["subject"] for each in rows if each["tenant_id"] == d.tenant]
        assert talk not in subjects
        return later in subjects

    await eventually(is_published)
    rows = await read_rows(kafka, "deskwire.conversations")
    told = [each for each in rows if each["subject"] == talk]
    assert [(each["event_type"], each["sequence"]) for each in told] == [
        ("conversation_imported", 1)
    ]
    data = told[0]["data"]
    assert (data["source"], data["external_id"], data["first_seq"]) == ("old", "t-1", 1)
    assert (data["conversation"]["head_seq"], data["customer"]["version"]) == (2, 1)


def _same_partition(conversation_id: str) -> str:
    while partition_of(found := new_id()) != partition_of(conversation_id):
        pass
    return found


async def test_many_imports_at_once_of_one_new_customer_make_one(d: Desk) -> None:
    calls = stub_of(d)
    answers = await asyncio.gather(
        *(
            calls.ImportConversation(a_request(said(0), external_id=f"t-{number % 6}"))
            for number in range(12)
        )
    )
    assert len({each.conversation.customer_id for each in answers}) == 1
    assert sum(each.stored for each in answers) == 6
    assert {each.conversation.version for each in answers} == {1}
    # More than a tenant may have under way are refused for now, and nothing of them is stored.
    results = await asyncio.gather(
        *(
            calls.ImportConversation(a_request(said(0), external_id=f"u-{number}"), timeout=30)
            for number in range(60)
        ),
        return_exceptions=True,
    )
    refused_ = [each for each in results if isinstance(each, Exception)]
    assert all("imports under way" in str(each) for each in refused_)
    assert len(results) - len(refused_) >= 16


async def test_any_process_takes_it(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("one process has a SQLite file")
    async with (
        desk(database_url, kafka, valkey, keys_file, signer) as d,
        second_process(database_url, kafka, keys_file) as other,
    ):
        for port in (d.chat.port, other.port):
            calls = stub_of(d, port=port)
            for number in range(8):
                request = a_request(said(0), said(1), external_id=f"t-{number}")
                answer = await calls.ImportConversation(request)
                assert answer.stored == (2 if port == d.chat.port else 0)


async def test_a_process_that_reads_the_log_passes_over_them(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> None:
    async with desk(database_url, kafka, valkey, keys_file, signer) as d:
        talks = []
        for number in range(20):
            request = a_request(said(0), said(1), external_id=f"t-{number}")
            answer = await stub_of(d).ImportConversation(request)
            talks.append(answer.conversation.conversation_id)
    db = await Database.open(database_url, pool_size=1)
    try:
        # As after a crash before it was noted how far Kafka has the log.
        await db.run(lambda uow: uow.execute(update(partitions).values(published=0)))
    finally:
        await db.close()
    async with desk(database_url, kafka, valkey, keys_file, signer) as d:
        visitor = await d.client(Role.VISITOR, "bob")
        live = [_same_partition(each) for each in talks]
        for each in live:
            await visitor.send(each, "hello")

        async def published() -> set[str]:
            rows = await read_rows(kafka, "deskwire.messages")
            return {each["subject"] for each in rows}

        await eventually(lambda: _has_all(published, live))
        assert not await published() & set(talks)


async def _has_all(published: Any, wanted: list[str]) -> bool:
    return set(wanted) <= await published()
