"""EventHubService through its real server and a real Kafka."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from deskwire.common.v1.json_value_pb2 import JsonObject
from deskwire.events.v1 import event_hub_service_pb2
from deskwire_common import topics
from deskwire_common.auth import Role
from deskwire_common.db import Database
from deskwire_common.ids import RandomIds
from deskwire_common.kafka import Reader, cluster_id
from deskwire_events import store
from deskwire_events.domain import Cursors
from support.refusals import refusal, refused

hub_pb: Any = event_hub_service_pb2
EARLIEST = {"earliest": Empty()}


def invoices(subject: str, count: int) -> list[tuple[str, str, dict[str, Any]]]:
    return [("invoice_paid", subject, {"number": number}) for number in range(count)]


async def test_what_is_published_is_subscribed(client: Any, tenant: str) -> None:
    erp = client(tenant, role=Role.INTEGRATION, subject="erp", system="erp:main")
    async with client(tenant).subscribe() as stream:
        ids = await erp.publish(*invoices("4711", 3), ("invoice_sent", "4712", {}))
        delivered = await stream.take(4)
    paid = [each.event for each in delivered if each.event.subject == "4711"]
    assert [event.event_id for event in paid] == ids[:3]
    assert [event.sequence for event in paid] == [1, 2, 3]
    assert {event.origin for event in paid} == {"erp:main"}
    assert {event.tenant_id for event in paid} == {tenant}
    assert {each.topic for each in delivered} == {topics.EXTERNAL.name}
    data = JsonObject()
    assert paid[2].data.Unpack(data)
    assert data.fields["number"].int_value == 2


async def test_a_stream_ends_with_its_token(client: Any, tenant: str) -> None:
    # Good for three seconds more: clocks of two machines may differ by five.
    async with client(tenant, ttl=-1.0).subscribe(**EARLIEST) as stream:

        async def to_the_end() -> None:
            while True:
                await stream.next()

        assert await refusal(to_the_end()) == ("UNAUTHENTICATED", "TOKEN_EXPIRED")
    cursor = stream.cursor
    (event_id,) = await client(tenant).publish(*invoices("1", 1))
    async with client(tenant).subscribe(cursor=cursor) as again:
        assert [each.event.event_id for each in await again.take(1)] == [event_id]


async def test_publishing_on_every_database(start: Any, database_url: str, tenant: str) -> None:
    async with start(database_url) as client:
        someone = client(tenant)
        ids = await someone.publish(*invoices("a", 2), request_id="once")
        assert await someone.publish(*invoices("a", 2), request_id="once") == ids
        call = someone.publish(*invoices("b", 2), request_id="once")
        assert await refusal(call) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
        async with someone.subscribe(**EARLIEST, json=True) as stream:
            found = [json.loads(each.json) for each in await stream.take(2)]
    assert [event["event_id"] for event in found] == ids
    assert [event["data"] for event in found] == [{"number": 0}, {"number": 1}]


async def test_an_event_with_an_id_of_its_own_is_published_once(
    start: Any, database_url: str, tenant: str
) -> None:
    async with start(database_url) as client:
        erp = client(tenant, role=Role.INTEGRATION, subject="erp", system="erp:main")
        own = [RandomIds().uuid7() for _ in range(2)]

        async def publish(caller: Any, request_id: str, *event_ids: str | None) -> Any:
            events = [
                hub_pb.ExternalEvent(event_type="invoice_paid", subject="a", event_id=each)
                for each in event_ids
            ]
            return await caller.hub.Publish(
                hub_pb.PublishRequest(request_id=request_id, events=events)
            )

        first = await publish(erp, "1", own[0], None)
        assert (first.event_ids[0], list(first.duplicates)) == (own[0], [])
        # Another request, and one that is new among those that aren't.
        second = await publish(erp, "2", None, own[0], own[1])
        assert (list(second.event_ids[1:]), list(second.duplicates)) == (own, [own[0]])
        # Ids are a system's own.
        other = client(tenant, role=Role.INTEGRATION, subject="crm", system="crm:main")
        assert not (await publish(other, "1", own[0])).duplicates
        only = await publish(erp, "3", own[0])
        assert (list(only.event_ids), list(only.duplicates)) == ([own[0]], [own[0]])
        for wrong in ([own[0], own[0]], [own[0].upper()], ["7"]):
            assert (await refusal(publish(erp, "4", *wrong)))[1] == "INVALID_FIELD"
        async with client(tenant).subscribe(**EARLIEST) as stream:
            events = [each.event for each in await stream.take(5)]
        assert [event.sequence for event in events] == [1, 2, 3, 4, 5]
        assert [event.event_id for event in events].count(own[0]) == 2
        assert {event.origin for event in events if event.event_id == own[0]} == {
            "erp:main",
            "crm:main",
        }


async def test_a_reader_comes_back_with_its_cursor(client: Any, tenant: str) -> None:
    someone = client(tenant)
    ids = await someone.publish(*invoices("x", 3))
    async with someone.subscribe(**EARLIEST, credit=2) as stream:
        await stream.take(2)
        # Nothing more without credit, and the cursor covers just what was delivered.
        cursor = stream.cursor
    ids += await someone.publish(*invoices("x", 2))
    async with someone.subscribe(cursor=cursor) as stream:
        found = [each.event.event_id for each in await stream.take(3)]
    assert found == ids[2:]


async def test_credit_is_kept(client: Any, tenant: str) -> None:
    someone = client(tenant)
    await someone.publish(*invoices("x", 7))
    async with someone.subscribe(**EARLIEST, credit=3) as stream:
        await stream.take(3)
        waiting = asyncio.ensure_future(stream.next())
        done, _ = await asyncio.wait({waiting}, timeout=1.0)
        assert not done
        await stream.credit(2)
        await waiting
        await stream.take(5)
        assert len(stream.events) == 5
        # No credit left and none to come: the stream is over.
        await stream.call.done_writing()
        assert await stream.call.read() is grpc.aio.EOF
        assert await stream.call.code() is grpc.StatusCode.OK


async def test_filters(client: Any, tenant: str) -> None:
    someone = client(tenant)
    await someone.publish(
        ("invoice_paid", "a", {}), ("invoice_sent", "a", {}), ("invoice_paid", "b", {})
    )
    async with someone.subscribe(**EARLIEST, event_types=["invoice_sent"]) as stream:
        assert [each.event.event_type for each in await stream.take(1)] == ["invoice_sent"]
    async with someone.subscribe(**EARLIEST, subjects=["b"]) as stream:
        assert [each.event.subject for each in await stream.take(1)] == ["b"]
    async with someone.subscribe(time=Timestamp(seconds=1)) as stream:
        assert len(await stream.take(3)) == 3


async def test_another_tenants_events_never_come(client: Any, tenant: str) -> None:
    other = client(f"{tenant}-other")
    async with other.subscribe(**EARLIEST) as stream:
        await client(tenant).publish(*invoices("x", 3))
        mine = await other.publish(*invoices("x", 1))
        assert [each.event.event_id for each in await stream.take(1)] == mine


async def test_cursors_that_cannot_be_used(
    client: Any, tenant: str, kafka: str, hub_url: str
) -> None:
    someone = client(tenant)
    await someone.publish(*invoices("x", 1))
    async with someone.subscribe(**EARLIEST) as stream:
        await stream.take(1)
        place = (topics.EXTERNAL.name, stream.events[0].partition)

    def opened(**start: Any) -> Any:
        return someone.subscribe(**start).__aenter__()

    secret = await cursor_key(hub_url)
    foreign = Cursors(secret, "another").encode(tenant, {place: 0})
    error = await refused(opened(cursor=foreign))
    assert (error.code.name, error.reason_name) == ("OUT_OF_RANGE", "CURSOR_EXPIRED")
    # Its offer can be taken.
    async with someone.subscribe(cursor=error.metadata["oldest_cursor"]) as stream:
        await stream.take(1)
    ours = Cursors(secret, await cluster_id(kafka))
    ahead = ours.encode(tenant, {place: 10**9})
    assert (await refusal(opened(cursor=ahead)))[1] == "CURSOR_EXPIRED"
    # Made by somebody else, or given to somebody else.
    forged = Cursors(b"guessed", await cluster_id(kafka)).encode(tenant, {place: 0})
    others = ours.encode("another", {place: 0})
    for cursor in ("nonsense", forged, others, stream.cursor[:-2], stream.cursor + "AA"):
        assert (await refusal(opened(cursor=cursor)))[1] == "INVALID_CURSOR", cursor
    assert (await refusal(opened(cursor="x" * 66_000)))[1] == "INVALID_FIELD"


async def cursor_key(url: str) -> bytes:
    """The key that the hubs of a database sign cursors with."""
    db = await Database.open(url, pool_size=1)
    try:
        return await db.run(lambda uow: store.keys.shared(uow, "cursors", b""))
    finally:
        await db.close()


async def test_conditions(client: Any, tenant: str) -> None:
    someone = client(tenant)
    await someone.publish(
        ("invoice_paid", "a", {"amount": 5, "to": ["x"]}),
        ("invoice_paid", "a", {"amount": 50, "to": ["x", "y"]}),
        ("invoice_sent", "b", {}),
    )
    rule = "event.data.amount > 10.0 && event.data.to.exists(each, each == 'y')"
    async with someone.subscribe(**EARLIEST, cel=rule) as stream:
        (found,) = await stream.take(1)
        assert found.event.sequence == 2
    async with someone.subscribe(**EARLIEST, attributes={"subject": "b"}) as stream:
        assert [each.event.event_type for each in await stream.take(1)] == ["invoice_sent"]
    walks = "event.data.to.all(a, event.data.to.all(b, a == b))"
    for wrong in ("event.", "event.data.amount + 'a' ==", "1 + 1", "unknown == 1", walks):
        error = await refused(someone.subscribe(cel=wrong).__aenter__())
        assert error.reason_name == "INVALID_FIELD", wrong
        assert [field for field, _ in error.violations] == ["cel"]


async def test_a_reader_that_stalls_holds_back_nobody(client: Any, tenant: str) -> None:
    someone = client(tenant)
    async with (
        someone.subscribe(credit=1, json=True) as stalled,
        someone.subscribe(json=True) as other,
    ):
        sent: list[str] = []
        for _ in range(30):
            sent += await someone.publish(
                *(("invoice_paid", "s", {"text": "x" * 2_000}) for _ in range(100))
            )
        got = [json.loads(each.json)["event_id"] for each in await other.take(3_000)]
        assert got == sent
        assert len(stalled.events) <= 1
        # It comes back from a catch-up reader, in order and without a hole.
        await stalled.credit(10_000)
        got = [json.loads(each.json)["event_id"] for each in await stalled.take(3_000, timeout=60)]
        assert got == sent


async def test_a_stream_begins_with_start(client: Any, tenant: str) -> None:
    stream = client(tenant).subscribe()
    await stream.credit(1)
    assert await refusal(stream.next()) == ("INVALID_ARGUMENT", "INVALID_FIELD")


async def test_a_stopping_hub_says_so(start: Any, hub_url: str, tenant: str) -> None:
    async with start(hub_url) as client:
        someone = client(tenant)
        stream = await someone.subscribe().__aenter__()
        client.channels.clear()
    assert await refusal(stream.next()) == ("UNAVAILABLE", "SHUTTING_DOWN")


async def test_bad_events_are_named(client: Any, tenant: str) -> None:
    someone = client(tenant)
    endless = Struct()
    endless["x"] = float("inf")
    bad = [
        hub_pb.ExternalEvent(event_type="ticket_created", subject="x"),
        hub_pb.ExternalEvent(event_type="NotSnake", subject="x"),
        hub_pb.ExternalEvent(event_type="invoice_paid", subject=""),
        hub_pb.ExternalEvent(event_type="invoice_paid", subject="a\x00"),
        hub_pb.ExternalEvent(event_type="invoice_paid", subject="a "),
        hub_pb.ExternalEvent(event_type="invoice_paid", subject="x", data=endless),
        hub_pb.ExternalEvent(
            event_type="invoice_paid", subject="x", occurred_at=Timestamp(seconds=10**13)
        ),
    ]
    for event in bad:
        call = someone.hub.Publish(hub_pb.PublishRequest(request_id="r", events=[event]))
        assert await refusal(call) == ("INVALID_ARGUMENT", "INVALID_FIELD"), event
    large = [("invoice_paid", str(i), {"x": "x" * 90_000}) for i in range(12)]
    assert await refusal(someone.publish(*large)) == ("RESOURCE_EXHAUSTED", "TOO_LARGE")


async def test_the_catalogue(client: Any, tenant: str) -> None:
    visitor = client(tenant, role=Role.VISITOR, subject="1001")
    answer = await visitor.hub.ListEventTypes(hub_pb.ListEventTypesRequest())
    types = {each.event_type: each for each in answer.event_types}
    assert set(types) == {kind for topic in topics.TOPICS.values() for kind in topic.event_types}
    assert types["customer_updated"].data_type == "deskwire.events.v1.CustomerUpdated"
    assert types["row_changed"].topic == topics.CHANGES.name
    assert (await refusal(visitor.publish(*invoices("x", 1))))[1] == "ROLE_NOT_ALLOWED"


async def test_records_that_are_no_events_are_passed_over(
    client: Any, tenant: str, kafka: str
) -> None:
    from deskwire_common.kafka import Producer

    producer = Producer(kafka, "test")
    await producer.start()
    async with client(tenant).subscribe() as stream:
        for value in (b"", b"{}", b"\xff\xfe", b'{"event_type": 7}'):
            await producer.send_batch([(topics.EXTERNAL.name, b"junk", value, [])])
        ids = await client(tenant).publish(*invoices("x", 1))
        assert [each.event.event_id for each in await stream.take(1)] == ids
    await producer.close()
    reader = Reader(kafka, [topics.EXTERNAL.name])
    await reader.start()
    await reader.close()
