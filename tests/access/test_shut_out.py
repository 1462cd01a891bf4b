"""Tickets, the hub and change capture shut out whom chat has disabled, with what they have open."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from deskwire.cdc.v1 import source_service_pb2, source_service_pb2_grpc
from deskwire.chat.v1 import agent_service_pb2 as agents_pb
from deskwire.chat.v1 import tenant_service_pb2 as tenants_pb
from deskwire.events.v1 import (
    access_events_pb2,
    chat_events_pb2,
    event_hub_service_pb2,
    event_hub_service_pb2_grpc,
)
from deskwire.tickets.v1 import ticket_service_pb2, ticket_service_pb2_grpc
from deskwire_common import events, shutout
from deskwire_common.auth import ANY_TENANT, Principal, Role, TokenSigner, acting_as
from deskwire_common.clock import SystemClock
from deskwire_common.db import Database
from deskwire_common.errors import from_rpc_error
from deskwire_common.ids import RandomIds
from deskwire_common.kafka import Producer
from deskwire_common.lifecycle import running
from deskwire_common.migrations import migrate
from deskwire_common.rpc import make_channel
from deskwire_common.shutout import ShutOut
from support import eventually
from support.access import Access
from support.refusals import refusal
from support.servers import development_broker
from support.suite import new_id

TENANT_DISABLED = ("PERMISSION_DENIED", "TENANT_DISABLED")
AGENT_DISABLED = ("PERMISSION_DENIED", "AGENT_DISABLED")
OF_TENANTS = (access_events_pb2.TenantEnabled, access_events_pb2.TenantDisabled)
OF_AGENTS = (chat_events_pb2.AgentEnabled, chat_events_pb2.AgentDisabled)


@dataclass
class Others:
    """The three services beside chat."""

    signer: TokenSigner
    stack: AsyncExitStack
    ports: dict[str, int] = field(default_factory=dict)

    def channel(self, service: str, tenant: str, role: Role, subject: str) -> Any:
        token = self.signer.mint(tenant=tenant, role=role, subject=subject)
        channel = make_channel(f"127.0.0.1:{self.ports[service]}", token=lambda: token)
        self.stack.push_async_callback(channel.close)
        return channel

    def subscribe(self, tenant: str, role: Role, subject: str) -> Any:
        async def start() -> AsyncIterator[event_hub_service_pb2.SubscribeRequest]:
            yield event_hub_service_pb2.SubscribeRequest(start={})

        token = self.signer.mint(tenant=tenant, role=role, subject=subject)
        hub = event_hub_service_pb2_grpc.EventHubServiceStub(
            self.channel("events", tenant, role, subject)
        )
        return hub.Subscribe(start(), metadata=(("authorization", f"Bearer {token}"),))

    def calls(self, tenant: str, subject: str = "alice") -> list[Callable[[], Awaitable[Any]]]:
        """One call of each service; change capture takes no agent."""
        tickets = ticket_service_pb2_grpc.TicketServiceStub(
            self.channel("tickets", tenant, Role.AGENT, subject)
        )
        hub = event_hub_service_pb2_grpc.EventHubServiceStub(
            self.channel("events", tenant, Role.AGENT, subject)
        )
        sources = source_service_pb2_grpc.SourceServiceStub(
            self.channel("cdc", tenant, Role.OPERATOR, "olga")
        )
        return [
            lambda: tickets.ListTickets(ticket_service_pb2.ListTicketsRequest()),
            lambda: hub.ListEventTypes(event_hub_service_pb2.ListEventTypesRequest()),
            lambda: sources.ListSources(source_service_pb2.ListSourcesRequest()),
        ]


@pytest.fixture
async def others(
    kafka: str, keys_file: Path, signer: TokenSigner, tmp_path: Path
) -> AsyncIterator[Others]:
    async with AsyncExitStack() as stack:
        found = Others(signer, stack)
        for name in ("tickets", "events", "cdc"):
            url = f"sqlite:///{tmp_path / f'{name}.db'}"
            await migrate(url, f"deskwire_{name}")
            settings = importlib.import_module(f"deskwire_{name}.config").Settings(
                grpc_listen="127.0.0.1:0", keys_file=keys_file, database_url=url, kafka=kafka
            )
            build = importlib.import_module(f"deskwire_{name}.app").build
            runtime = await stack.enter_async_context(running(name, settings, build))
            found.ports[name] = runtime.port
        yield found


def refused(error: grpc.aio.AioRpcError) -> tuple[str, str]:
    found = from_rpc_error(error)
    return found.code.name, found.reason_name


async def end_of(stream: Any) -> tuple[str, str]:
    async def read_on() -> None:
        while await stream.read():
            pass

    return await refusal(read_on())


async def test_a_disabled_tenant_is_shut_out_of_all_services(
    access: Access, others: Others
) -> None:
    tenant = access.desk.tenant
    ours, theirs = others.calls(tenant), others.calls(f"{tenant}-other")
    for call in (*ours, *theirs):
        await call()
    stream, other = (
        others.subscribe(each, Role.AGENT, "alice") for each in (tenant, f"{tenant}-other")
    )
    assert await stream.read()
    assert await other.read()
    tenants = access.tenants()
    create = tenants_pb.CreateTenantRequest(request_id=new_id(), tenant_id=tenant)
    await tenants.CreateTenant(create)
    await tenants.DisableTenant(
        tenants_pb.DisableTenantRequest(request_id=new_id(), tenant_id=tenant)
    )

    assert await end_of(stream) == TENANT_DISABLED
    for call in ours:

        async def shut_out(call: Callable[[], Awaitable[Any]] = call) -> bool:
            try:
                await call()
            except grpc.aio.AioRpcError as error:
                return refused(error) == TENANT_DISABLED
            return False

        await eventually(shut_out)
    for call in theirs:
        await call()
    assert not other.done()

    enable = tenants_pb.EnableTenantRequest(request_id=new_id(), tenant_id=tenant)
    await tenants.EnableTenant(enable)
    for call in ours:

        async def let_in(call: Callable[[], Awaitable[Any]] = call) -> bool:
            try:
                await call()
            except grpc.aio.AioRpcError as error:
                if refused(error) != TENANT_DISABLED:
                    raise
                return False
            return True

        await eventually(let_in)


async def test_a_disabled_agent_is_shut_out_and_nobody_else_of_the_id(
    access: Access, others: Others
) -> None:
    tenant = access.desk.tenant
    operator = access.agents()
    await operator.CreateAgent(
        agents_pb.CreateAgentRequest(request_id=new_id(), agent_id="alice", display_name="Alice")
    )
    stream = others.subscribe(tenant, Role.AGENT, "alice")
    assert await stream.read()
    await operator.DisableAgent(
        agents_pb.DisableAgentRequest(request_id=new_id(), agent_id="alice")
    )
    assert await end_of(stream) == AGENT_DISABLED
    assert await refusal(others.calls(tenant)[1]()) == AGENT_DISABLED
    for call in others.calls(tenant, "bob"):
        await call()
    assert await others.subscribe(tenant, Role.OPERATOR, "alice").read()


# ----------------------------------------------------------------------------- what a service remembers


async def told(kafka: str, *facts: tuple[str, int, bool], to: str = "") -> None:
    """Publish (tenant or tenant/agent, sequence, whether it was disabled or enabled)."""
    records = []
    with acting_as(Principal(ANY_TENANT, Role.OPERATOR, "root")):
        for subject, sequence, disabled in facts:
            tenant, _, agent = subject.partition("/")
            kinds = OF_AGENTS if agent else OF_TENANTS
            event = events.new_event(
                kinds[disabled](),
                subject=subject,
                sequence=sequence,
                ids=RandomIds(),
                clock=SystemClock(),
                tenant_id=tenant,
            )
            value, headers = events.encode(event), events.headers(event)
            records.append((to or event.target.name, subject.encode(), value, headers))
    producer = Producer(kafka, "told")
    await producer.start()
    await producer.send_batch(records)
    await producer.close()


def is_out(shut_out: ShutOut, tenant: str, agent: str = "alice") -> bool:
    return shut_out.admission.refusal(tenant, agent, agent=True) is not None


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url, "deskwire_tickets")
    database = await Database.open(database_url)
    yield database
    await database.close()


async def test_it_is_complete_from_the_start_and_remembered(db: Database, kafka: str) -> None:
    gone, back = new_id(), new_id()
    await told(kafka, (gone, 2, True), (back, 2, True), (back, 3, False))
    first = ShutOut(db, kafka)
    await first.start()
    assert (is_out(first, gone), is_out(first, back)) == (True, False)
    await first.close()

    # What came while nobody read, the last of it for the second time.
    await told(kafka, (back, 4, True), (gone, 3, False), (gone, 2, True))
    second = ShutOut(db, kafka)
    await second.start()
    assert (is_out(second, gone), is_out(second, back)) == (False, True)
    await second.close()


async def test_it_follows_topics_that_chat_is_yet_to_make(
    db: Database, kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = [replace(each, name=f"{each.name}.{new_id()}") for each in shutout._TOPICS]
    monkeypatch.setattr(shutout, "_TOPICS", new)
    decode = events.decode
    monkeypatch.setattr(
        events, "decode", lambda topic, *rest: decode(topic.rpartition(".")[0], *rest)
    )
    shut_out = ShutOut(db, kafka)
    await shut_out.start()
    following = asyncio.create_task(shut_out.run())
    gone = new_id()
    await told(kafka, (gone, 2, True), to=new[0].name)
    await eventually(lambda: is_out(shut_out, gone))
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await shut_out.close()


async def test_agents_of_every_name_are_remembered(db: Database, kafka: str) -> None:
    tenant, long = new_id(), "auth0|" + "x/" * 124 + "y"
    await told(kafka, (f"{tenant}/{long}", 2, True), (f"{tenant}/bob", 2, True))
    first = ShutOut(db, kafka)
    await first.start()
    await first.close()
    await told(kafka, (f"{tenant}/bob", 3, False))
    second = ShutOut(db, kafka)
    await second.start()
    assert [is_out(second, tenant, each) for each in (long, "bob", "alice")] == [True, False, False]
    await second.close()


async def test_it_outlasts_kafka(db: Database, kafka: str, tmp_path: Path) -> None:
    gone = new_id()
    with development_broker(tmp_path) as broker:
        await told(broker, (gone, 2, True))
        shut_out = ShutOut(db, broker)
        await shut_out.start()
        following = asyncio.create_task(shut_out.run())
    # The broker is away, with all that it had.
    assert is_out(shut_out, gone)
    assert not is_out(shut_out, "another")
    assert not following.done()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await shut_out.close()
    # Another cluster, which knows nothing of it.
    after = ShutOut(db, kafka)
    await after.start()
    assert is_out(after, gone)
    await after.close()
