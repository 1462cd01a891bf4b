"""What goes wrong with one event, one key or one target stays there: everything else goes on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration

from deskwire.events.v1 import adapter_pb2
from deskwire_common import events
from deskwire_common.db import Database
from deskwire_events import store
from deskwire_events.sinks import AdapterSink
from deskwire_events.streams.unnamed import Unnamed
from support import eventually

DELIVERED = adapter_pb2.PUSH_OUTCOME_DELIVERED
RETRY = adapter_pb2.PUSH_OUTCOME_RETRY
PAID = ["invoice_paid"]


def invoices(subject: str, count: int) -> list[tuple[str, str, dict[str, Any]]]:
    return [("invoice_paid", subject, {"number": number}) for number in range(count)]


def subjects(crm: Any) -> list[tuple[str, int]]:
    return [(item.event.subject, item.event.sequence) for item in crm.got]


async def test_a_retry_never_lets_a_later_state_pass(client: Any, crm: Any, tenant: str) -> None:
    """Three versions of one customer, the second one refused once: applied in order."""
    olga = client(tenant)
    await olga.register("crm-main", crm.target, event_types=PAID)
    applied: list[int] = []
    refused = [True]

    def answer(item: Any) -> Any:
        if item.event.sequence == 2 and refused and refused.pop():
            return RETRY
        applied.append(item.event.sequence)
        return DELIVERED

    crm.answer = answer
    await olga.publish(*invoices("a", 3))
    await eventually(lambda: applied == [1, 2, 3], timeout=20)


async def test_a_key_that_waits_holds_back_no_other(client: Any, crm: Any, tenant: str) -> None:
    olga = client(tenant)
    await olga.register("crm-main", crm.target, event_types=PAID)
    crm.answer = lambda item: (
        {"outcome": RETRY, "retry_after": Duration(seconds=600)}
        if item.event.subject == "stuck"
        else DELIVERED
    )
    await olga.publish(*invoices("stuck", 2), *invoices("free", 5))
    await eventually(lambda: ("free", 5) in subjects(crm), timeout=20)
    assert Counter(subjects(crm))["stuck", 1] == 1
    assert ("stuck", 2) not in subjects(crm)


async def test_a_poison_event_is_found_and_set_aside(
    start: Any, hub_url: str, crm: Any, tenant: str
) -> None:
    """The adapter crashes for the whole batch whenever the event is in it."""
    async with start(hub_url, delivery_attempts=3) as client:
        olga = client(tenant)
        await olga.register("crm-main", crm.target, event_types=PAID)

        def answer(item: Any) -> Any:
            if item.event.subject == "s-3":
                raise RuntimeError("a bug of the adapter")
            return DELIVERED

        crm.answer = answer
        ids = await olga.publish(*(("invoice_paid", f"s-{number}", {}) for number in range(6)))

        async def is_dead() -> Any:
            return await olga.deliveries("crm-main", dead_letters=True)

        (dead,) = await eventually(is_dead, timeout=30)
        assert dead.event_id == ids[3]
        assert dead.detail.startswith("after 3 tries: UNKNOWN: Unexpected")
        await eventually(lambda: delivered(olga, 5), timeout=20)


async def delivered(olga: Any, count: int) -> bool:
    return bool((await olga.adapter("crm-main")).delivered_count >= count)


async def test_answers_for_other_events_are_faults_of_the_adapter(
    client: Any, crm: Any, tenant: str
) -> None:
    olga = client(tenant)
    await olga.register("crm-main", crm.target, event_types=PAID)
    lies = ["foreign", "too few"]
    real = crm.Push

    async def push(request: Any, context: Any) -> Any:
        answer = await real(request, context)
        if lies:
            if lies.pop() == "foreign":
                answer.results[0].event_id = "another"
            else:
                del answer.results[:]
        return answer

    await crm.stop()
    crm.Push = push
    await crm.serve(int(crm.target.rpartition(":")[2]))
    await olga.publish(*invoices("a", 2))
    await eventually(lambda: delivered(olga, 2), timeout=30)
    assert "or for others" in (await olga.adapter("crm-main")).last_error


async def test_a_rate_limit_blames_no_event(client: Any, crm: Any, tenant: str) -> None:
    olga = client(tenant)
    await olga.register("crm-main", crm.target, event_types=PAID)
    limited = [True] * 3
    crm.answer = lambda _item: (
        {
            "outcome": adapter_pb2.PUSH_OUTCOME_RATE_LIMITED,
            "retry_after": Duration(nanos=50_000_000),
        }
        if limited and limited.pop()
        else DELIVERED
    )
    await olga.publish(*invoices("a", 1), *invoices("b", 1))
    await eventually(lambda: delivered(olga, 2), timeout=20)
    assert not await olga.deliveries("crm-main", dead_letters=True)


async def test_parked_events_outlive_a_restart(
    start: Any, hub_url: str, crm: Any, tenant: str
) -> None:
    """They are rows with their bodies, behind the place; the place itself goes on."""
    async with start(hub_url) as client:
        olga = client(tenant)
        await olga.register("crm-main", crm.target, event_types=PAID)
        crm.answer = lambda item: (
            {"outcome": RETRY, "retry_after": Duration(seconds=5)}
            if item.event.subject == "stuck"
            else DELIVERED
        )
        ids = await olga.publish(*invoices("stuck", 3), *invoices("free", 1))
        db = await Database.open(hub_url, pool_size=1)
        try:
            await eventually(lambda: parked(db, 3), timeout=20)
        finally:
            await db.close()
    crm.got.clear()
    crm.answer = lambda _item: DELIVERED
    async with start(hub_url) as client:
        await eventually(lambda: len(crm.got) >= 3, timeout=30)
        assert subjects(crm) == [("stuck", 1), ("stuck", 2), ("stuck", 3)]
        assert [item.event.event_id for item in crm.got] == ids[:3]
        assert crm.got[0].attempt >= 2
        db = await Database.open(hub_url, pool_size=1)
        try:
            await eventually(lambda: parked(db, 0), timeout=20)
        finally:
            await db.close()


async def parked(db: Database, count: int) -> bool:
    table = store.METADATA.tables["parked"]
    async with db.read() as connection:
        query = sa.select(sa.func.count()).select_from(table)
        return (await connection.execute(query)).scalar_one() == count


async def test_what_is_lost_is_told(start: Any, hub_url: str, crm: Any, tenant: str) -> None:
    """The place of an adapter is no longer kept: it goes on, and there is an event that says what is missing."""
    async with start(hub_url) as client:
        olga = client(tenant)
        await olga.register("crm-main", crm.target, event_types=PAID)
    # Beyond the end: of a topic that was made anew.
    db = await Database.open(hub_url, pool_size=1)
    table = store.METADATA.tables["places"]
    positions = '{"0":999999999,"1":0,"2":0,"3":0,"4":0,"5":0,"6":0,"7":0}'
    try:
        await db.run(lambda uow: uow.execute(sa.update(table).values(positions=positions)))
    finally:
        await db.close()
    async with start(hub_url) as client:
        olga = client(tenant)
        async with olga.subscribe(event_types=["deliveries_lost"]) as stream:
            event = (await stream.take(1))[0].event
        lost = events.unpack(event)
        assert (lost.subscription_id, lost.partition) == ("crm-main", 0)
        assert (lost.from_offset, lost.to_offset) == (999_999_999, 0)
        assert (event.subject, event.sequence) == (f"{tenant}/crm-main", 2)
        ids = await olga.publish(*invoices("a", 1))
        await eventually(lambda: set(ids) <= set(crm.ids), timeout=20)
        assert (await olga.adapter("crm-main")).last_error.startswith("lost: deskwire.external[0]")


async def test_a_sink_with_a_bug_stops_at_nothing_but_the_event(
    start: Any, hub_url: str, crm: Any, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = AdapterSink.deliver

    async def deliver(self: Any, batch: Any) -> Any:
        if any(each.event.subject == "poison" for each in batch):
            raise ValueError("a bug of ours")
        return await real(self, batch)

    monkeypatch.setattr(AdapterSink, "deliver", deliver)
    async with start(hub_url, delivery_attempts=3) as client:
        olga = client(tenant)
        await olga.register("crm-main", crm.target, event_types=PAID)
        await olga.publish(*invoices("poison", 1), *invoices("a", 3), *invoices("b", 1))

        async def is_dead() -> Any:
            return await olga.deliveries("crm-main", dead_letters=True)

        (dead,) = await eventually(is_dead, timeout=30)
        assert dead.detail == "after 3 tries: the sink failed; the hub's log says why"
        await eventually(lambda: delivered(olga, 4), timeout=20)


async def test_a_record_that_makes_the_hub_fail_is_passed_over(
    client: Any, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Unnamed.take

    def take(self: Any, carried: Any) -> bool:
        if carried.subject == b"poison":
            raise ValueError("a bug of ours")
        return real(self, carried)

    monkeypatch.setattr(Unnamed, "take", take)
    olga = client(tenant)
    async with olga.subscribe(event_types=PAID) as stream:
        await olga.publish(*invoices("a", 1), *invoices("poison", 1), *invoices("b", 1))
        assert {each.event.subject for each in await stream.take(2)} == {"a", "b"}
