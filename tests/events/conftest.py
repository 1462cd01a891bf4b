"""A running event hub, and adapters that are told what to answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from deskwire.adapters.v1 import (
    system_adapter_service_pb2,
    system_adapter_service_pb2_grpc,
)
from deskwire.events.v1 import (
    adapter_pb2,
    adapter_registry_service_pb2,
    adapter_registry_service_pb2_grpc,
    event_hub_service_pb2,
    event_hub_service_pb2_grpc,
)
from deskwire_common import events, rpc
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.clock import SystemClock, to_micros
from deskwire_common.events import DomainEvent
from deskwire_common.ids import RandomIds
from deskwire_common.kafka import Producer
from deskwire_common.lifecycle import running
from deskwire_common.migrations import migrate
from deskwire_common.topics import Topic
from deskwire_events.app import build
from deskwire_events.config import Settings

IDS = RandomIds()
hub_pb: Any = event_hub_service_pb2
registry_pb: Any = adapter_registry_service_pb2
adapters_pb: Any = system_adapter_service_pb2


@dataclass
class Caller:
    """Somebody with a token: the hub's two stubs, and short ways to call them."""

    hub: Any
    registry: Any

    async def publish(self, *events: tuple[str, str, dict[str, Any]], request_id: str = "") -> Any:
        """Publish (event_type, subject, data) …; the event ids."""
        items = []
        for event_type, subject, data in events:
            struct = Struct()
            struct.update(data)
            items.append(hub_pb.ExternalEvent(event_type=event_type, subject=subject, data=struct))
        request = hub_pb.PublishRequest(request_id=request_id or IDS.uuid7(), events=items)
        return list((await self.hub.Publish(request)).event_ids)

    def subscribe(self, **start: Any) -> Stream:
        """A stream from a start."""
        return Stream(self.hub, hub_pb.SubscribeStart(**start))

    async def register(self, adapter_id: str, target: str, **fields: Any) -> Any:
        """Register an adapter."""
        adapter = adapter_pb2.Adapter(
            adapter_id=adapter_id,
            target=target,
            system_id=fields.pop("system_id", "crm:main"),
            **fields,
        )
        request = registry_pb.RegisterAdapterRequest(request_id=IDS.uuid7(), adapter=adapter)
        return (await self.registry.RegisterAdapter(request)).adapter

    async def update(self, adapter_id: str, target: str, **fields: Any) -> Any:
        """Change an adapter."""
        version = fields.pop("expected_version", 0)
        adapter = adapter_pb2.Adapter(
            adapter_id=adapter_id,
            target=target,
            system_id=fields.pop("system_id", "crm:main"),
            **fields,
        )
        request = registry_pb.UpdateAdapterRequest(
            request_id=IDS.uuid7(), adapter=adapter, expected_version=version
        )
        return (await self.registry.UpdateAdapter(request)).adapter

    async def remove(self, adapter_id: str) -> Any:
        """Remove an adapter."""
        request = registry_pb.RemoveAdapterRequest(request_id=IDS.uuid7(), adapter_id=adapter_id)
        return (await self.registry.RemoveAdapter(request)).adapter

    async def adapter(self, adapter_id: str) -> Any:
        """An adapter as of now."""
        request = registry_pb.GetAdapterRequest(adapter_id=adapter_id)
        return (await self.registry.GetAdapter(request)).adapter

    async def deliveries(self, adapter_id: str, **fields: Any) -> Any:
        """How deliveries ended, newest first."""
        request = registry_pb.ListDeliveriesRequest(adapter_id=adapter_id, **fields)
        return list((await self.registry.ListDeliveries(request)).deliveries)


class Stream:
    """A Subscribe stream; `events` and `cursor` are what came."""

    def __init__(self, hub: Any, start: Any) -> None:
        self.call = hub.Subscribe()
        self._start = start
        self.events: list[Any] = []
        self.cursor = ""

    async def __aenter__(self) -> Self:
        await self.call.write(hub_pb.SubscribeRequest(start=self._start))
        await self.next()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()

    async def next(self) -> Any:
        """The next answer."""
        response = await self.call.read()
        if response is grpc.aio.EOF:
            # Raises the status the stream ended with.
            await self.call
            raise AssertionError("the stream ended")
        self.events.extend(response.events)
        self.cursor = response.cursor
        return response

    async def take(self, count: int, timeout: float = 15.0) -> list[Any]:
        """Read on until `count` events came."""
        async with asyncio.timeout(timeout):
            while len(self.events) < count:
                await self.next()
        return self.events

    async def credit(self, events: int) -> None:
        """Allow more events."""
        credit = hub_pb.SubscribeCredit(events=events)
        await self.call.write(hub_pb.SubscribeRequest(credit=credit))


@dataclass
class Client:
    """Calls the hub as somebody."""

    target: str
    signer: TokenSigner
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def __call__(
        self,
        tenant: str,
        *,
        role: Role = Role.OPERATOR,
        subject: str = "olga",
        system: str = "",
        ttl: float = 3600.0,
    ) -> Caller:
        token = self.signer.mint(tenant=tenant, role=role, subject=subject, system=system, ttl=ttl)
        channel = rpc.make_channel(self.target, token=lambda: token)
        bare = rpc.make_channel(self.target, bare=True)
        self.channels += [channel, bare]
        hub = event_hub_service_pb2_grpc.EventHubServiceStub(channel)
        registry = adapter_registry_service_pb2_grpc.AdapterRegistryServiceStub(channel)
        streams = event_hub_service_pb2_grpc.EventHubServiceStub(bare)

        class Hub:
            Publish = hub.Publish
            CreateSubscription = hub.CreateSubscription
            GetSubscription = hub.GetSubscription
            ListSubscriptions = hub.ListSubscriptions
            UpdateSubscription = hub.UpdateSubscription
            PauseSubscription = hub.PauseSubscription
            ResumeSubscription = hub.ResumeSubscription
            SeekSubscription = hub.SeekSubscription
            RotateWebhookSecret = hub.RotateWebhookSecret
            CheckWebhook = hub.CheckWebhook
            DeleteSubscription = hub.DeleteSubscription
            ListDeadLetters = hub.ListDeadLetters
            RedriveDeadLetters = hub.RedriveDeadLetters
            PurgeDeadLetters = hub.PurgeDeadLetters
            ListEventTypes = hub.ListEventTypes

            @staticmethod
            def Subscribe() -> Any:  # noqa: N802
                return streams.Subscribe(metadata=rpc.stream_metadata(token))

        return Caller(Hub, registry)


Start = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def start(kafka: str, keys_file: Path, signer: TokenSigner) -> Start:
    """`async with start(database_url) as client`: the hub, on a migrated database."""

    @asynccontextmanager
    async def started(database_url: str, **more: Any) -> AsyncIterator[Client]:
        await migrate(database_url, "deskwire_events")
        values: dict[str, Any] = {
            "grpc_listen": "127.0.0.1:0",
            "keys_file": keys_file,
            "database_url": database_url,
            "kafka": kafka,
            "adapter_targets": "127.0.0.0/8:*",
            # A busy machine doesn't take slots away.
            "lease_seconds": 20.0,
        }
        async with running("events", Settings(**{**values, **more}), build) as runtime:
            client = Client(f"127.0.0.1:{runtime.port}", signer)
            yield client
            for channel in client.channels:
                await channel.close()

    return started


@pytest.fixture
def hub_url(tmp_path: Path) -> str:
    """A SQLite database for the hub."""
    return f"sqlite:///{tmp_path / 'events.db'}"


@pytest.fixture
async def client(start: Start, hub_url: str) -> AsyncIterator[Client]:
    """The hub on SQLite."""
    async with start(hub_url) as client:
        yield client


Produce = Callable[..., Awaitable[DomainEvent]]


@pytest.fixture
async def produce(kafka: str) -> AsyncIterator[Produce]:
    """`await produce(topic, event_type, data, tenant)`: an event as another service publishes it."""
    producer = Producer(kafka, "test")
    await producer.start()

    async def produced(
        topic: Topic, event_type: str, data: Any, tenant: str, **fields: Any
    ) -> DomainEvent:
        event = DomainEvent(
            **{
                "event_id": IDS.uuid7(),
                "event_type": event_type,
                "tenant_id": tenant,
                "subject": "a",
                "sequence": 1,
                "occurred_at": to_micros(SystemClock().now()),
                "trace_id": "0af7651916cd43dd8448eb211c80319c",
                "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                "actor": events.system_actor(),
                "origin": "deskwire",
                "correlation_id": "",
                "data": data,
                "topic": topic,
                **fields,
            }
        )
        value, headers = events.encode(event), events.headers(event)
        await producer.send_batch([(topic.name, event.subject.encode(), value, headers)])
        return event

    yield produced
    await producer.close()


@pytest.fixture
def tenant() -> str:
    """A tenant of this test alone, since all tests share one Kafka."""
    return f"t-{IDS.uuid7()}"


class Adapter(system_adapter_service_pb2_grpc.SystemAdapterServiceServicer):
    """A system. `answer` decides on each item; `got` are the items that came, `pushes` the calls."""

    def __init__(self) -> None:
        self.target = ""
        self.event_types: list[str] = []
        self.max_batch = 0
        self.password = ""
        self.answer: Callable[[Any], Any] = lambda _item: adapter_pb2.PUSH_OUTCOME_DELIVERED
        self.calls: list[str] = []
        self.got: list[Any] = []
        self.pushes: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.sessions = 0
        self.server: grpc.aio.Server | None = None

    async def Schema(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        self.calls.append("Schema")
        return adapters_pb.SchemaResponse(
            adapter="test/1", event_types=self.event_types, max_batch=self.max_batch
        )

    async def Auth(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls.append("Auth")
        if self.password and request.credentials["password"] != self.password:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong password")
        self.sessions += 1
        return adapters_pb.AuthResponse(session=f"s{self.sessions}")

    async def Push(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls.append("Push")
        self.pushes.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        results = []
        for item in request.items:
            self.got.append(item)
            answer = self.answer(item)
            if not isinstance(answer, dict):
                answer = {"outcome": answer}
            results.append(adapters_pb.PushResult(event_id=item.event.event_id, **answer))
        return adapters_pb.PushResponse(results=results)

    @property
    def ids(self) -> list[str]:
        """The ids of the events that came, in order."""
        return [item.event.event_id for item in self.got]

    async def serve(self, port: int = 0, options: Sequence[tuple[str, int]] = ()) -> None:
        """Start, also again on the same port."""
        self.server = grpc.aio.server(options=(("grpc.so_reuseport", 0), *options))
        system_adapter_service_pb2_grpc.add_SystemAdapterServiceServicer_to_server(
            self, self.server
        )
        port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.target = f"127.0.0.1:{port}"
        await self.server.start()

    async def stop(self) -> None:
        """Be away."""
        if self.server is not None:
            await self.server.stop(0)
            self.server = None


@pytest.fixture
async def crm() -> AsyncIterator[Adapter]:
    """A system that takes everything."""
    adapter = Adapter()
    await adapter.serve()
    yield adapter
    await adapter.stop()
