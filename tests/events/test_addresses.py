"""Adapters' addresses are the operator's to allow; nothing here dials anything but this machine."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc

from deskwire_common.clock import SystemClock
from deskwire_common.sealing import Sealer
from deskwire_common.targets import Resolve, Targets, parse_rules
from deskwire_events import domain
from deskwire_events.hosts import AdapterHost, HostLimits
from deskwire_events.secret_refs import SecretRefs
from deskwire_events.sinks import NOT_THERE, AdapterSink, Away, Faulty, way_to
from support import eventually
from support.listening import listening
from support.names import Names
from support.outgoing import outgoing

REFUSAL = f"the adapter can't be used: {NOT_THERE}"


async def refusal(call: Any) -> tuple[str, str]:
    """Code and text of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details() or ""


async def test_one_text_for_all_that_is_no_adapter(client: Any, tenant: str) -> None:
    olga = client(tenant)
    other = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), other)
    other_port = other.add_insecure_port("127.0.0.1:0")
    await other.start()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{unused.getsockname()[1]}"
        async with (
            listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as http,
            listening(b"\x00\x01") as nonsense,
            listening(None) as silent,
        ):
            told = {
                target: await refusal(olga.register("a-1", target))
                for target in (
                    closed, http, nonsense, silent, f"127.0.0.1:{other_port}",
                    # Refused by the rule, before anything is resolved or dialled; on this machine, were it not.
                    "[::1]:80", "127.0.0.1:99999", "unix:1", "unix-abstract:x:1", "dns:127.0.0.1:80",
                    "ipv4:127.0.0.1:80", "xds:x:1", "a,b:1", "127.0.0.1:80,127.0.0.1:81",
                )
            }  # fmt: skip
    await other.stop(0)
    assert set(told.values()) == {("FAILED_PRECONDITION", REFUSAL)}, told


async def test_what_proved_to_be_an_adapter_is_quoted(client: Any, crm: Any, tenant: str) -> None:
    crm.password = "secret"
    code, text = await refusal(client(tenant).register("a-1", crm.target))
    assert code == "FAILED_PRECONDITION"
    assert text.endswith("UNAUTHENTICATED: wrong password")


def calling(target: str, names: Resolve, rules: str = "127.0.0.0/8:*") -> AdapterSink:
    adapter = domain.register(
        None, tenant="t", adapter_id="a-1", incarnation="i", system_id="crm:main", target=target, event_types=(),
        accepts=(), credentials={}, now=1_767_225_600_000_000,
    )  # fmt: skip
    targets = Targets(parse_rules(rules), names)
    open_way = partial(
        way_to, targets=targets, tls=None, host=AdapterHost(frozenset(), HostLimits())
    )
    return AdapterSink(
        adapter,
        open_way=open_way,
        secrets=SecretRefs(()),
        sealer=Sealer(),
        clock=SystemClock(),
    )


async def test_a_name_that_turns_inward_is_not_followed(crm: Any) -> None:
    port = crm.target.rpartition(":")[2]
    names = Names(["127.0.0.1"], ["::1"])
    client = calling(f"crm.example.org:{port}", names)
    try:
        await client.ready()
        # While the connection stands, nothing is resolved; nothing else is dialled either.
        assert names.asked == ["crm.example.org"]
        client.forget()
        with pytest.raises(Away) as caught:
            await client.ready()
        assert "::1" in caught.value.detail
        assert caught.value.message == NOT_THERE
        assert names.asked == ["crm.example.org"] * 2
    finally:
        await client.close()
    assert crm.calls == ["Schema", "Auth"]


async def test_an_address_is_dialled_as_it_was_checked(crm: Any) -> None:
    """The second answer, were it asked for, would lead to nobody."""
    port = crm.target.rpartition(":")[2]
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    client = calling(f"crm.example.org:{port}", names)
    try:
        await client.ready()
    finally:
        await client.close()
    assert names.asked == ["crm.example.org"]
    assert crm.calls == ["Schema", "Auth"]


async def test_a_new_address_is_found_when_the_old_one_is_gone(crm: Any) -> None:
    port = crm.target.rpartition(":")[2]
    client = calling(f"crm.example.org:{port}", Names(["127.0.0.2"], ["127.0.0.1"]))
    try:
        with pytest.raises(Away):
            await client.ready()
        client.forget()
        assert (await client.schema()).program == "test/1"
    finally:
        await client.close()


async def test_an_address_that_is_no_longer_allowed_is_left(
    start: Any, hub_url: str, crm: Any, tenant: str
) -> None:
    async with start(hub_url) as client:
        await client(tenant).register("crm-main", crm.target)
    crm.calls.clear()
    async with start(hub_url, adapter_targets="public:*") as client:
        olga = client(tenant)
        await olga.publish(("invoice_paid", "a", {}))

        async def told() -> bool:
            return bool((await olga.adapter("crm-main")).last_error == NOT_THERE)

        await eventually(told, timeout=30)
    assert crm.calls == []


async def test_a_silent_target_holds_nobody_up(
    start: Any, hub_url: str, crm: Any, tenant: str
) -> None:
    callers: list[Any] = []
    async with (
        start(hub_url, max_registrations=2) as client,
        listening(None, callers) as silent,
        listening(None, callers) as silent_too,
    ):
        slow = client(f"{tenant}-slow")
        waiting = [
            asyncio.create_task(refusal(slow.register(f"a-{number}", target)))
            for number, target in enumerate((silent, silent_too))
        ]

        async def are_there() -> bool:
            return len(callers) == 2

        await eventually(are_there)
        code, text = await refusal(slow.register("a-9", silent))
        assert (code, text) == ("RESOURCE_EXHAUSTED", "a tenant may have 2 registrations under way")
        await client(tenant).register("crm-main", crm.target)
        assert not any(task.done() for task in waiting)
        assert set(await asyncio.gather(*waiting)) == {("FAILED_PRECONDITION", REFUSAL)}


async def test_two_at_once_with_one_id(
    start: Any, database_url: str, crm: Any, tenant: str
) -> None:
    async with start(database_url) as client:
        olga = client(tenant)
        ends = await asyncio.gather(
            *(olga.register("crm-main", crm.target) for _ in range(4)), return_exceptions=True
        )
        codes = [each.code().name for each in ends if isinstance(each, grpc.aio.AioRpcError)]
        assert codes == ["ALREADY_EXISTS"] * 3
        assert (await olga.adapter("crm-main")).version == 1


async def test_a_tenant_has_so_many_adapters(
    start: Any, hub_url: str, crm: Any, tenant: str
) -> None:
    async with start(hub_url, max_adapters=2) as client:
        olga = client(tenant)
        for name in ("a", "b"):
            await olga.register(name, crm.target)
        code, text = await refusal(olga.register("c", crm.target))
        assert (code, text) == ("RESOURCE_EXHAUSTED", "a tenant may have 2 adapters")
        await client(f"{tenant}-other").register("c", crm.target)
        await olga.remove("a")
        # At the same time: one of them.
        ends = await asyncio.gather(
            *(olga.register(name, crm.target) for name in ("c", "d", "e")), return_exceptions=True
        )
        assert sum(not isinstance(end, BaseException) for end in ends) == 1


async def test_names_that_are_slow_to_resolve_hold_up_nothing_else() -> None:
    answered = threading.Event()

    def resolve(_host: str) -> Sequence[str]:
        answered.wait(30)
        return ()

    adapters = [calling("slow.example.org:443", resolve) for _ in range(40)]
    asking = [asyncio.create_task(adapter.schema()) for adapter in adapters]
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(20):
            assert await asyncio.to_thread(lambda: 7) == 7
    finally:
        answered.set()
    for outcome in await asyncio.gather(*asking, return_exceptions=True):
        assert isinstance(outcome, Away)


async def test_a_tenant_has_so_many_streams(start: Any, hub_url: str, tenant: str) -> None:
    async with start(hub_url, max_subscriptions=2) as client:
        olga = client(tenant)
        async with olga.subscribe(), olga.subscribe():
            code, _ = await refusal(olga.subscribe().__aenter__())
            assert code == "RESOURCE_EXHAUSTED"
            async with client(f"{tenant}-other").subscribe():
                pass

        async def is_free() -> bool:
            try:
                async with olga.subscribe():
                    return True
            except grpc.aio.AioRpcError:
                return False

        await eventually(is_free)


async def test_an_answer_that_is_too_large_is_no_size_of_the_events(crm: Any) -> None:
    """Else it would be a dead letter for its size at the first try."""
    crm.answer = lambda _item: {"outcome": 1, "detail": "x" * (5 << 20)}
    client = calling(crm.target, Names(["127.0.0.1"]))
    with pytest.raises(Faulty, match="RESOURCE_EXHAUSTED"):
        await client.deliver([outgoing()])
    await client.close()
