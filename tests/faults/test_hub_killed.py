"""Hubs are killed in turn under load: nothing is lost or invented, and first times are in order per subject."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from deskwire.adapters.v1 import system_adapter_service_pb2 as adapters_pb
from deskwire.adapters.v1 import system_adapter_service_pb2_grpc
from deskwire.events.v1 import (
    adapter_pb2,
    adapter_registry_service_pb2,
    adapter_registry_service_pb2_grpc,
    event_hub_service_pb2,
    event_hub_service_pb2_grpc,
)
from deskwire_cli.launch.probes import serving
from deskwire_common import rpc
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.ids import RandomIds
from deskwire_common.migrations import migrate
from support import eventually
from support.ports import free_port

IDS = RandomIds()
SUBJECTS = 12
hub_pb: Any = event_hub_service_pb2


@dataclass
class History:
    """What one reader got, in order: (subject, sequence, event id)."""

    got: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, event: Any) -> None:
        self.got.append((event.subject, event.sequence, event.event_id))

    @property
    def ids(self) -> set[str]:
        return {each[2] for each in self.got}

    def check(self, published: dict[str, tuple[str, int]]) -> None:
        """Complete, nothing invented, one event per (subject, sequence), and the first times in order."""
        assert self.ids == set(published)
        firsts: dict[str, list[int]] = defaultdict(list)
        known: dict[tuple[str, int], str] = {}
        for subject, sequence, event_id in self.got:
            assert known.setdefault((subject, sequence), event_id) == event_id
            if sequence not in firsts[subject]:
                firsts[subject].append(sequence)
        for sequences in firsts.values():
            assert sequences == sorted(sequences)


class System(system_adapter_service_pb2_grpc.SystemAdapterServiceServicer):
    """A system that is sometimes busy, and takes everything in the end."""

    def __init__(self) -> None:
        self.history = History()
        self._calls = 0

    async def Schema(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        return adapters_pb.SchemaResponse(adapter="test/1")

    async def Auth(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        return adapters_pb.AuthResponse(session="s")

    async def Push(self, request: Any, _context: Any) -> Any:  # noqa: N802
        results = []
        for item in request.items:
            self._calls += 1
            busy = self._calls % 17 == 0
            if not busy:
                self.history.add(item.event)
            outcome = adapter_pb2.PUSH_OUTCOME_RETRY if busy else adapter_pb2.PUSH_OUTCOME_DELIVERED
            results.append(adapters_pb.PushResult(event_id=item.event.event_id, outcome=outcome))
        return adapters_pb.PushResponse(results=results)


@dataclass
class Hub:
    """A hub as a process of its own, which comes back under its name."""

    port: int
    environment: dict[str, str]
    process: Process | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deskwire_events", "serve"),
            env=self.environment,
            stdout=DEVNULL,
            stderr=DEVNULL,
        )

        async def serves() -> bool:
            problem = await asyncio.to_thread(serving(f"127.0.0.1:{self.port}"))
            assert not problem
            return True

        await eventually(serves, timeout=60, interval=0.2)

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()


@dataclass
class Clients:
    """Everybody who calls the hubs: each call goes to any, and on to the other one when it doesn't answer."""

    ports: list[int]
    token: str

    @asynccontextmanager
    async def channel(self, number: int) -> AsyncIterator[grpc.aio.Channel]:
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{self.ports[number % len(self.ports)]}",
            options=[("grpc.use_local_subchannel_pool", 1)],
        ) as channel:
            yield channel

    async def call(self, stub: Any, name: str, request: Any) -> Any:
        """A unary call with a request id, repeated until it is answered."""
        for number in range(1_000):
            try:
                async with self.channel(number) as channel:
                    method = getattr(stub(channel), name)
                    return await method(
                        request, timeout=10, metadata=rpc.stream_metadata(self.token)
                    )
            except grpc.aio.AioRpcError as error:
                if error.code() not in {
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                }:
                    raise
                await asyncio.sleep(0.05)
        raise AssertionError("no hub answers")

    async def read(self, history: History) -> None:
        """Read the named subscription for ever, through whichever hub answers, and acknowledge all."""
        number = 0
        while True:
            number += 1
            try:
                async with self.channel(number) as channel:
                    call = event_hub_service_pb2_grpc.EventHubServiceStub(channel).Subscribe(
                        metadata=rpc.stream_metadata(self.token)
                    )
                    start = hub_pb.SubscribeStart(subscription_id="reader")
                    await call.write(hub_pb.SubscribeRequest(start=start))
                    while (answer := await call.read()) is not grpc.aio.EOF:
                        for each in answer.events:
                            history.add(each.event)
                        if answer.events:
                            done = hub_pb.SubscribeAck(
                                deliveries=[each.delivery for each in answer.events]
                            )
                            await call.write(hub_pb.SubscribeRequest(ack=done))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass
            await asyncio.sleep(0.1)


async def test_two_hubs_are_killed_in_turn_under_load(
    rounds: int, postgres: Any, kafka: str, keys_file: Path, signer: TokenSigner
) -> None:
    url = postgres.fresh()
    await migrate(url, "deskwire_events")
    tenant = f"t-{IDS.uuid7()}"
    ports = [free_port(), free_port()]
    hubs = [
        Hub(
            port,
            {
                **os.environ,
                "DESKWIRE_GRPC_LISTEN": f"127.0.0.1:{port}",
                "DESKWIRE_KEYS_FILE": str(keys_file),
                "DESKWIRE_DATABASE_URL": url,
                "DESKWIRE_KAFKA": kafka,
                "DESKWIRE_ADAPTER_TARGETS": "127.0.0.0/8:*",
            },
        )
        for port in ports
    ]
    clients = Clients(ports, signer.mint(tenant=tenant, role=Role.OPERATOR, subject="olga"))
    system, reader = System(), History()
    published: dict[str, tuple[str, int]] = {}
    async with AsyncExitStack() as stack:
        server = grpc.aio.server()
        system_adapter_service_pb2_grpc.add_SystemAdapterServiceServicer_to_server(system, server)
        target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        stack.push_async_callback(server.stop, 0)
        for hub in hubs:
            stack.push_async_callback(hub.kill)
            await hub.start()
        registry = adapter_registry_service_pb2_grpc.AdapterRegistryServiceStub
        events = event_hub_service_pb2_grpc.EventHubServiceStub
        adapter = adapter_pb2.Adapter(
            adapter_id="crm", system_id="crm:main", target=target, event_types=["order_paid"]
        )
        await clients.call(
            registry,
            "RegisterAdapter",
            adapter_registry_service_pb2.RegisterAdapterRequest(request_id="a", adapter=adapter),
        )
        wanted = {"subscription_id": "reader", "filter": {"event_types": ["order_paid"]}}
        await clients.call(
            events,
            "CreateSubscription",
            hub_pb.CreateSubscriptionRequest(request_id="s", subscription=wanted),
        )
        stopping = asyncio.Event()

        async def publish(number: int) -> None:
            count = 0
            while not stopping.is_set():
                count += 1
                event = hub_pb.ExternalEvent(event_type="order_paid", subject=f"s-{number}")
                request = hub_pb.PublishRequest(
                    request_id=f"{number}-{count}", events=[event, event]
                )
                answer = await clients.call(events, "Publish", request)
                for event_id in answer.event_ids:
                    published[event_id] = (f"s-{number}", count)
                await asyncio.sleep(0.05)

        publishing = [asyncio.create_task(publish(number)) for number in range(SUBJECTS)]
        reading = asyncio.create_task(clients.read(reader))
        stack.callback(reading.cancel)
        for number in range(rounds):
            victim = hubs[number % len(hubs)]
            before = len(system.history.got), len(reader.got)
            await victim.kill()
            # The other one takes over what it had.
            seen = set(published)
            await eventually(lambda s=seen: s <= system.history.ids & reader.ids, timeout=90)
            assert (len(system.history.got), len(reader.got)) >= before
            await victim.start()
        stopping.set()
        await asyncio.gather(*publishing)
        await eventually(lambda: set(published) <= system.history.ids & reader.ids, timeout=90)
        system.history.check(published)
        reader.check(published)
    postgres.drop(url)
