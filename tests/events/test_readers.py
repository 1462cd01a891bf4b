"""Subscribe shows a role what it may list by RPCs, and names no other tenant's tables."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from deskwire.events.v1.hub_events_pb2 import RowChanged
from deskwire_common import events, topics
from deskwire_common.auth import Role
from deskwire_common.errors import PermissionDenied
from deskwire_common.kafka import cluster_id, ensure_topics
from deskwire_events import domain
from deskwire_events.domain import Cursor

EARLIEST = {"earliest": Empty()}
#: The RPC that lists what the events of a topic are about. What outside systems publish has none.
LISTS = {
    topics.ACCESS.name: "deskwire_chat:deskwire.chat.v1.IntegrationKeyService/ListIntegrationKeys",
    topics.AGENTS.name: "deskwire_chat:deskwire.chat.v1.AgentService/ListAgents",
    topics.CHANGES.name: "deskwire_cdc:deskwire.cdc.v1.SourceService/ListSources",
    topics.CONVERSATIONS.name: "deskwire_chat:deskwire.chat.v1.ConversationService/ListConversations",
    topics.CUSTOMERS.name: "deskwire_chat:deskwire.chat.v1.CustomerService/ListCustomers",
    topics.DELIVERIES.name: "deskwire_events:deskwire.events.v1.AdapterRegistryService/ListAdapters",
    topics.MESSAGES.name: "deskwire_chat:deskwire.chat.v1.ConversationService/ListMessages",
    topics.SOURCES.name: "deskwire_cdc:deskwire.cdc.v1.SourceService/ListSources",
    topics.TICKETS.name: "deskwire_tickets:deskwire.tickets.v1.TicketService/ListTickets",
}


def examples() -> Iterator[tuple[str, Any]]:
    """One event of every type of the contract, with its topic."""
    for topic in topics.TOPICS.values():
        for example in topic.examples:
            yield example["event_type"], example


@pytest.mark.parametrize("topic", sorted(topics.TOPICS))
def test_who_may_list_may_read(topic: str) -> None:
    subscribers = {Role.OPERATOR, Role.INTEGRATION, Role.SERVICE, Role.AGENT, Role.BOT}
    if topic == topics.EXTERNAL.name:
        assert domain.READERS[topic] == subscribers
        return
    package, _, method = LISTS[topic].partition(":")
    listers = importlib.import_module(f"{package}.api").AUTHORIZATION[f"/{method}"]
    assert domain.READERS[topic] == listers & subscribers


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.VISITOR])
async def test_a_role_gets_its_events_and_no_other(
    client: Any, tenant: str, kafka: str, produce: Any, role: Role
) -> None:
    tables = topics.changes_topic(f"s{tenant[2:14]}", "customers")
    await ensure_topics(kafka, [tables, *topics.fixed_topics()])
    sent: dict[str, str] = {}
    for event_type, example in examples():
        topic = topics.topic_for(event_type) if domain.is_own_type(event_type) else topics.EXTERNAL
        data = events.data_class(event_type)() if domain.is_own_type(event_type) else Empty()
        event = await produce(
            tables if topic is topics.CHANGES else topic, event_type, data, tenant,
            subject=example["subject"],
        )  # fmt: skip
        sent[event.event_id] = event_type
    kinds = set(sent.values())
    assert kinds >= {kind for topic in topics.TOPICS.values() for kind in topic.event_types}
    wanted = sorted(event_id for event_id, kind in sent.items() if domain.readable(role, kind))
    system = "crm:main" if role is Role.INTEGRATION else ""
    someone = client(tenant, role=role, subject="someone", system=system)
    async with someone.subscribe(**EARLIEST) as stream:
        await stream.take(len(wanted))
        # A marker on a topic that all may read, after all the others.
        (marker,) = await client(tenant).publish(("marked", "m", {}))
        got = [each.event.event_id for each in await stream.take(len(wanted) + 1)]
    assert sorted(got) == sorted([*wanted, marker])
    for kind in kinds:
        asked = someone.subscribe(event_types=[kind])
        if domain.readable(role, kind):
            async with asked:
                continue
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked.__aenter__()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_selection_has_only_topics_that_the_role_may_read() -> None:
    for role in (Role.AGENT, Role.BOT, Role.INTEGRATION):
        selection = domain.readable_topics(role, ())
        assert {name for name in selection.names if role not in domain.READERS[name]} == set()
        assert selection.changes is (role is Role.INTEGRATION)
    with pytest.raises(PermissionDenied):
        domain.readable_topics(Role.BOT, ["customer_updated"])
    assert domain.readable_topics(Role.BOT, ["invoice_paid"]).names == (topics.EXTERNAL.name,)


async def test_a_cursor_names_nobodys_tables(
    client: Any, tenant: str, kafka: str, produce: Any
) -> None:
    source = f"s{tenant[2:14]}"
    table = topics.changes_topic(source, "customers")
    await ensure_topics(kafka, [table])
    olga = client(tenant)
    first = await produce(table, "row_changed", RowChanged(table="customers"), tenant)
    async with olga.subscribe(**EARLIEST, event_types=["row_changed"]) as stream:
        assert (await stream.take(1))[0].event.event_id == first.event_id
        cursor = stream.cursor
    places = domain.decode_cursor(cursor).places
    assert places
    assert source not in json.dumps([topic for topic, _ in places])
    second = await produce(table, "row_changed", RowChanged(table="customers"), tenant)
    async with olga.subscribe(cursor=cursor, event_types=["row_changed"]) as stream:
        assert (await stream.take(1))[0].event.event_id == second.event_id
    # What it stands for is one tenant's.
    known = Cursor(await cluster_id(kafka), {(table.name, 0): 1})
    assert domain.concealed(known, tenant) != domain.concealed(known, "another")
    assert domain.revealed(domain.concealed(known, tenant), tenant, [table.name]) == known
    assert not domain.revealed(domain.concealed(known, tenant), "another", [table.name]).places


def test_a_cursor_of_a_thousand_tables_can_be_taken_up_again() -> None:
    places = {
        (
            f"deskwire.changes.a-source-with-a-long-name-{number}.a_table_with_a_long_name",
            partition,
        ): 10**9
        for number in range(1000)
        for partition in range(4)
    }
    cursor = Cursor("MkU3OEVBNTcwNTJENDM2Qk", places)
    text = domain.encode_cursor(domain.concealed(cursor, "t"))
    assert len(text) < 65_536
    names = {topic for topic, _ in places}
    assert domain.revealed(domain.decode_cursor(text), "t", names) == cursor
