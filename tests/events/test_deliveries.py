"""Adapters that are registered at run time get their tenant's events, through everything that goes wrong."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.duration_pb2 import Duration

from deskwire.chat.v1.conversation_pb2 import Content, Message
from deskwire.common.v1.json_value_pb2 import JsonObject
from deskwire.events.v1 import adapter_pb2
from deskwire.events.v1.chat_events_pb2 import MessageSent
from deskwire.events.v1.hub_events_pb2 import RowChanged
from deskwire_common import events, topics
from deskwire_common.auth import Role
from deskwire_common.kafka import ensure_topics
from deskwire_events.sinks import NOT_THERE
from support import eventually
from support.refusals import refusal

DELIVERED = adapter_pb2.PUSH_OUTCOME_DELIVERED
RETRY = adapter_pb2.PUSH_OUTCOME_RETRY
REJECTED = adapter_pb2.PUSH_OUTCOME_REJECTED
EXPIRED = adapter_pb2.PUSH_OUTCOME_AUTH_EXPIRED
ACTIVE = adapter_pb2.ADAPTER_STATE_ACTIVE
RETRYING = adapter_pb2.ADAPTER_STATE_RETRYING
STOPPED = adapter_pb2.ADAPTER_STATE_STOPPED
PAID = ["invoice_paid"]


def invoices(subject: str, count: int) -> list[tuple[str, str, dict[str, Any]]]:
    return [("invoice_paid", subject, {"number": number}) for number in range(count)]


async def all_of(adapter: Any, ids: list[str], timeout: float = 20.0) -> None:
    """Wait until the adapter has these events, perhaps several times."""

    def there() -> None:
        assert set(ids) <= set(adapter.ids)

    async def check() -> bool:
        there()
        return True

    await eventually(check, timeout=timeout)


async def test_events_reach_an_adapter_in_order(client: Any, crm: Any, tenant: str) -> None:
    olga = client(tenant)
    async with olga.subscribe(event_types=PAID) as stream:
        await olga.publish(*invoices("before", 2))
        await stream.take(2)
    crm.max_batch = 3
    registered = await olga.register("crm-main", crm.target, event_types=PAID)
    assert registered.state == ACTIVE
    assert not registered.credentials
    assert crm.calls[:2] == ["Schema", "Auth"]
    ids = await olga.publish(*invoices("a", 5), ("invoice_sent", "a", {}), *invoices("b", 5))
    wanted = ids[:5] + ids[6:]
    await all_of(crm, wanted)
    # From now on, only what was asked for, once, in order per subject.
    assert sorted(crm.ids) == sorted(wanted)
    assert [each for each in crm.ids if each in ids[:5]] == ids[:5]
    assert max(len(push.items) for push in crm.pushes) <= 3
    item = crm.got[0]
    assert json.loads(item.json)["event_id"] == item.event.event_id
    assert item.attempt == 1
    # No token of deskwire's goes to a program of others.
    assert all("authorization" not in metadata for metadata in crm.metadata)

    async def counted() -> bool:
        adapter = await olga.adapter("crm-main")
        return bool(adapter.delivered_count == 10)

    await eventually(counted)
    ends = await olga.deliveries("crm-main")
    assert {end.event_id for end in ends} == set(wanted)
    assert {end.outcome for end in ends} == {DELIVERED}


async def test_on_every_database(start: Any, database_url: str, crm: Any, tenant: str) -> None:
    async with start(database_url) as client:
        olga = client(tenant)
        await olga.register("crm-main", crm.target, event_types=PAID)
        crm.answer = lambda item: REJECTED if item.event.sequence == 2 else DELIVERED
        ids = await olga.publish(*invoices("a", 3))
        await all_of(crm, ids)

        async def dead() -> Any:
            return await olga.deliveries("crm-main", dead_letters=True)

        assert [end.event_id for end in await eventually(dead)] == [ids[1]]
        removed = await olga.remove("crm-main")
        # Registered, removed; a dead letter is an event about it, and no change.
        assert removed.version == 2
        assert await refusal(olga.adapter("crm-main")) == ("NOT_FOUND", "ADAPTER_NOT_FOUND")


async def test_retry_holds_the_line(client: Any, crm: Any, tenant: str) -> None:
    olga = client(tenant)
    await olga.register("crm-main", crm.target, event_types=PAID)
    tries: dict[str, int] = {}

    def answer(item: Any) -> Any:
        count = tries[item.event.event_id] = tries.get(item.event.event_id, 0) + 1
        if item.event.sequence >= 2 and tries.get("open") is None and count < 3:
            return {
                "outcome": RETRY,
                "detail": "busy",
                "retry_after": Duration(nanos=50_000_000),
            }
        return DELIVERED

    crm.answer = answer
    ids = await olga.publish(*invoices("a", 3))

    async def done() -> bool:
        return len(await olga.deliveries("crm-main")) == 3

    await eventually(done, timeout=20)
    attempts = {end.event_id: end.attempts for end in await olga.deliveries("crm-main")}
    assert attempts == {ids[0]: 1, ids[1]: 3, ids[2]: 3}
    assert [item.attempt for item in crm.got if item.event.event_id == ids[2]] == [1, 2, 3]
    assert (await olga.adapter("crm-main")).last_error == "busy"
    assert (await olga.adapter("crm-main")).state == ACTIVE


async def test_an_adapter_that_is_away_misses_nothing(client: Any, crm: Any, tenant: str) -> None:
    olga = client(tenant)
    await olga.register("crm-main", crm.target, event_types=PAID)
    port = int(crm.target.rpartition(":")[2])
    await crm.stop()
    ids = await olga.publish(*invoices("a", 3))

    async def retrying() -> bool:
        return bool((await olga.adapter("crm-main")).state == RETRYING)

    await eventually(retrying, timeout=20)
    assert (await olga.adapter("crm-main")).last_error == NOT_THERE
    crm.calls.clear()
    await crm.serve(port)
    await all_of(crm, ids)
    # After a reconnect it begins with Schema and Auth.
    assert crm.calls[:3] == ["Schema", "Auth", "Push"]
    assert crm.ids == ids

    async def active() -> bool:
        return bool((await olga.adapter("crm-main")).state == ACTIVE)

    await eventually(active)


async def test_sessions_end(client: Any, crm: Any, tenant: str) -> None:
    olga = client(tenant)
    crm.password = "secret"
    assert await refusal(
        olga.register("crm-main", crm.target, credentials={"password": "wrong"})
    ) == ("FAILED_PRECONDITION", "ADAPTER_UNUSABLE")
    await olga.register(
        "crm-main", crm.target, event_types=PAID, credentials={"password": "secret"}
    )
    expired = [True]
    crm.answer = lambda _item: EXPIRED if expired and expired.pop() else DELIVERED
    ids = await olga.publish(*invoices("a", 1))

    async def delivered() -> bool:
        return len(await olga.deliveries("crm-main")) == 1

    await eventually(delivered)
    assert crm.ids == ids * 2
    sessions = [push.session for push in crm.pushes]
    assert sessions[0] != sessions[1]
    assert crm.calls[-3:] == ["Push", "Auth", "Push"]


async def test_rejected_is_told_and_passed_over(client: Any, crm: Any, tenant: str) -> None:
    olga = client(tenant)
    await olga.register("crm-main", crm.target, event_types=PAID)
    crm.answer = lambda item: (
        {"outcome": REJECTED, "detail": "no such customer"}
        if item.event.sequence == 1
        else DELIVERED
    )
    async with olga.subscribe(event_types=["delivery_dead_lettered"]) as stream:
        ids = await olga.publish(*invoices("a", 2))
        event = (await stream.take(1))[0].event
    await all_of(crm, ids)
    assert event.subject == f"{tenant}/crm-main"
    assert event.sequence == 2
    delivery = events.unpack(event).delivery
    assert (delivery.event_id, delivery.detail) == (ids[0], "no such customer")
    assert delivery.trace_id == event.trace_id
    adapter = await olga.adapter("crm-main")
    assert (adapter.dead_letter_count, adapter.version) == (1, 1)


async def test_too_many_dead_letters_stop_an_adapter(
    start: Any, hub_url: str, crm: Any, tenant: str
) -> None:
    async with start(hub_url, dead_letter_limit=3) as client:
        olga = client(tenant)
        await olga.register("crm-main", crm.target, event_types=PAID)
        crm.answer = lambda _item: REJECTED
        await olga.publish(*invoices("a", 4))

        async def stopped() -> bool:
            return bool((await olga.adapter("crm-main")).state == STOPPED)

        await eventually(stopped)
        assert await refusal(olga.register("crm-main", crm.target)) == (
            "ALREADY_EXISTS",
            "ALREADY_EXISTS",
        )
        crm.answer = lambda _item: DELIVERED
        ids = await olga.publish(*invoices("b", 2))
        await olga.remove("crm-main")
        # It goes on where it stopped.
        await olga.register("crm-main", crm.target, event_types=PAID)
        await all_of(crm, ids)


async def test_after_a_restart_it_goes_on(start: Any, hub_url: str, crm: Any, tenant: str) -> None:
    async with start(hub_url) as client:
        olga = client(tenant)
        await olga.register("crm-main", crm.target, event_types=PAID)
        first = await olga.publish(*invoices("a", 2))

        async def delivered() -> bool:
            return len(await olga.deliveries("crm-main")) == 2

        await eventually(delivered)
        # Never acknowledged: these come again.
        crm.answer = lambda _item: RETRY
        unsettled = await olga.publish(*invoices("a", 2))
        # Only the first of them: the other one waits for it.
        await all_of(crm, unsettled[:1])
    crm.answer = lambda _item: DELIVERED
    seen = len(crm.got)
    async with start(hub_url) as client:
        olga = client(tenant)
        later = await olga.publish(*invoices("a", 1))
        await all_of(crm, later)
        again = crm.ids[seen:]
        assert again[-3:] == [*unsettled, *later]
        # At the most the last push before the restart is repeated, and in order.
        assert set(again) <= {*first, *unsettled, *later}
        # Event ids stay, so that the adapter can tell.
        assert len({item.event.event_id for item in crm.got}) == 5


async def test_nothing_returns_to_where_it_came_from(client: Any, crm: Any, tenant: str) -> None:
    olga = client(tenant)
    system = client(tenant, role=Role.INTEGRATION, subject="crm", system="crm:main")
    await system.register("crm-main", crm.target, event_types=PAID)
    own = await system.publish(*invoices("a", 2))
    others = await olga.publish(*invoices("a", 2))
    await all_of(crm, others)
    assert crm.ids == others
    assert not set(own) & set(crm.ids)
    # An integration speaks for its own system only.
    erp = client(tenant, role=Role.INTEGRATION, subject="erp", system="erp:main")
    for call in (erp.register("x", crm.target, system_id="crm:main"), erp.remove("crm-main")):
        assert await refusal(call) == ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED")


async def test_another_tenants_events_never_leave(client: Any, crm: Any, tenant: str) -> None:
    olga, other = client(tenant), client(f"{tenant}-other")
    await olga.register("crm-main", crm.target, event_types=PAID)
    await other.publish(*invoices("a", 3))
    mine = await olga.publish(*invoices("a", 1))
    await all_of(crm, mine)
    await other.publish(*invoices("a", 3))
    more = await olga.publish(*invoices("a", 1))
    await all_of(crm, more)
    assert crm.ids == [*mine, *more]
    for call in (other.adapter("crm-main"), other.remove("crm-main"), other.deliveries("crm-main")):
        assert await refusal(call) == ("NOT_FOUND", "ADAPTER_NOT_FOUND")


async def test_the_trace_goes_on_at_the_adapter(
    client: Any, crm: Any, tenant: str, produce: Any
) -> None:
    await client(tenant).register("crm-main", crm.target, event_types=PAID)
    event = await produce(topics.EXTERNAL, "invoice_paid", JsonObject(), tenant)
    await all_of(crm, [event.event_id])
    trace, parent = event.traceparent.split("-")[1:3]
    version, got, span, flags = crm.got[0].traceparent.split("-")
    assert (version, got, flags) == ("00", trace, "01")
    # A span of the push itself, a child of the record's.
    assert span != parent
    assert crm.metadata[0]["traceparent"] == crm.got[0].traceparent


async def test_tables_that_are_captured_later_are_delivered_too(
    client: Any, crm: Any, tenant: str, produce: Any, kafka: str
) -> None:
    olga = client(tenant)
    await olga.register("crm-main", crm.target, event_types=["row_changed"])
    async with olga.subscribe(event_types=["row_changed"]) as stream:
        source = tenant[:20]
        topic = topics.changes_topic(source, "customers")
        await ensure_topics(kafka, [topic])
        data = RowChanged(source_id=source, table="customers", operation="insert")
        event = await produce(topic, "row_changed", data, tenant)
        # The broker looks for new names of a pattern every ten seconds or so.
        await all_of(crm, [event.event_id], timeout=60)
        assert [each.event.event_id for each in await stream.take(1)] == [event.event_id]
    assert events.unpack(crm.got[0].event) == data


async def test_an_adapter_that_wants_and_refuses_everything_ends_no_world(
    client: Any, crm: Any, tenant: str, produce: Any
) -> None:
    """Dead letters are events as well: they must not beget each other."""
    olga = client(tenant)
    crm.answer = lambda _item: REJECTED
    for name in ("one", "two"):
        await olga.register(name, crm.target, system_id=f"{name}:main")
    sent = MessageSent(message=Message(seq=1, content=Content(text="Where is my parcel?")))
    message = await produce(topics.MESSAGES, "message_sent", sent, tenant)

    async def settled() -> bool:
        # The message, and what was said about the other one: registered later, dead letter.
        found = [await olga.deliveries(name, dead_letters=True) for name in ("one", "two")]
        kinds = [sorted(end.event_type for end in ends) for ends in found]
        both = ["delivery_dead_lettered", "message_sent"]
        return all(set(both) <= set(each) for each in kinds)

    await eventually(settled, timeout=20)
    last = await olga.publish(*invoices("z", 1))
    await all_of(crm, last)
    # The messages come as protobuf on Kafka, and as JSON to those who want it.
    item = next(item for item in crm.got if item.event.event_id == message.event_id)
    assert json.loads(item.json)["data"]["message"]["content"] == {"text": "Where is my parcel?"}
    told = [json.loads(item.json) for item in crm.got if "delivery_dead" in item.event.event_type]
    assert not [each for each in told if "dead" in each["data"]["delivery"]["event_type"]]


async def test_an_adapter_that_answers_nonsense_gets_it_again(
    client: Any, crm: Any, tenant: str
) -> None:
    olga = client(tenant)
    await olga.register("crm-main", crm.target, event_types=PAID)
    wrong = [True]

    def answer(_item: Any) -> Any:
        if wrong and wrong.pop():
            raise RuntimeError("a bug of the adapter")
        return DELIVERED

    crm.answer = answer
    ids = await olga.publish(*invoices("a", 2))
    await all_of(crm, ids)
    assert crm.ids.count(ids[0]) == 2


async def test_registering(client: Any, crm: Any, tenant: str) -> None:
    olga = client(tenant)
    crm.event_types = ["customer_updated"]
    assert await refusal(olga.register("crm-main", crm.target, event_types=PAID)) == (
        "FAILED_PRECONDITION",
        "ADAPTER_UNUSABLE",
    )
    for fields in ({"target": "no port"}, {"system_id": ""}, {"event_types": [""]}):
        values: dict[str, Any] = {"target": crm.target, **fields}
        call = olga.register("crm-main", values.pop("target"), **values)
        assert await refusal(call) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    agent = client(tenant, role=Role.AGENT, subject="alice")
    assert await refusal(agent.register("crm-main", crm.target)) == (
        "PERMISSION_DENIED",
        "ROLE_NOT_ALLOWED",
    )
    async with olga.subscribe(event_types=["adapter_registered", "adapter_removed"]) as stream:
        for name in ("b", "a"):
            await olga.register(name, crm.target)
        await olga.remove("b")
        told = [(each.event.event_type, each.event.sequence) for each in await stream.take(3)]
    assert sorted(told) == [
        ("adapter_registered", 1),
        ("adapter_registered", 1),
        ("adapter_removed", 2),
    ]


async def test_an_adapter_is_changed_while_it_works(client: Any, crm: Any, tenant: str) -> None:
    olga = client(tenant)
    crm.password = "secret"
    await olga.register(
        "crm-main", crm.target, event_types=PAID, credentials={"password": "secret"}
    )
    first = await olga.publish(*invoices("a", 2))
    await all_of(crm, first)
    other = type(crm)()
    other.password = "secret"
    await other.serve()
    try:
        wrong = olga.update("crm-main", other.target, credentials={"password": "wrong"})
        assert (await refusal(wrong))[1] == "ADAPTER_UNUSABLE"
        # Whoever may change an adapter doesn't learn its credentials by having them sent elsewhere.
        asked = len(other.calls)
        assert (await refusal(olga.update("crm-main", other.target)))[1] == "INVALID_FIELD"
        assert len(other.calls) == asked
        changed = await olga.update(
            "crm-main",
            other.target,
            event_types=[*PAID, "invoice_sent"],
            credentials={"password": "secret"},
            expected_version=1,
        )
        assert (changed.version, changed.target) == (2, other.target)
        later = await olga.publish(*invoices("a", 2), ("invoice_sent", "a", {}))
        # From where the old one ended, and no more to the old one.
        await all_of(other, later)
        assert not set(first) & set(other.ids)
        assert crm.ids == first
        old = olga.update("crm-main", other.target, expected_version=1)
        assert (await refusal(old))[1] == "VERSION_MISMATCH"
        system = olga.update("crm-main", other.target, system_id="erp:main")
        assert (await refusal(system))[1] == "INVALID_FIELD"
        # At the same target it keeps them: the adapter takes the session that is opened with them.
        assert (await olga.update("crm-main", other.target, event_types=PAID)).version == 3
        nobody = olga.update("crm-2", other.target)
        assert (await refusal(nobody))[1] == "ADAPTER_NOT_FOUND"
    finally:
        await other.stop()
