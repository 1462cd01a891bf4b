"""Connections that come: how many fit, those that say nothing, and many at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status
from websockets.exceptions import InvalidStatus

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire_common.auth import Role
from deskwire_common.errors import from_rpc_error
from deskwire_gateway import arrivals
from deskwire_gateway.arrivals import ACCEPTS, HELLOS, Acceptor, Portions
from support import eventually
from support.suite import Desk, Start
from support.wire import reason, wire

FOR_EVER = 3_600.0


@asynccontextmanager
async def calling(d: Desk) -> AsyncIterator[Any]:
    """Open a Connect call and send nothing."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{d.gateway.port}") as channel:
        call: Any = channel.stream_stream(
            "/deskwire.gateway.v1.GatewayService/Connect",
            request_serializer=frame_pb2.Batch.SerializeToString,
            response_deserializer=frame_pb2.Batch.FromString,
        )()
        yield call
        call.cancel()


async def test_connects_over_grpc_count_with_websockets(start: Start) -> None:
    async with start(max_connections=2) as d, AsyncExitStack() as stack:
        await stack.enter_async_context(wire(d, d.token(Role.VISITOR, "1")))
        call = await stack.enter_async_context(calling(d))
        hello = frame_pb2.Hello(token=d.token(Role.VISITOR, "2"))
        await call.write(frame_pb2.Batch(frames=[frame_pb2.Frame(hello=hello)]))
        assert (await call.read()).frames[0].HasField("welcome")
        with pytest.raises(InvalidStatus) as over_websocket:
            await stack.enter_async_context(wire(d, d.token(Role.VISITOR, "3")))
        assert over_websocket.value.response.status_code == 503
        assert 3 <= int(over_websocket.value.response.headers["Retry-After"]) <= 8
        another = await stack.enter_async_context(calling(d))
        with pytest.raises(grpc.aio.AioRpcError) as over_grpc:
            await another.read()
        assert rpc_status.from_call(over_grpc.value) is not None  # type: ignore[arg-type]
        error = from_rpc_error(over_grpc.value)
        assert error.reason == reasons.ERROR_REASON_OVERLOADED
        assert 2.5 <= (error.retry_after or 0) <= 7.5


async def test_a_call_without_a_hello_is_ended(start: Start) -> None:
    async with start(hello_timeout=0.5) as d, calling(d) as call:
        (goodbye,) = (await call.read()).frames
        assert (goodbye.goodbye.code, reason(goodbye.goodbye.reason)) == (3500, "HELLO_REQUIRED")
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_who_says_nothing_makes_room_for_who_does(start: Start) -> None:
    async with start(max_connections=3, hello_timeout=60) as d, AsyncExitStack() as stack:
        talks = await stack.enter_async_context(wire(d, d.token(Role.VISITOR, "1")))
        silent = await stack.enter_async_context(wire(d))
        call = await stack.enter_async_context(calling(d))
        await call.wait_for_connection()

        async def gets_in(subject: str) -> bool:
            try:
                found = await stack.enter_async_context(wire(d, d.token(Role.VISITOR, subject)))
            except InvalidStatus:
                return False
            await found.works()
            return True

        await eventually(lambda: gets_in("2"), timeout=30)
        goodbye = await silent.hear("goodbye")
        assert (goodbye.code, goodbye.reconnect) == (3004, True)
        assert reason(goodbye.reason) == "OVERLOADED"
        assert goodbye.after.ToMilliseconds() >= 2_500
        await eventually(lambda: gets_in("3"), timeout=30)
        frames = (await call.read()).frames
        assert frames[-1].goodbye.code == 3004
        # Who has said Hello stays, and then it is full.
        assert not await gets_in("4")
        await talks.works()


async def test_a_tenants_connections_are_limited(start: Start) -> None:
    async with start(max_tenant_connections=2, resume_window=0) as d, AsyncExitStack() as stack:
        first, _ = [
            await stack.enter_async_context(wire(d, d.token(Role.VISITOR, each))) for each in "12"
        ]
        async with wire(d) as third:
            await third.say(hello=frame_pb2.Hello(token=d.token(Role.VISITOR, "3")))
            error = await third.hear("error")
            assert (reason(error.reason), error.temporary) == ("RATE_LIMITED", True)
            goodbye = await third.hear("goodbye")
            assert (goodbye.code, goodbye.reconnect) == (3004, True)
            assert goodbye.after.ToMilliseconds() >= 2_500
        async with wire(d, d.token(Role.VISITOR, "1", tenant=f"{d.tenant}-2")) as elsewhere:
            await elsewhere.works()
        await first.say(goodbye=frame_pb2.Goodbye())
        await first.socket.wait_closed()
        async with wire(d, d.token(Role.VISITOR, "3")) as instead:
            await instead.works()


async def test_sessions_that_may_be_resumed_are_bounded_too(start: Start) -> None:
    async with start(max_connections=2) as d:
        token = d.token(Role.VISITOR, "1")
        async with AsyncExitStack() as stack:
            broken = []
            for _ in range(4):
                one = await stack.enter_async_context(wire(d, token))
                one.socket.transport.abort()
                await one.socket.wait_closed()
                broken.append(one)

            async def is_gone() -> bool:
                async with wire(d) as again:
                    return (await again.resume(token, broken[0])).reset

            # The first ones are over, the last one isn't.
            await eventually(is_gone)
            async with wire(d) as again:
                assert not (await again.resume(token, broken[-1])).reset


async def test_hellos_are_read_a_few_at_a_time_and_messages_go_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The gateway's pauses are for ever now: only a portion gets in.
    monkeypatch.setattr(arrivals, "_SHORTEST", FOR_EVER)
    monkeypatch.setattr(arrivals, "ACCEPTS", 100)
    async with start(hello_timeout=0.5) as d, AsyncExitStack() as stack:
        talks = await stack.enter_async_context(wire(d, d.token(Role.VISITOR, "talks")))
        come = [await stack.enter_async_context(wire(d)) for _ in range(10)]
        for number, each in enumerate(come):
            await each.say(hello=frame_pb2.Hello(token=d.token(Role.VISITOR, f"{number}")))
            await each.say(ping=frame_pb2.Ping(id=number + 1))
        for each in come[: HELLOS - 1]:
            await each.hear("welcome")
        await talks.works()
        # The others wait, and nobody tells them that no Hello has come.
        for each in come[HELLOS - 1 :]:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(each.socket.recv(), 0.2)
        await talks.works()


async def test_all_who_come_at_once_get_in_and_in_order(start: Start) -> None:
    async with start() as d, AsyncExitStack() as stack:
        come = [await stack.enter_async_context(wire(d)) for _ in range(60)]
        for number, each in enumerate(come):
            await each.say(hello=frame_pb2.Hello(token=d.token(Role.VISITOR, f"{number}")))
            for ping in range(1, 4):
                await each.say(ping=frame_pb2.Ping(id=ping))
        for each in come:
            await each.hear("welcome")
            assert [(await each.hear("pong")).id for _ in range(3)] == [1, 2, 3]


class Met(asyncio.Protocol):
    """Counts connections, and keeps them."""

    made: list[asyncio.BaseTransport]

    def __init__(self, made: list[asyncio.BaseTransport]) -> None:
        self.made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made.append(transport)


@asynccontextmanager
async def storm(count: int) -> AsyncIterator[list[asyncio.BaseTransport]]:
    """Have so many connections wait in the kernel, and accept them; yield those that were."""
    made: list[asyncio.BaseTransport] = []
    listening = socket.create_server(("127.0.0.1", 0), backlog=1_000)
    clients = [socket.create_connection(listening.getsockname()) for _ in range(count)]
    acceptor = Acceptor(listening, lambda: Met(made))
    acceptor.start()
    try:
        yield made
    finally:
        acceptor.close()
        acceptor.close()
        for each in (*made, *clients):
            each.close()
        await asyncio.sleep(0)


async def test_connections_are_accepted_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "_SHORTEST", FOR_EVER)
    async with storm(100) as made:
        await eventually(lambda: len(made) == ACCEPTS)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(made) == ACCEPTS


async def test_all_connections_are_accepted_in_the_end() -> None:
    async with storm(300) as made:
        await eventually(lambda: len(made) == 300)


async def test_pauses_grow_while_the_loop_is_late() -> None:
    over: list[int] = []
    portions = Portions(1, lambda: over.append(1))
    lengths = []
    for number in range(5):
        assert portions.take()
        assert not portions.take()
        lengths.append(portions._pause)
        portions._due -= 1.0  # as if the loop had been busy for a second
        await eventually(lambda number=number: len(over) > number)
    assert lengths == sorted(lengths)
    assert lengths[0] == arrivals._SHORTEST < arrivals._LONGEST == lengths[-1]
