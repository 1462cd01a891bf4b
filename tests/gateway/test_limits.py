"""What connections may do together: a tenant's rate, and how fast new ones come."""

from __future__ import annotations

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from deskwire_common.auth import Role
from deskwire_gateway.admission import Bucket, TenantRates
from support.suite import Start, new_id
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
