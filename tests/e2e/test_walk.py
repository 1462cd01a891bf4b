"""The walk of `make up` against real processes: every seam of the suite, its topics, and one trace through all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deskwire_cli.machine.home import Home
from deskwire_cli.suite import TENANT, load_suite
from deskwire_cli.walk import Walk
from deskwire_common import events, topics
from deskwire_common.kafka import Reader
from support import eventually
from support.command import Command
from support.otlp import Receiver, receiver
from support.ports import free_base


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    if Home(tmp_path / "home").is_locked():
        Command(tmp_path / "home", 0)("down")


async def on_kafka(bootstrap: str) -> list[dict[str, Any]]:
    """All events of the walk's tenant in their JSON form, by topic and then in order."""
    names = [topic.name for topic in topics.TOPICS.values() if "<" not in topic.name]
    names += ["deskwire.changes.crm-db.customers", "deskwire.changes.crm-db.orders"]
    found: list[dict[str, Any]] = []
    for name in names:
        reader = Reader(bootstrap, [name], start="earliest")
        await reader.start()
        try:
            ends = await reader.end_offsets()
            while any(reader.positions[place] < end for place, end in ends.items()):
                for record in await reader.read(500, 0.2):
                    event = events.decode(name, record.value, record.headers)
                    if event.tenant_id == TENANT:
                        found.append({"topic": name, **events.to_json(event)})
        finally:
            await reader.close()
    return found


async def test_the_walk(home: Path) -> None:
    async with receiver() as collector:
        command = Command(home, free_base(), DESKWIRE_OTLP_ENDPOINT=collector.target)
        started = await asyncio.to_thread(
            command, "up", "-d", "--no-demo", "--port-base", str(command.base)
        )
        assert started.returncode == 0, started.stderr
        stopped = await asyncio.to_thread(command, "down")
        assert stopped.returncode == 0, stopped.stderr

        # The second start finds its data, and plays the walk itself.
        started = await asyncio.to_thread(command, "up", "-d", "--port-base", str(command.base))
        assert started.returncode == 0, started.stderr
        assert "Alice solved it; the CRM has that too" in started.stderr
        suite = load_suite(home)
        walk = Walk(suite)
        await walk.play()

        found = await on_kafka(suite.kafka)
        check_topics(walk, found)
        check_crm(walk)
        await eventually(lambda: reaches_the_crm(collector, walk.trace_id), timeout=30)
        stopped = await asyncio.to_thread(command, "down")
        assert stopped.returncode == 0, stopped.stderr


def check_topics(walk: Walk, found: list[dict[str, Any]]) -> None:
    """What CORRECTNESS asks of the forms: one envelope, numbered per subject, traced, with typed data."""
    talk = [each for each in found if each["subject"] == walk.conversation_id]
    assert [each["event_type"] for each in talk if each["topic"] == "deskwire.conversations"] == [
        "conversation_opened",
        "conversation_assigned",
        "conversation_closed",
    ]
    said = [each for each in talk if each["topic"] == "deskwire.messages"]
    assert [each["data"]["message"]["content"]["text"] for each in said] == [
        "Hello, where is my desk lamp?",
        "Alice is here to help you.",
        "Hello Li Na, let me look.",
    ]
    assert [each["event_id"] for each in said] == [
        each["data"]["message"]["message_id"] for each in said
    ]
    ticket = [each for each in found if each["subject"] == walk.ticket_id]
    assert [each["event_type"] for each in ticket] == ["ticket_created", "ticket_solved"]
    for run in (said, ticket):
        assert [each["sequence"] for each in run] == list(range(1, len(run) + 1))
    phone, email = [
        each
        for each in found
        if each["event_type"] == "customer_updated" and each["subject"] == walk.customer_id
    ][-2:]
    assert (phone["origin"], email["origin"]) == ("crm:main", "deskwire")
    assert phone["data"]["user_id"] == "1001"
    assert phone["data"]["new_mobile"] == walk.phone
    assert isinstance(phone["data"]["timestamp"], int)
    assert phone["data"]["changed"]["mobile"]["to"] == walk.phone
    assert email["data"]["customer"]["email"] == walk.email
    assert email["sequence"] == phone["sequence"] + 1
    assert all(len(each["trace_id"]) == 32 for each in found)
    assert len({each["event_id"] for each in found}) == len(found)


def check_crm(walk: Walk) -> None:
    """The CRM was sent each of these once; the change that was its own is not among them."""
    ours = {walk.conversation_id, walk.customer_id, walk.ticket_id}
    got = [
        (each["event_type"], each["origin"])
        for each in walk.received()
        if each["subject"] in ours and each["event_type"] != "conversation_assigned"
    ]
    assert sorted(got) == [
        ("conversation_closed", "deskwire"),
        ("conversation_opened", "deskwire"),
        ("customer_updated", "deskwire"),
        ("ticket_created", "deskwire"),
        ("ticket_solved", "deskwire"),
    ]


def reaches_the_crm(collector: Receiver, trace_id: str) -> bool:
    """One way from the CRM's acknowledged push up to the gateway's frame, through everything between."""
    ways = [
        collector.way_up(span)
        for span in collector.of_trace(trace_id).values()
        if span.service == "demo-crm"
    ]
    wanted = {"demo-crm", "events", "chat", "gateway"}
    return any(wanted <= {span.service for span in way} for way in ways)
