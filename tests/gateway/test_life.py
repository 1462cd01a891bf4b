"""How connections end: silence, slow readers, tokens that expire, too many of them, a gateway that stops."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from websockets.exceptions import InvalidStatus

import deskwire_gateway.app
from deskwire.gateway.v1 import frame_pb2
from deskwire_common.auth import Role
from deskwire_common.lifecycle import running
from deskwire_common.metrics import METRICS
from deskwire_gateway.session import Session
from deskwire_gateway.websocket import _Connection
from deskwire_wire.batches import encoded, pong
from support import eventually
from support.suite import Desk, Start, gateway_settings, new_id
from support.wire import reason, wire


async def test_who_says_nothing_is_sent_away_and_may_come_back(start: Start) -> None:
    async with start(ping_interval=1.0, visitor_ping_interval=1.0) as d, AsyncExitStack() as stack:
        silent = await stack.enter_async_context(
            wire(d, d.token(Role.VISITOR, "1"), ping_interval=None)
        )
        # One that says Ping stays; so does the reference client.
        client = await d.client(Role.VISITOR, "2")
        alive = await stack.enter_async_context(wire(d, d.token(Role.VISITOR, "3")))
        for number in range(10):
            await alive.say(ping=frame_pb2.Ping(id=number))
            assert (await alive.hear("pong")).id == number
            await asyncio.sleep(0.4)
        await alive.works()
        assert client.reconnects == 0
        assert await silent.ended() == ("UNSPECIFIED", 3003)


async def test_a_connection_ends_with_its_token(start: Start) -> None:
    async with (
        start(ping_interval=1.0) as d,
        wire(d, d.token(Role.VISITOR, "1", ttl=60)) as brief,
    ):
        await brief.works()
        d.let_pass(66)
        assert await brief.ended() == ("TOKEN_EXPIRED", 3001)


async def test_a_connection_stays_as_long_as_its_token_would_open_it_again(start: Start) -> None:
    # With a ping interval of a second, each second looks at all sessions.
    async with start(ping_interval=1.0) as d, AsyncExitStack() as stack:
        now = d.gateway.clock.now()
        d.gateway.clock.now = lambda: now
        token = d.token(Role.VISITOR, "1", ttl=600)
        gone = await stack.enter_async_context(wire(d, d.token(Role.VISITOR, "2", ttl=500)))
        stays = await stack.enter_async_context(wire(d, token))
        now += timedelta(seconds=602)
        assert await gone.ended() == ("TOKEN_EXPIRED", 3001)
        await stack.enter_async_context(wire(d, token))
        await stays.works()
        now += timedelta(seconds=4)
        assert await stays.ended() == ("TOKEN_EXPIRED", 3001)


async def test_no_more_connections_than_fit(start: Start) -> None:
    async with start(max_connections=2) as d, AsyncExitStack() as stack:
        for subject in ("1", "2"):
            await stack.enter_async_context(wire(d, d.token(Role.VISITOR, subject)))
        with pytest.raises(InvalidStatus) as caught:
            await stack.enter_async_context(wire(d, d.token(Role.VISITOR, "3")))
        assert caught.value.response.status_code == 503


def narrow(d: Desk) -> socket.socket:
    """A socket to the gateway that takes little at a time."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    found.connect(("127.0.0.1", d.gateway.extra_ports["ws"]))
    found.setblocking(False)
    return found


async def test_who_reads_too_slowly_is_sent_away_and_misses_nothing(start: Start) -> None:
    async with start(max_buffered_bytes=65_536) as d, AsyncExitStack() as stack:
        # They take one message from the socket and no more; one of them reads on later, the other never does.
        token = d.token(Role.AGENT, "alice")
        slow, _stuck = [
            await stack.enter_async_context(
                wire(d, token, sock=narrow(d), max_queue=1, ping_interval=None)
            )
            for _ in range(2)
        ]
        await d.available("alice")
        visitor = await d.client(Role.VISITOR, "1")
        talk = new_id()
        text = "x" * 4000
        sent = 0
        closed = METRICS.gateway_closed.labels("slow_reader")
        before = closed._value.get()
        # The kernel's buffers are large: send until it was noticed.
        async with asyncio.timeout(60):
            while closed._value.get() < before + 2:
                await asyncio.gather(*(visitor.post(talk, text) for _ in range(100)))
                sent += 100
        assert await slow.ended() == ("SLOW_READER", 3002)
        # Others didn't notice, and what was sent is there for the agent who comes back.
        assert visitor.reconnects == 0
        async with wire(d) as back:
            resumed = await back.resume(token, slow)
            assert not resumed.reset
        seen: list[int] = []
        await d.client(
            Role.AGENT,
            "alice",
            on_push=lambda push: (
                seen.append(push.message.seq) if push.HasField("message") else None
            ),
        )
        await eventually(lambda: len(seen) >= sent + 1, timeout=60)  # and the greeting
        assert seen == list(range(1, sent + 2))

        async def only_who_reads() -> bool:
            return await connections(d) == 2

        # Who never reads doesn't keep the connection for ever.
        await eventually(only_who_reads, timeout=30)


async def connections(d: Desk) -> int:
    """How many the gateway has, as it tells everybody."""

    def asked() -> int:
        with urlopen(d.url.replace("ws:", "http:").replace("/ws", "/health"), timeout=5) as answer:
            return int(json.load(answer)["connections"])

    return await asyncio.to_thread(asked)


async def test_a_gateway_that_stops_sends_everybody_elsewhere(
    start: Start, valkey: str, keys_file: Path
) -> None:
    async with start() as d, AsyncExitStack() as stack:
        settings = gateway_settings(d.chat.port, valkey, keys_file)
        async with running("gateway", settings, deskwire_gateway.app.build) as second:
            other = Desk(d.signer, d.chat, second, stack, d.tenant)
            leaving = await stack.enter_async_context(wire(other, d.token(Role.VISITOR, "1")))
            talk = new_id()
            await leaving.send(talk, "before the end")
            assert (await leaving.hear("send_ack")).seq == 1
        # The block's end was the drain.
        goodbye = await leaving.hear("goodbye")
        assert (goodbye.code, goodbye.reconnect) == (3000, True)
        assert reason(goodbye.reason) == "SHUTTING_DOWN"
        assert goodbye.spread.ToMilliseconds() >= 1000
        async with wire(d, d.token(Role.VISITOR, "1")) as back:
            assert (await back.hear("head")).seq == 1


async def test_the_same_frames_over_grpc(start: Start) -> None:
    async with start() as d:
        agent = await d.client(Role.AGENT, "alice", name="Alice")
        await d.available("alice")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{d.gateway.port}") as channel:
            call: Any = channel.stream_stream(
                "/deskwire.gateway.v1.GatewayService/Connect",
                request_serializer=frame_pb2.Batch.SerializeToString,
                response_deserializer=frame_pb2.Batch.FromString,
            )()
            heard: list[frame_pb2.Frame] = []

            async def hear(kind: str) -> Any:
                while True:
                    for frame in heard:
                        if frame.WhichOneof("kind") == kind:
                            heard.remove(frame)
                            return getattr(frame, kind)
                    heard.extend((await asyncio.wait_for(call.read(), 10)).frames)

            async def say(**kind: Any) -> None:
                await call.write(frame_pb2.Batch(frames=[frame_pb2.Frame(**kind)]))

            await say(hello=frame_pb2.Hello(token=d.token(Role.VISITOR, "1"), client="test"))
            assert (await hear("welcome")).max_unacked_sends == 64
            await say(ping=frame_pb2.Ping(id=7))
            assert (await hear("pong")).id == 7
            send = frame_pb2.Send(conversation_id=new_id(), client_msg_id="1")
            send.content.text = "over gRPC"
            await say(send=send)
            assert (await hear("send_ack")).seq == 1
            await agent.send(send.conversation_id, "hello over gRPC")
            while True:
                push = await hear("push")
                if push.message.content.text == "hello over gRPC":
                    break
            await say(goodbye=frame_pb2.Goodbye(code=1000))
            while await call.read() is not grpc.aio.EOF:
                pass
            assert await call.code() is grpc.StatusCode.OK


async def test_a_bad_token_over_grpc(start: Start) -> None:
    async with start() as d, grpc.aio.insecure_channel(f"127.0.0.1:{d.gateway.port}") as channel:
        call: Any = channel.stream_stream(
            "/deskwire.gateway.v1.GatewayService/Connect",
            request_serializer=frame_pb2.Batch.SerializeToString,
            response_deserializer=frame_pb2.Batch.FromString,
        )()
        hello = frame_pb2.Hello(token="nonsense", client="test")
        await call.write(frame_pb2.Batch(frames=[frame_pb2.Frame(hello=hello)]))
        frames: list[frame_pb2.Frame] = []
        while (batch := await call.read()) is not grpc.aio.EOF:
            frames.extend(batch.frames)
        assert [each.WhichOneof("kind") for each in frames] == ["error", "goodbye"]
        assert reason(frames[1].goodbye.reason) == "TOKEN_INVALID"
        assert frames[1].goodbye.code == 3501


async def test_who_reads_too_slowly_over_grpc(start: Start) -> None:
    async with start() as d, grpc.aio.insecure_channel(f"127.0.0.1:{d.gateway.port}") as channel:
        call: Any = channel.stream_stream(
            "/deskwire.gateway.v1.GatewayService/Connect",
            request_serializer=frame_pb2.Batch.SerializeToString,
            response_deserializer=frame_pb2.Batch.FromString,
        )()
        hello = frame_pb2.Hello(token=d.token(Role.AGENT, "alice"))
        await call.write(frame_pb2.Batch(frames=[frame_pb2.Frame(hello=hello)]))
        await d.available("alice")
        visitor = await d.client(Role.VISITOR, "1")
        talk = new_id()
        closed = METRICS.gateway_closed.labels("slow_reader")
        before = closed._value.get()
        async with asyncio.timeout(60):
            while closed._value.get() == before:
                await asyncio.gather(*(visitor.post(talk, "x" * 8000) for _ in range(100)))
        last = frame_pb2.Batch()
        while (batch := await asyncio.wait_for(call.read(), 30)) is not grpc.aio.EOF:
            last = batch
        assert last.frames[-1].goodbye.code == 3002
        assert await call.code() is grpc.StatusCode.OK


async def test_agents_are_asked_for_signs_of_life_more_often_than_visitors(start: Start) -> None:
    async with start(ping_interval=1.0, visitor_ping_interval=60.0) as d, AsyncExitStack() as stack:
        visitor = await stack.enter_async_context(wire(d, d.token(Role.VISITOR, "1")))
        agent = await stack.enter_async_context(
            wire(d, d.token(Role.AGENT, "ann"), ping_interval=None)
        )
        assert agent.welcome.ping_interval.ToSeconds() == 1
        assert visitor.welcome.ping_interval.ToSeconds() == 60
        assert await agent.ended() == ("UNSPECIFIED", 3003)
        await visitor.works()


@pytest.mark.parametrize("number", [0, 1, 127, 128, 2**63])
def test_a_pong_by_hand_is_one(number: int) -> None:
    assert pong(number) == encoded(pong=frame_pb2.Pong(id=number))


async def test_connections_that_ended_are_no_work_for_the_collector(start: Start) -> None:
    async with start(resume_window=1.0, hello_timeout=1.0) as d:

        async def come_and_go(goodbye: bool) -> None:
            async with wire(d, d.token(Role.VISITOR, new_id())) as one:
                await one.works()
                if goodbye:
                    await one.say(goodbye=frame_pb2.Goodbye())

        def left() -> int:
            return sum(type(each) in {Session, _Connection} for each in gc.get_objects())

        await come_and_go(goodbye=True)
        gc.collect()
        gc.disable()
        try:
            for number in range(10):
                await come_and_go(goodbye=number % 2 == 0)
            # The last ones may still be locals of somebody who waits.
            await eventually(lambda: left() < 5, timeout=15)
        finally:
            gc.enable()
