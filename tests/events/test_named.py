"""Named subscriptions: their place is the hub's, streams share one, and nothing is done before it is acknowledged."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty

from deskwire.events.v1 import event_hub_service_pb2, subscription_pb2
from deskwire_common import events
from deskwire_common.auth import Role
from support import eventually
from support.refusals import refusal

hub_pb: Any = event_hub_service_pb2
PAID = ["invoice_paid"]
EARLIEST = {"earliest": Empty()}


def invoices(subject: str, count: int) -> list[tuple[str, str, dict[str, Any]]]:
    return [("invoice_paid", subject, {"number": number}) for number in range(count)]


async def create(caller: Any, name: str = "billing", *, start: Any = None, **filters: Any) -> Any:
    wanted = subscription_pb2.SubscriptionFilter(**{"event_types": PAID, **filters})
    request = hub_pb.CreateSubscriptionRequest(
        request_id=f"create-{name}",
        subscription=subscription_pb2.Subscription(subscription_id=name, filter=wanted),
        start=start and subscription_pb2.SubscriptionStart(**start),
    )
    return (await caller.hub.CreateSubscription(request)).subscription


async def change(caller: Any, verb: str, name: str = "billing", **fields: Any) -> Any:
    request = getattr(hub_pb, f"{verb}SubscriptionRequest")(
        request_id=f"{verb}-{name}-{fields}"[:64], subscription_id=name, **fields
    )
    return (await getattr(caller.hub, f"{verb}Subscription")(request)).subscription


def read(caller: Any, name: str = "billing", **fields: Any) -> Any:
    return caller.subscribe(subscription_id=name, **fields)


async def ack(stream: Any, *delivered: Any) -> None:
    numbers = [each.delivery for each in delivered or stream.events]
    await stream.call.write(hub_pb.SubscribeRequest(ack=hub_pb.SubscribeAck(deliveries=numbers)))


async def nack(stream: Any, delivered: Any, **then: Any) -> None:
    request = hub_pb.SubscribeNack(deliveries=[delivered.delivery], **then)
    await stream.call.write(hub_pb.SubscribeRequest(nack=request))


def places(stream: Any) -> list[tuple[str, int]]:
    return [(each.event.subject, each.event.sequence) for each in stream.events]


async def test_what_is_acknowledged_never_comes_again(
    start: Any, database_url: str, tenant: str
) -> None:
    async with start(database_url) as client:
        olga = client(tenant)
        made = await create(olga)
        assert made.state == subscription_pb2.SUBSCRIPTION_STATE_ACTIVE
        await olga.publish(*invoices("a", 1), *invoices("b", 1), *invoices("c", 1))
        async with read(olga) as stream:
            first, second, third = await stream.take(3)
            await ack(stream, first, third)
            await eventually(lambda: counted(olga, 2), timeout=20)
        # A crash is the same as a stream that goes: what wasn't acknowledged is there again.
        async with read(olga) as stream:
            (again,) = await stream.take(1)
            assert again.event.event_id == second.event.event_id
            assert again.attempt == 2
            await ack(stream)
            await eventually(lambda: counted(olga, 3), timeout=20)
    async with start(database_url) as client:
        olga = client(tenant)
        await olga.publish(*invoices("d", 1))
        async with read(olga) as stream:
            await stream.take(1)
            assert places(stream) == [("d", 1)]


async def counted(caller: Any, count: int) -> bool:
    request = hub_pb.GetSubscriptionRequest(subscription_id="billing")
    answer = await caller.hub.GetSubscription(request)
    return bool(answer.subscription.delivered_count == count)


async def test_one_of_a_subject_at_a_time(client: Any, tenant: str) -> None:
    olga = client(tenant)
    await create(olga)
    await olga.publish(*invoices("a", 3))
    async with read(olga) as stream:
        for number in (1, 2, 3):
            await stream.take(number)
            assert places(stream) == [("a", each) for each in range(1, number + 1)]
            await ack(stream, stream.events[-1])


async def test_a_nack_says_what_then(client: Any, tenant: str) -> None:
    olga = client(tenant)
    await create(olga)
    await olga.publish(*invoices("later", 2), *invoices("never", 1), *invoices("skip", 1))
    async with read(olga, json=True) as stream:
        found = {json.loads(each.json)["subject"]: each for each in await stream.take(3)}
        await nack(stream, found["later"], retry_after=Duration(nanos=200_000_000), detail="busy")
        await nack(stream, found["never"], reject=Empty(), detail="no such\0invoice")
        await nack(stream, found["skip"], skip=Empty())
        again = (await stream.take(4))[3]
        document = json.loads(again.json)
        assert (document["subject"], document["sequence"], again.attempt) == ("later", 1, 2)

        async def dead() -> Any:
            request = hub_pb.ListDeadLettersRequest(subscription_id="billing", json=True)
            return list((await olga.hub.ListDeadLetters(request)).dead_letters)

        (letter,) = await eventually(dead, timeout=20)
        # PostgreSQL stores no NUL: a blank stands for it.
        detail = "no such invoice"
        assert (letter.detail, json.loads(letter.json)["subject"]) == (detail, "never")


async def test_what_takes_too_long_goes_to_another(client: Any, tenant: str) -> None:
    olga = client(tenant)
    await create(olga)
    async with read(olga, ack_within=Duration(seconds=1), credit=2) as slow:
        await olga.publish(*invoices("a", 1), *invoices("b", 1))
        first, second = await slow.take(2)
        extend = hub_pb.SubscribeExtend(deliveries=[second.delivery], by=Duration(seconds=600))
        await slow.call.write(hub_pb.SubscribeRequest(extend=extend))
        async with read(olga) as other:
            (taken,) = await other.take(1)
            assert taken.event.event_id == first.event.event_id
            # Too late: it has it no more.
            await ack(slow, first)
            await ack(other)
            await ack(slow, second)
            await eventually(lambda: counted(olga, 2), timeout=20)


async def test_streams_share_the_subjects(client: Any, tenant: str) -> None:
    olga = client(tenant)
    await create(olga)
    async with read(olga, credit=3) as one, read(olga, credit=100) as two:
        await olga.publish(*(each for number in range(8) for each in invoices(f"s-{number}", 2)))
        got: dict[str, list[int]] = {}

        async def work(stream: Any) -> None:
            while sum(map(len, got.values())) < 16:
                await stream.next()
                while stream.events:
                    each = stream.events.pop(0)
                    got.setdefault(each.event.subject, []).append(each.event.sequence)
                    await ack(stream, each)
                    await stream.credit(1)

        tasks = [asyncio.create_task(work(stream)) for stream in (one, two)]
        done, waiting = await asyncio.wait(tasks, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for task in done:
            task.result()
    assert got == {f"s-{number}": [1, 2] for number in range(8)}


async def test_pause_seek_and_resume(client: Any, tenant: str) -> None:
    olga = client(tenant)
    async with olga.subscribe(event_types=PAID) as stream:
        before = await olga.publish(*invoices("before", 2))
        # An answer means committed; where a subscription begins is decided by what is on Kafka.
        await stream.take(2)
    await create(olga)
    after = await olga.publish(*invoices("after", 1))
    async with read(olga) as stream:
        await stream.take(1)
        assert [each.event.event_id for each in stream.events] == after
        await ack(stream)
        await eventually(lambda: counted(olga, 1), timeout=20)
        assert (await refusal(change(olga, "Seek", start={"earliest": {}})))[1] == "INVALID_STATE"
        paused = await change(olga, "Pause")
        assert (paused.version, paused.state) == (2, subscription_pb2.SUBSCRIPTION_STATE_PAUSED)

        async def to_the_end() -> None:
            while True:
                await stream.next()

        assert (await refusal(to_the_end())) == ("UNAVAILABLE", "NOT_OWNER")
    assert (await refusal(read(olga).__aenter__()))[1] == "INVALID_STATE"
    await change(olga, "Seek", start={"earliest": {}}, expected_version=2)
    assert (await refusal(change(olga, "Resume", expected_version=2)))[1] == "VERSION_MISMATCH"
    await change(olga, "Resume", expected_version=3)
    async with read(olga) as stream:
        found = []
        while len(found) < 3:
            await stream.next()
            while stream.events:
                each = stream.events.pop(0)
                found.append(each.event.event_id)
                await ack(stream, each)
    assert sorted(found) == sorted([*before, *after])
    assert found.index(before[0]) < found.index(before[1])


async def test_a_filter_is_replaced(client: Any, tenant: str) -> None:
    olga = client(tenant)
    await create(olga)
    wanted = subscription_pb2.SubscriptionFilter(event_types=["invoice_sent"], cel="event.data.big")
    changed = await change(olga, "Update", filter=wanted)
    assert list(changed.filter.event_types) == ["invoice_sent"]
    async with read(olga) as stream:
        await olga.publish(*invoices("a", 1), ("invoice_sent", "a", {"big": False}))
        await olga.publish(("invoice_sent", "b", {"big": True}))
        await stream.take(1)
        assert places(stream) == [("b", 1)]
    wrong = subscription_pb2.SubscriptionFilter(cel="event.")
    assert (await refusal(change(olga, "Update", filter=wrong)))[1] == "INVALID_FIELD"


async def test_dead_letters_go_again_and_are_forgotten(client: Any, crm: Any, tenant: str) -> None:
    """Also those of an adapter, after it was mended: in order before what comes later of their subject."""
    from deskwire.events.v1 import adapter_pb2

    olga = client(tenant)
    await olga.register("crm-main", crm.target, event_types=PAID)
    crm.answer = lambda _item: adapter_pb2.PUSH_OUTCOME_REJECTED
    ids = await olga.publish(*invoices("a", 2), *invoices("b", 1))

    async def dead(count: int) -> bool:
        found = await olga.deliveries("crm-main", dead_letters=True)
        return len(found) == count

    await eventually(lambda: dead(3), timeout=20)
    crm.answer = lambda _item: adapter_pb2.PUSH_OUTCOME_DELIVERED
    crm.got.clear()
    redrive = hub_pb.RedriveDeadLettersRequest(
        request_id="again", subscription_id="crm-main", event_ids=ids[:2]
    )
    async with olga.subscribe(event_types=["dead_letters_redriven"]) as stream:
        assert (await olga.hub.RedriveDeadLetters(redrive)).count == 2
        assert (await olga.hub.RedriveDeadLetters(redrive)).count == 2
        told = (await stream.take(1))[0].event
    assert list(events.unpack(told).event_ids) == ids[:2]
    await eventually(lambda: crm.ids == ids[:2], timeout=20)
    purge = hub_pb.PurgeDeadLettersRequest(request_id="forget", subscription_id="crm-main")
    assert (await olga.hub.PurgeDeadLetters(purge)).count == 1
    assert await dead(0)
    # A subject goes on as before.
    later = await olga.publish(*invoices("a", 1))
    await eventually(lambda: set(later) <= set(crm.ids), timeout=20)


async def test_who_may_do_what(client: Any, tenant: str) -> None:
    olga = client(tenant)
    erp = client(tenant, role=Role.INTEGRATION, subject="erp", system="erp:main")
    await create(erp)
    agent = client(tenant, role=Role.AGENT, subject="alice")
    assert (await refusal(create(agent, "mine")))[1] == "ROLE_NOT_ALLOWED"
    crm = client(tenant, role=Role.INTEGRATION, subject="crm", system="crm:main")
    for call in (change(crm, "Pause"), read(crm).__aenter__()):
        assert (await refusal(call))[1] == "ROLE_NOT_ALLOWED"
    # Nothing comes back to the system that it came from.
    await erp.publish(*invoices("own", 1))
    await olga.publish(*invoices("other", 1))
    async with read(erp) as stream:
        await stream.take(1)
        assert places(stream) == [("other", 1)]
    other = client(f"{tenant}-other")
    for call in (change(other, "Pause"), read(other).__aenter__()):
        assert await refusal(call) == ("NOT_FOUND", "SUBSCRIPTION_NOT_FOUND")
    keys = {"event_types": ["tenant_created"]}
    assert (await refusal(create(erp, "keys", **keys)))[1] == "ROLE_NOT_ALLOWED"
    with pytest.raises(grpc.aio.AioRpcError):
        async with read(olga, event_types=PAID):
            pass
    assert (await refusal(create(olga)))[0] == "ALREADY_EXISTS"
    gone = await change(olga, "Delete")
    assert gone.subscription_id == "billing"
    assert (await refusal(change(olga, "Delete", expected_version=7)))[0] == "NOT_FOUND"


async def test_a_stream_may_come_to_any_hub(
    request: pytest.FixtureRequest, start: Any, tenant: str
) -> None:
    server = request.getfixturevalue("postgres")
    url = server.fresh()
    async with start(url) as one, start(url) as two:
        callers = [one(tenant), two(tenant)]
        names = [f"s-{number}" for number in range(6)]
        for name in names:
            await create(callers[0], name)
        ids = await callers[0].publish(*invoices("a", 1))
        codes: set[str] = set()

        async def comes(caller: Any, name: str) -> bool:
            try:
                async with read(caller, name) as stream:
                    (each,) = await stream.take(1)
                    await ack(stream)
                    return [each.event.event_id] == ids
            except grpc.aio.AioRpcError as error:
                # A slot is moving to the hub that has just come.
                codes.add(error.code().name)
                return False

        # Six subscriptions of two hubs, by streams to both: some are passed on.
        for number, name in enumerate(names):
            await eventually(lambda n=number, s=name: comes(callers[n % 2], s), timeout=30)
        assert codes <= {"UNAVAILABLE"}
    server.drop(url)
