"""One row per RPC: what the rows say is what is served, and rows that don't fit the contract refuse to start."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from deskwire.events.v1 import event_hub_service_pb2 as hub
from deskwire.events.v1.event_hub_service_pb2_grpc import EventHubServiceServicer as Hub
from deskwire.gateway.v1 import frame_pb2
from deskwire.gateway.v1 import gateway_service_pb2 as gateway
from deskwire.gateway.v1.gateway_service_pb2_grpc import GatewayServiceServicer as Gateway
from deskwire.shard.v1 import shard_service_pb2 as shard
from deskwire.shard.v1.shard_service_pb2_grpc import ShardServiceServicer as Shards
from deskwire_common.auth import Role
from deskwire_common.rpc.table import Context, Forward, Rpc, Service, Table, stream, unary

HUB, GATEWAY = "deskwire.events.v1.EventHubService", "deskwire.gateway.v1.GatewayService"
SHARDS = "deskwire.shard.v1.ShardService"
READERS = frozenset({Role.OPERATOR})


class Publishing:
    """Two use cases that are looked at, and one for all others of the service."""

    async def publish(self, request: hub.PublishRequest) -> hub.PublishResponse:
        return hub.PublishResponse(event_ids=[request.request_id])

    async def list(self, _request: hub.ListEventTypesRequest) -> hub.ListEventTypesResponse:
        return hub.ListEventTypesResponse()

    async def other(self, _request: Any) -> Any:
        """Any other method of the contract's service."""
        raise NotImplementedError


class Subscribing:
    """A stream that says when it is closed."""

    def __init__(self) -> None:
        self.closed = False

    async def subscribe(
        self, requests: AsyncIterator[hub.SubscribeRequest], _context: Context
    ) -> AsyncGenerator[hub.SubscribeResponse]:
        try:
            async for _ in requests:
                yield hub.SubscribeResponse()
        finally:
            self.closed = True


class Bytes:
    """Streams that are bytes."""

    async def connect(
        self, requests: AsyncIterator[bytes], _context: Context
    ) -> AsyncIterator[bytes]:
        async for data in requests:
            yield data + data

    async def link(
        self, requests: AsyncIterator[shard.LinkRequest], _context: Context
    ) -> AsyncIterator[bytes]:
        async for request in requests:
            item = shard.LinkDownItem(send_id=len(request.items))
            yield shard.LinkResponse(items=[item]).SerializeToString()

    async def sessions(self, _request: gateway.ListSessionsRequest) -> gateway.ListSessionsResponse:
        return gateway.ListSessionsResponse(next_page_token="more")


def rows(**publish: Any) -> list[Rpc]:
    return [
        unary(Hub.Publish).by(Publishing.publish, {Role.INTEGRATION}, **publish),
        unary(Hub.ListEventTypes).by(Publishing.list, READERS, public=True),
        stream(Hub.Subscribe).by(Subscribing.subscribe, READERS),
    ]


def others() -> list[Rpc]:
    """The rows of the service's other methods."""
    methods = hub.DESCRIPTOR.services_by_name["EventHubService"].methods
    names = {method.name for method in methods} - {"Publish", "ListEventTypes", "Subscribe"}
    return [unary(getattr(Hub, name)).by(Publishing.other, READERS) for name in sorted(names)]


@asynccontextmanager
async def served(
    table: Table, *owners: object, forward: Forward | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    table.register(server, owners, forward)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


async def test_rows_are_served_by_the_objects_of_their_functions() -> None:
    subscribing = Subscribing()
    async with served(
        Table(Service(HUB, *rows(), *others())), subscribing, Publishing()
    ) as channel:
        publish = channel.unary_unary(
            f"/{HUB}/Publish",
            request_serializer=hub.PublishRequest.SerializeToString,
            response_deserializer=hub.PublishResponse.FromString,
        )
        assert (await publish(hub.PublishRequest(request_id="r"))).event_ids == ["r"]
        subscribe: Any = channel.stream_stream(
            f"/{HUB}/Subscribe",
            request_serializer=hub.SubscribeRequest.SerializeToString,
            response_deserializer=hub.SubscribeResponse.FromString,
        )
        requests = iter([hub.SubscribeRequest(), hub.SubscribeRequest()])
        assert len([each async for each in subscribe(requests)]) == 2
        assert subscribing.closed


async def test_streams_of_bytes_stay_bytes() -> None:
    table = Table(
        Service(
            GATEWAY,
            stream(Gateway.Connect).by_bytes(Bytes.connect, READERS, request_bytes=1024),
            unary(Gateway.ListSessions).by(Bytes.sessions, READERS),
        ),
        Service(SHARDS, stream(Shards.Link).by_encoded(Bytes.link, READERS, request_bytes=1024)),
    )
    assert table.inline == {f"/{GATEWAY}/Connect", f"/{SHARDS}/Link"}
    async with served(table, Bytes()) as channel:
        connect: Any = channel.stream_stream(f"/{GATEWAY}/Connect")
        batch = frame_pb2.Batch(number=7).SerializeToString()
        assert [each async for each in connect(iter([batch]))] == [batch + batch]
        link: Any = channel.stream_stream(
            f"/{SHARDS}/Link",
            request_serializer=shard.LinkRequest.SerializeToString,
            response_deserializer=shard.LinkResponse.FromString,
        )
        request = shard.LinkRequest(items=[shard.LinkUpItem(), shard.LinkUpItem()])
        assert [each.items[0].send_id async for each in link(iter([request]))] == [2]


async def test_a_row_with_a_key_is_answered_by_its_owner() -> None:
    async def forward(
        method: str, key: str, request: Any, _context: Context, local: Any, response: type[Any]
    ) -> Any:
        mine = await local(request)
        return response(event_ids=[method, key, *mine.event_ids])

    table = Table(Service(HUB, *rows(at=lambda request: request.request_id.upper()), *others()))
    owners = (Subscribing(), Publishing())
    async with served(table, *owners, forward=forward) as channel:
        publish = channel.unary_unary(
            f"/{HUB}/Publish",
            request_serializer=hub.PublishRequest.SerializeToString,
            response_deserializer=hub.PublishResponse.FromString,
        )
        answer = await publish(hub.PublishRequest(request_id="r"))
    assert answer.event_ids == [f"/{HUB}/Publish", "R", "r"]
    with pytest.raises(ValueError, match="nothing passes it on"):
        table.register(grpc.aio.server(), owners)


def test_the_table_says_who_may_call() -> None:
    table = Table(Service(HUB, *rows(suite=True), *others()))
    asked = ("Publish", "ListEventTypes", "Subscribe")
    assert [table.authorization[f"/{HUB}/{name}"] for name in asked] == [
        {Role.INTEGRATION},
        READERS,
        READERS,
    ]
    assert table.suite == {f"/{HUB}/Publish"}
    assert table.public == {f"/{HUB}/ListEventTypes"}
    assert not table.inline


async def test_rows_that_are_not_the_contracts_refuse_to_start() -> None:
    with pytest.raises(ValueError, match="differ: Subscribe"):
        Service(HUB, *rows()[:2], *others())
    with pytest.raises(ValueError, match="differ: a method twice"):
        Service(HUB, *rows(), *others(), rows()[0])
    with pytest.raises(ValueError, match="differ: ListSessions"):
        Service(HUB, *rows(), *others(), unary(Gateway.ListSessions).by(Bytes.sessions, READERS))
    wrong = unary(Hub.Subscribe).by(Publishing.publish, READERS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Subscribe is begun with the wrong one"):
        Service(HUB, *rows()[:2], *others(), wrong)
    table = Table(Service(HUB, *rows(), *others()))
    for owners in ([Publishing()], [Publishing(), Publishing(), Subscribing()]):
        with pytest.raises(ValueError, match=r"needs one object, and has [02]"):
            table.register(grpc.aio.server(), owners)


def test_mypy_has_the_types_of_the_contract() -> None:
    """Each ignore is used, or mypy complains: a use case that takes or returns something else is an error there."""
    unary(Hub.Publish).by(Publishing.list, READERS)  # type: ignore[arg-type]
    unary(Gateway.ListSessions).by(Publishing.list, READERS)  # type: ignore[arg-type]
    stream(Hub.Publish)  # type: ignore[arg-type]
    unary(Hub.Publish).by(Publishing.publish, READERS, at=lambda r: r.nothing)  # type: ignore[attr-defined]
