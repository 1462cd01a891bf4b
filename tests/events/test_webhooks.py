"""Webhooks through the whole hub: made over gRPC, delivered by the engine, received by a real server."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from google.protobuf.duration_pb2 import Duration
from standardwebhooks.webhooks import WebhookVerificationError

from deskwire.events.v1 import (
    access_events_pb2,
    adapter_pb2,
    event_hub_service_pb2,
    hub_events_pb2,
    subscription_pb2,
)
from deskwire_common import topics
from deskwire_common.auth import Role
from deskwire_common.errors import from_rpc_error
from deskwire_common.ids import RandomIds
from support import eventually
from support.ports import free_port
from support.receiver import Got, Receiver, receiving, verify

pb: Any = event_hub_service_pb2
STOPPED = subscription_pb2.SUBSCRIPTION_STATE_STOPPED
RETRYING = subscription_pb2.SUBSCRIPTION_STATE_RETRYING
ACTIVE = subscription_pb2.SUBSCRIPTION_STATE_ACTIVE
IDS = RandomIds()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """What a hub that calls webhooks on this machine needs."""
    keys = tmp_path / "sealing.keys"
    keys.write_text(base64.b64encode(b"k" * 32).decode())
    return {
        "webhook_targets": "127.0.0.0/8:*",
        "webhook_allow_http": True,
        "sealing_file": keys,
    }


@pytest.fixture
async def hub(start: Any, hub_url: str, settings: dict[str, Any]) -> AsyncIterator[Any]:
    async with start(hub_url, **settings) as client:
        yield client


def creation(url: str, name: str = "billing", **filters: Any) -> Any:
    wanted = {"event_types": ["order_paid"], **filters}
    return pb.CreateSubscriptionRequest(
        request_id=IDS.uuid7(),
        subscription=subscription_pb2.Subscription(
            subscription_id=name,
            filter=subscription_pb2.SubscriptionFilter(**wanted),
            webhook=subscription_pb2.Webhook(url=url),
        ),
    )


async def create(caller: Any, url: str, name: str = "billing", **filters: Any) -> Any:
    return await caller.hub.CreateSubscription(creation(url, name, **filters))


async def get(caller: Any) -> Any:
    request = pb.GetSubscriptionRequest(subscription_id="billing")
    return (await caller.hub.GetSubscription(request)).subscription


async def change(caller: Any, method: str, **fields: Any) -> Any:
    """Call a method that changes the webhook."""
    request = getattr(pb, f"{method}Request")(
        request_id=IDS.uuid7(), subscription_id="billing", **fields
    )
    return await getattr(caller.hub, method)(request)


async def move(caller: Any, url: str) -> Any:
    """Give the webhook another URL."""
    webhook = subscription_pb2.Webhook(url=url)
    return (await change(caller, "UpdateSubscription", webhook=webhook)).subscription


async def reason(call: Any) -> str:
    """The reason of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value).reason_name


async def came(receiver: Receiver, count: int) -> list[Got]:
    """The first `count` requests."""
    await eventually(lambda: len(receiver.got) >= count)
    return receiver.got


def paid(subject: str, amount: int) -> tuple[str, str, dict[str, Any]]:
    return "order_paid", subject, {"amount": amount}


async def test_events_come_signed_in_order_and_the_secret_is_told_once(
    hub: Any,
    receiver: Receiver,
    tenant: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    olga = hub(tenant)
    asked = creation(receiver.url)
    async with olga.subscribe(event_types=["subscription_created"]) as stream:
        made = await olga.hub.CreateSubscription(asked)
        (told,) = await stream.take(1)
    assert made.secret.startswith("whsec_")
    assert made.subscription.state == ACTIVE
    ids = await olga.publish(paid("o-1", 1), paid("o-1", 2), ("order_lost", "o-1", {}))
    got = await came(receiver, 2)
    assert [each.event_id for each in got] == ids[:2]
    assert [verify(made.secret, each)["data"]["amount"] for each in got] == [1, 2]
    assert got[0].headers["traceparent"].count("-") == 3

    async def is_counted() -> bool:
        return bool((await get(olga)).delivered_count == 2)

    await eventually(is_counted)
    again = await olga.hub.CreateSubscription(asked)
    assert (again.subscription, again.secret) == (made.subscription, "")
    shown = [made.subscription, told, await get(olga), *await listed(olga)]
    secret = made.secret.removeprefix("whsec_")
    assert all(secret not in str(each) for each in shown)
    stored = all_bytes(tmp_path)
    assert b"billing" in stored
    assert secret.encode() not in stored
    out = capfd.readouterr()
    assert secret not in caplog.text + out.out + out.err


def all_bytes(folder: Path) -> bytes:
    """What the hub's database has on disk."""
    return b"".join(file.read_bytes() for file in folder.glob("events.db*"))


async def listed(caller: Any) -> list[Any]:
    answer = await caller.hub.ListSubscriptions(pb.ListSubscriptionsRequest())
    return list(answer.subscriptions)


async def test_one_that_is_gone_stops_and_goes_on_where_it_stopped(
    hub: Any, receiver: Receiver, tenant: str
) -> None:
    olga = hub(tenant)
    receiver.status = 410
    await create(olga, receiver.url)
    async with olga.subscribe(event_types=["subscription_updated"]) as stream:
        first = await olga.publish(paid("o-1", 1))
        (told,) = await stream.take(1)
    stopped = hub_events_pb2.SubscriptionUpdated()
    assert told.event.data.Unpack(stopped)
    assert stopped.subscription.state == STOPPED
    assert "HTTP 410" in stopped.subscription.reason

    async def is_stopped() -> bool:
        return bool((await get(olga)).state == STOPPED)

    await eventually(is_stopped)
    assert "HTTP 410" in (await get(olga)).reason
    second = await olga.publish(paid("o-2", 2))
    receiver.status = 200
    assert len(receiver.got) == 1
    resumed = await change(olga, "ResumeSubscription")
    assert (resumed.subscription.state, resumed.subscription.reason) == (ACTIVE, "")
    got = await came(receiver, 3)
    assert sorted(each.event_id for each in got[1:]) == sorted(first + second)


async def test_a_new_secret_signs_beside_the_old_one(
    hub: Any, receiver: Receiver, tenant: str
) -> None:
    olga = hub(tenant)
    made = await create(olga, receiver.url)
    rotated = await change(olga, "RotateWebhookSecret")
    assert rotated.secret not in {"", made.secret}
    assert rotated.subscription.webhook.HasField("previous_secret_expire_time")
    await olga.publish(paid("o-1", 1))
    (got,) = await came(receiver, 1)
    assert verify(made.secret, got) == verify(rotated.secret, got)
    # A leaked one is put out of use at once.
    last = await change(olga, "RotateWebhookSecret", overlap=Duration(seconds=0))
    await olga.publish(paid("o-1", 2))
    got = (await came(receiver, 2))[1]
    assert verify(last.secret, got)
    for old in (made.secret, rotated.secret):
        with pytest.raises(WebhookVerificationError):
            verify(old, got)


async def test_one_that_is_busy_gets_its_events_later(
    hub: Any, receiver: Receiver, tenant: str
) -> None:
    olga = hub(tenant)
    made = await create(olga, receiver.url)

    async def respond(_request: web.Request) -> web.Response:
        if len(receiver.got) <= 2:
            return web.Response(
                status=(429, 503)[len(receiver.got) - 1], headers={"Retry-After": "0"}
            )
        return web.Response()

    receiver.respond = respond
    ids = await olga.publish(paid("o-1", 1), paid("o-1", 2))
    got = await came(receiver, 4)
    assert [each.event_id for each in got] == [ids[0], ids[0], *ids]
    # The first attempt's time is not the last one's: each is signed anew.
    assert all(verify(made.secret, each) for each in got)
    assert await olga.deliveries("billing", dead_letters=True) == []


async def test_what_it_refuses_is_a_dead_letter(hub: Any, receiver: Receiver, tenant: str) -> None:
    olga = hub(tenant)
    await create(olga, receiver.url)

    async def respond(request: web.Request) -> web.Response:
        amount = (await request.json())["data"]["amount"]
        return web.Response(status=422 if amount == 1 else 200, text="the reason")

    receiver.respond = respond
    ids = await olga.publish(paid("o-1", 1), paid("o-1", 2))
    await came(receiver, 2)

    async def is_written() -> bool:
        return len(await olga.deliveries("billing")) == 2

    await eventually(is_written)
    (dead,) = await olga.deliveries("billing", dead_letters=True)
    assert (dead.event_id, dead.detail) == (ids[0], "HTTP 422")
    assert dead.outcome == adapter_pb2.PUSH_OUTCOME_REJECTED
    assert (await get(olga)).dead_letter_count == 1


async def test_a_check_sends_a_signed_event_and_says_what_came_of_it(
    hub: Any, receiver: Receiver, tenant: str
) -> None:
    olga = hub(tenant)
    made = await create(olga, receiver.url)
    check = partial(olga.hub.CheckWebhook, pb.CheckWebhookRequest(subscription_id="billing"))
    answer = await check()
    assert (answer.outcome, answer.status) == (adapter_pb2.PUSH_OUTCOME_DELIVERED, 204)
    assert answer.elapsed.ToMicroseconds() > 0
    (got,) = receiver.got
    event = verify(made.secret, got)
    assert event["event_type"] == "webhook_checked"
    assert event["event_id"] == answer.event_id
    assert event["data"] == {"subscription_id": "billing"}
    for status, outcome in (
        (404, "REJECTED"),
        (410, "RETRY"),
        (503, "RATE_LIMITED"),
        (500, "RETRY"),
    ):
        receiver.status = status
        answer = await check()
        assert answer.outcome == adapter_pb2.PushOutcome.Value(f"PUSH_OUTCOME_{outcome}")
        assert (answer.status, answer.detail[:8]) == (status, f"HTTP {status}")
    # It counts nowhere: 410 stops nothing.
    assert (await get(olga)).state == ACTIVE
    for url in (f"http://127.0.0.1:{free_port()}/", f"http://[::1]:{receiver.port}/"):
        await move(olga, url)
        answer = await check()
        assert answer.status == 0
        assert answer.detail == "no server answers there that this hub may call"


async def test_a_url_that_is_none_is_refused_and_told_why(client: Any, tenant: str) -> None:
    olga = client(tenant)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await create(olga, "http://hooks.example.org/?token=4711")
    error = from_rpc_error(caught.value)
    assert (error.reason_name, dict(error.violations).keys()) == (
        "INVALID_FIELD",
        {"subscription.webhook.url"},
    )
    assert "must begin with https://" in error.message
    assert "4711" not in error.message
    assert await listed(olga) == []


async def test_a_system_changes_its_own_webhooks_only(client: Any, tenant: str) -> None:
    olga = client(tenant)
    url = "https://127.0.0.1:1/"
    crm = client(tenant, role=Role.INTEGRATION, subject="crm", system="crm:main")
    erp = client(tenant, role=Role.INTEGRATION, subject="erp", system="erp:main")
    await create(crm, url)
    assert await reason(move(erp, url)) == "ROLE_NOT_ALLOWED"
    assert await reason(change(erp, "RotateWebhookSecret")) == "ROLE_NOT_ALLOWED"
    check = erp.hub.CheckWebhook(pb.CheckWebhookRequest(subscription_id="billing"))
    assert await reason(check) == "ROLE_NOT_ALLOWED"
    late = change(olga, "RotateWebhookSecret", expected_version=9)
    assert await reason(late) == "VERSION_MISMATCH"
    assert await reason(move(crm, "http://127.0.0.1:1/")) == "INVALID_FIELD"
    # What a role doesn't get by Subscribe, its webhooks don't get.
    wanted = create(crm, url, "keys", event_types=["integration_key_created"])
    assert await reason(wanted) == "ROLE_NOT_ALLOWED"
    assert await reason(create(olga, url, cel="event.data.amount >")) == "INVALID_FIELD"
    assert await reason(create(olga, url)) == "ALREADY_EXISTS"
    await change(crm, "DeleteSubscription")
    assert await reason(get(crm)) == "SUBSCRIPTION_NOT_FOUND"


async def test_what_is_no_webhook_has_no_url_and_no_secret(client: Any, tenant: str) -> None:
    olga = client(tenant)
    made = await olga.hub.CreateSubscription(
        pb.CreateSubscriptionRequest(
            request_id="once",
            subscription=subscription_pb2.Subscription(subscription_id="billing"),
        )
    )
    assert made.secret == ""
    assert not made.subscription.HasField("webhook")
    assert await reason(change(olga, "RotateWebhookSecret")) == "SUBSCRIPTION_NOT_FOUND"
    check = olga.hub.CheckWebhook(pb.CheckWebhookRequest(subscription_id="billing"))
    assert await reason(check) == "SUBSCRIPTION_NOT_FOUND"
    assert await reason(move(olga, "https://127.0.0.1:1/")) == "INVALID_FIELD"


async def test_a_role_s_webhook_gets_what_the_role_gets(
    hub: Any, receiver: Receiver, tenant: str, produce: Any
) -> None:
    crm = hub(tenant, role=Role.INTEGRATION, subject="crm", system="crm:main")
    made = await create(crm, receiver.url, event_types=[])
    created = access_events_pb2.TenantCreated()
    await produce(topics.topic_for("tenant_created"), "tenant_created", created, tenant)
    # Its own events don't come back to it.
    await crm.publish(paid("o-1", 1))
    ids = await hub(tenant).publish(paid("o-2", 2))

    def is_there() -> bool:
        return any(each.event_id == ids[0] for each in receiver.got)

    await eventually(is_there)
    kinds = [verify(made.secret, each)["event_type"] for each in receiver.got]
    assert "tenant_created" not in kinds
    assert kinds.count("order_paid") == 1


async def test_another_url_and_filter_take_effect(
    hub: Any, receiver: Receiver, tenant: str
) -> None:
    olga = hub(tenant)
    made = await create(olga, f"http://127.0.0.1:{free_port()}/")
    ids = await olga.publish(paid("o-1", 1))
    # It waits for a server that isn't there, and comes when the URL is mended.
    moved = await move(olga, receiver.url)
    assert (moved.version, moved.webhook.url) == (2, receiver.url)
    assert moved.filter == made.subscription.filter
    await came(receiver, 1)
    both = subscription_pb2.SubscriptionFilter(event_types=["order_paid", "order_lost"])
    updated = (await change(olga, "UpdateSubscription", filter=both)).subscription
    assert (updated.webhook, updated.filter) == (moved.webhook, both)
    ids += await olga.publish(("order_lost", "o-1", {}))
    got = await came(receiver, 2)
    assert [each.event_id for each in got] == ids
    assert [verify(made.secret, each)["event_type"] for each in got] == ["order_paid", "order_lost"]


async def test_a_dead_letter_is_sent_again(hub: Any, receiver: Receiver, tenant: str) -> None:
    olga = hub(tenant)
    receiver.status = 400
    await create(olga, receiver.url)
    ids = await olga.publish(paid("o-1", 1))

    async def letters() -> list[str]:
        request = pb.ListDeadLettersRequest(subscription_id="billing")
        return [each.event_id for each in (await olga.hub.ListDeadLetters(request)).dead_letters]

    await eventually(letters)
    assert await letters() == ids
    receiver.status = 200
    assert (await change(olga, "RedriveDeadLetters")).count == 1
    got = await came(receiver, 2)
    assert [each.event_id for each in got] == ids * 2


async def test_the_credentials_of_an_adapter_are_sealed_too(
    hub: Any, crm: Any, tenant: str, tmp_path: Path
) -> None:
    crm.password = "a-secret-of-the-crm"
    await hub(tenant).register("crm-main", crm.target, credentials={"password": crm.password})
    assert crm.sessions > 0
    stored = all_bytes(tmp_path)
    assert b"crm-main" in stored
    assert crm.password.encode() not in stored


async def test_one_that_hangs_holds_back_its_own_subject_only(
    hub: Any, receiver: Receiver, tenant: str
) -> None:
    olga = hub(tenant)
    await create(olga, receiver.url)
    enough = asyncio.Event()

    async def respond(request: web.Request) -> web.Response:
        if (await request.json())["subject"] == "slow":
            await enough.wait()
        return web.Response()

    receiver.respond = respond
    slow = await olga.publish(paid("slow", 1), paid("slow", 2))
    await came(receiver, 1)
    others = []
    for amount in range(3):
        others += await olga.publish(paid("o-1", amount))
        await came(receiver, 2 + amount)
    assert [each.event_id for each in receiver.got] == [slow[0], *others]
    enough.set()
    got = await came(receiver, 5)
    assert got[4].event_id == slow[1]


async def test_a_receiver_that_fails_for_all_gets_no_dead_letters(
    hub: Any, receiver: Receiver, tenant: str
) -> None:
    olga = hub(tenant)
    await create(olga, receiver.url)
    receiver.status = 500
    ids = await olga.publish(*(paid(f"o-{n}", n) for n in range(40)))
    await came(receiver, 8)

    async def is_retrying() -> bool:
        found = await get(olga)
        return found.state == RETRYING and found.last_error == "HTTP 500"

    await eventually(is_retrying)
    receiver.status = 200
    before = len(receiver.got)

    def all_came() -> bool:
        return {each.event_id for each in receiver.got[before:]} == set(ids)

    await eventually(all_came, timeout=60)
    assert await olga.deliveries("billing", dead_letters=True) == []


async def test_a_poison_event_among_good_ones_is_found(
    start: Any, hub_url: str, settings: dict[str, Any], receiver: Receiver, tenant: str
) -> None:
    async with start(hub_url, **settings, delivery_attempts=3) as client:
        olga = client(tenant)
        await create(olga, receiver.url)

        async def respond(request: web.Request) -> web.Response:
            poison = (await request.json())["subject"] == "poison"
            return web.Response(status=500 if poison else 200)

        receiver.respond = respond
        (poison,) = await olga.publish(paid("poison", 0))

        async def is_dead() -> bool:
            await olga.publish(paid("o-1", 1))
            return bool(await olga.deliveries("billing", dead_letters=True))

        await eventually(is_dead, timeout=60)
        (dead,) = await olga.deliveries("billing", dead_letters=True)
        assert (dead.event_id, dead.attempts) == (poison, 3)
        assert dead.detail.endswith("HTTP 500")
