"""Batches are measured by what is sent: JSON of control characters has six times the bytes of its record."""

from __future__ import annotations

import asyncio
from typing import Any

from deskwire.chat.v1 import conversation_pb2
from deskwire.events.v1 import adapter_pb2
from deskwire.events.v1 import event_hub_service_pb2 as pb
from deskwire.events.v1.chat_events_pb2 import MessageSent
from deskwire_common import topics
from deskwire_common.pagination import ANSWER_BYTES
from support import eventually

SENT = ["message_sent"]
CONTROL = "\x01" * 8_000
NEVER = "\x01" * 600_000
"""As JSON more than gRPC takes, though its record is in Kafka."""


def sent(text: str) -> MessageSent:
    return MessageSent(
        message=conversation_pb2.Message(content=conversation_pb2.Content(text=text))
    )


async def publish(produce: Any, tenant: str, *texts: str) -> list[str]:
    """Put messages into the topic, in order."""
    return [
        (await produce(topics.MESSAGES, "message_sent", sent(text), tenant)).event_id
        for text in texts
    ]


async def test_a_hundred_long_messages_at_once_reach_an_adapter(
    client: Any, crm: Any, produce: Any, tenant: str
) -> None:
    olga = client(tenant)
    await olga.register("crm-main", crm.target, event_types=SENT)
    port = int(crm.target.rpartition(":")[2])
    await crm.stop()
    ids = await publish(produce, tenant, *[CONTROL] * 100)
    await crm.serve(port)
    await eventually(lambda: set(crm.ids) == set(ids), timeout=30)
    assert crm.ids == ids
    assert max(push.ByteSize() for push in crm.pushes) < ANSWER_BYTES + 4_096


async def test_an_adapter_that_takes_less_gets_smaller_pushes(
    client: Any, crm: Any, produce: Any, tenant: str
) -> None:
    await crm.stop()
    await crm.serve(options=(("grpc.max_receive_message_length", 150_000),))
    olga = client(tenant)
    await olga.register("crm-main", crm.target, event_types=SENT)
    port = int(crm.target.rpartition(":")[2])
    await crm.stop()
    ids = await publish(produce, tenant, *[CONTROL] * 10, CONTROL * 4, *[CONTROL] * 10)
    await crm.serve(port, options=(("grpc.max_receive_message_length", 150_000),))
    await eventually(lambda: len(set(crm.ids)) == 20, timeout=30)
    assert crm.ids == ids[:10] + ids[11:]
    (dead,) = await ended(olga, ids[10])
    assert dead.outcome == adapter_pb2.PUSH_OUTCOME_REJECTED
    assert "larger than max" in dead.detail


async def test_what_can_never_be_sent_is_a_dead_letter_and_the_next_one_comes(
    client: Any, crm: Any, produce: Any, tenant: str
) -> None:
    olga = client(tenant)
    await olga.register("crm-main", crm.target, event_types=SENT)
    ids = await publish(produce, tenant, NEVER, "hello")
    await eventually(lambda: crm.ids == ids[1:], timeout=30)
    (dead,) = await ended(olga, ids[0])
    assert "3145728" in dead.detail


async def ended(olga: Any, event_id: str) -> list[Any]:
    """The end of an event's way, once it is recorded."""

    async def found() -> list[Any]:
        return [each for each in await olga.deliveries("crm-main") if each.event_id == event_id]

    return list(await eventually(found, timeout=30))


async def test_a_stream_gets_them_as_json_in_answers_that_any_client_takes(
    client: Any, produce: Any, tenant: str
) -> None:
    olga = client(tenant)
    async with olga.subscribe(event_types=SENT, json=True) as stream:
        start = stream.cursor
    await publish(produce, tenant, *[CONTROL] * 60, NEVER, *[CONTROL] * 60)
    again = olga.subscribe(event_types=SENT, json=True, cursor=start)
    async with again, asyncio.timeout(60):
        while len(again.events) < 121:
            answer = await again.next()
            assert answer.ByteSize() < ANSWER_BYTES + 8_192
    withheld = [place for place, each in enumerate(again.events) if not each.json]
    assert withheld == [60], "it is told, and nobody waits behind it"


async def test_a_named_stream_gets_them_as_json_in_answers_that_any_client_takes(
    client: Any, produce: Any, tenant: str
) -> None:
    olga = client(tenant)
    request = {"subscription_id": "all", "filter": {"event_types": SENT}}
    await olga.hub.CreateSubscription(
        pb.CreateSubscriptionRequest(request_id="1", subscription=request)
    )
    for number in range(40):
        await produce(topics.MESSAGES, "message_sent", sent(CONTROL), tenant, subject=f"c-{number}")
    async with olga.subscribe(subscription_id="all", json=True) as stream, asyncio.timeout(60):
        while len(stream.events) < 40:
            answer = await stream.next()
            assert answer.ByteSize() < ANSWER_BYTES + 64_000
    assert len({each.delivery for each in stream.events}) == 40
