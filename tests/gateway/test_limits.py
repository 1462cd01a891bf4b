"""What connections may do together: a tenant's rate, and how fast new ones come."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from deskwire.gateway.v1 import frame_pb2
from deskwire_common.auth import Role
from deskwire_common.metrics import METRICS
from deskwire_gateway.admission import TYPING_RATE, Admission, Bucket, TenantRates
from deskwire_gateway.limits import Limits
from deskwire_gateway.session import PARKED, Session
from support import eventually
from support.suite import Start, gateway_settings, new_id
from support.wire import wire


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(10.0, 100.0)
    assert [bucket.take(100.0) for _ in range(20)] == [0.0] * 20
    wait = bucket.take(100.0)
    assert 0.1 < wait < 0.2
    assert bucket.take(100.0 + wait) == 0
    assert bucket.take(100.0 + wait) > 0
    # A clock that stands still or goes back gives nothing.
    assert bucket.take(99.0) > 0
    assert not bucket.is_full(101.0)
    assert bucket.is_full(110.0)
    assert [bucket.take(110.0) for _ in range(21)].count(0.0) == 20


def test_less_than_one_a_second_is_a_rate_too() -> None:
    bucket = Bucket(0.1, 0.0)
    assert bucket.take(0.0) == 0
    assert 10 < bucket.take(0.0) < 11
    assert bucket.take(10.02) == 0


def test_tenants_have_a_bucket_each_and_no_rate_is_no_limit() -> None:
    rates = TenantRates(1.0)
    assert [rates.take("one", 0.0) for _ in range(3)] == [0, 0, pytest.approx(1.01)]
    assert rates.take("two", 0.0) == 0
    # Thousands of tenants come and go; one that is over its rate is remembered.
    for number in range(5_000):
        rates.take(f"t-{number}", 10.0 + number)
    for _ in range(2):
        rates.take("one", 20_000.0)
    for number in range(5_000):
        rates.take(f"u-{number}", 20_000.0)
    assert rates.take("one", 20_000.0) > 0
    assert not any(TenantRates(0.0).take("one", 0.0) for _ in range(10_000))


async def test_a_tenant_over_its_rate_is_refused_for_now_and_order_is_kept(start: Start) -> None:
    async with start(tenant_send_rate=0.01) as d:
        other = new_id()
        async with (
            wire(d, d.token(Role.VISITOR, "one")) as one,
            wire(d, d.token(Role.VISITOR, "two")) as two,
            wire(d, d.token(Role.VISITOR, "one", tenant=f"{d.tenant}-2")) as elsewhere,
        ):
            await one.works()
            # The tenant's one is gone, whoever sends.
            await two.send(other, "too much")
            assert await two.refused() == "RATE_LIMITED"
            await two.send(other, "and more")
            assert await two.refused() == "LINE_HELD"
            await elsewhere.works()


async def test_connections_that_come_too_fast_are_told_when_to_come_back(start: Start) -> None:
    async with start(accept_rate=0.01) as d:
        async with connect(d.url, subprotocols=["deskwire.v1"]):  # type: ignore[list-item]
            with pytest.raises(InvalidStatus) as refused:
                async with connect(d.url, subprotocols=["deskwire.v1"]):  # type: ignore[list-item]
                    pass
        response = refused.value.response
        assert response.status_code == 503
        assert 90 < int(response.headers["Retry-After"]) <= 101


async def test_who_sends_far_too_fast_isnt_read_for_a_while_and_others_are(start: Start) -> None:
    async with start(send_rate=200, send_burst=10) as d:
        rests = METRICS.gateway_rests
        before = rests._value.get()
        async with (
            wire(d, d.token(Role.VISITOR, "fast")) as fast,
            wire(d, d.token(Role.VISITOR, "other")) as other,
        ):
            batch = frame_pb2.Batch()
            for number in range(200):
                batch.frames.add().ping.id = number + 1
            for _ in range(10):
                await fast.raw(batch.SerializeToString())
            await other.works()
            await eventually(lambda: rests._value.get() > before)
            # All of it is read in the end, and the connection is as good as before.
            for _ in range(10 * 200):
                await fast.hear("pong")
            talk = new_id()

            async def is_taken() -> bool:
                await fast.send(talk, "again", "m-1")
                answer = await fast.hear_one_of("send_ack", "error")
                return isinstance(answer, frame_pb2.SendAck)

            await eventually(is_taken, interval=0.2)


def test_a_refused_frame_costs_a_little_and_a_debt_ends(valkey: str, keys_file: Path) -> None:
    settings = gateway_settings(1, valkey, keys_file)
    admission = Admission(
        Limits(**{field.name: getattr(settings, field.name) for field in fields(Limits)})
    )
    session = Session(1, "s", PARKED, 100.0)

    def take(cost: float) -> float:
        return admission.take(session, cost)

    assert [take(1.0) for _ in range(400)] == [0.0] * 400
    assert take(1.0) == pytest.approx(0.05 + 1.25 / 200)
    assert admission.rest(session) == 0
    for _ in range(10_000):
        take(1.0)
    # However much was refused: a second's worth of debt.
    assert admission.rest(session) == pytest.approx(1.0)
    session.seen += 0.4
    take(1.0)
    assert admission.rest(session) == pytest.approx(0.6, abs=0.01)
    session.seen += 0.7
    assert take(1.0) == 0
    assert admission.rest(session) == 0


async def test_typing_goes_on_at_the_speed_of_people(start: Start) -> None:
    loop = asyncio.get_running_loop()
    async with (
        start() as d,
        wire(d, d.token(Role.VISITOR, "1")) as visitor,
        wire(d, d.token(Role.AGENT, "ann")) as ann,
    ):
        await d.available("ann")
        talk = new_id()
        await visitor.send(talk, "hello")
        assert (await ann.hear("push")).conversation.agent_id == "ann"
        began = loop.time()
        for number in range(200):
            typing = frame_pb2.Typing(conversation_id=talk, typing=number % 2 == 0)
            await visitor.say(typing=typing)
        await visitor.say(read=frame_pb2.Read(conversation_id=talk, seq=1))
        heard = 0
        while isinstance(frame := await ann.hear_one_of("typing", "push"), frame_pb2.Typing) or (
            not frame.HasField("receipt")
        ):
            heard += isinstance(frame, frame_pb2.Typing)
        assert 0 < heard <= 10 + TYPING_RATE * (loop.time() - began)
