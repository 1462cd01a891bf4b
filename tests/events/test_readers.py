"""Subscribe shows a role what it may list by RPCs, and names no other tenant's tables."""

from __future__ import annotations

import base64
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
from deskwire_common.kafka import ensure_topics
from deskwire_events import domain
from deskwire_events.domain import Cursors

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
    # Nobody is shut out by the examples: what enables is newer than what disables.
    for event_type, example in sorted(examples(), key=lambda each: "enabled" not in each[0]):
        topic = topics.topic_for(event_type) if domain.is_own_type(event_type) else topics.EXTERNAL
        data = events.data_class(event_type)() if domain.is_own_type(event_type) else Empty()
        event = await produce(
            tables if topic is topics.CHANGES else topic, event_type, data, tenant,
            subject=example["subject"], sequence=9 if "enabled" in event_type else 1,
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
    others = topics.changes_topic(f"o{tenant[2:14]}", "customers")
    await ensure_topics(kafka, [table, others])
    olga = client(tenant)
    first = await produce(table, "row_changed", RowChanged(table="customers"), tenant)
    await produce(others, "row_changed", RowChanged(table="customers"), f"{tenant}-other")
    start = {"event_types": ["row_changed"], "json": True}
    async with olga.subscribe(**EARLIEST, **start) as stream:
        assert [json.loads(each.json)["event_id"] for each in await stream.take(1)] == [
            first.event_id
        ]
        cursor = stream.cursor
    # Neither names nor how many tables others have: one topic of four partitions.
    raw = base64.urlsafe_b64decode(cursor + "==")
    assert source.encode() not in raw
    assert len(raw) < 50
    second = await produce(table, "row_changed", RowChanged(table="customers"), tenant)
    async with olga.subscribe(cursor=cursor, **start) as stream:
        assert [json.loads(each.json)["event_id"] for each in await stream.take(1)] == [
            second.event_id
        ]


def test_a_cursor_of_a_thousand_tables_can_be_taken_up_again() -> None:
    places = {
        (
            f"deskwire.changes.a-source-with-a-long-name-{number}.a_table_with_a_long_name",
            partition,
        ): 10**9
        for number in range(1000)
        for partition in range(4)
    }
    cursors = Cursors(b"secret", "MkU3OEVBNTcwNTJENDM2Qk")
    text = cursors.encode("t", places)
    assert len(text) < 65_536
    names = {topic for topic, _ in places}
    assert cursors.decode(text, "t", names).places == places
