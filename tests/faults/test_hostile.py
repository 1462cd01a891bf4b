"""Clients that mean harm, or act like it: the others don't notice."""

from __future__ import annotations

import asyncio
import base64
import os
import resource
import selectors
import socket
from collections import Counter

import psutil
import pytest

from deskwire.gateway.v1 import frame_pb2
from deskwire_common.auth import Role
from support import eventually
from support.history import Crowd
from support.suite import new_id
from support.wire import wire
from support.world import World

pytestmark = pytest.mark.timeout(600)

AT_ONCE = 10_000


def gateway_memory(world: World) -> int:
    """Bytes that the gateway's processes have resident."""
    gateway = psutil.Process(world.parts["gateway"].process.pid)
    return sum(each.memory_info().rss for each in [gateway, *gateway.children()])


async def opened(world: World) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = world.websocket.rpartition(":")
    return await asyncio.open_connection(host, int(port))


def upgrade(world: World) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET /ws HTTP/1.1\r\nHost: {world.websocket}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Protocol: deskwire.v1\r\n\r\n"
    ).encode()


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the server has ended a connection."""
    try:
        return await asyncio.wait_for(reader.read(65_536), 0.1) == b"" and reader.at_eof()
    except TimeoutError:
        return False
    except ConnectionError:
        return True


async def test_handshakes_that_never_end_are_ended(world: World) -> None:
    crowd = Crowd(world, visitors=3)
    async with crowd.talking():
        slow = [await opened(world) for _ in range(300)]
        for number, (_, writer) in enumerate(slow):
            # Nothing, a part of the request, or all of it and then no Hello.
            request = upgrade(world)
            writer.write(request[: (0, 40, len(request))[number % 3]])
        await crowd.goes_on()
        for reader, writer in slow:
            await eventually(lambda reader=reader: ended(reader), timeout=40)
            writer.close()


def storm(world: World) -> Counter[bytes]:
    """Open `AT_ONCE` connections, ask each for the upgrade as soon as it stands, and count the answers' codes.

    Plain sockets in one thread: tasks and streams for so many ask later than the server waits, as a slowloris would. On
    a machine that is busy some still do, and are cut off; as any client would, those come again.
    """
    host, _, port = world.websocket.rpartition(":")
    answers: Counter[bytes] = Counter()
    with selectors.DefaultSelector() as selector:

        def come() -> None:
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex((host, int(port)))
            selector.register(connection, selectors.EVENT_WRITE, connection)

        def answer(connection: socket.socket, events: int) -> bytes | None:
            """What one was told: nothing yet (None), or that it was cut off (empty)."""
            try:
                if not events & selectors.EVENT_WRITE:
                    return connection.recv(4_096)[9:12]
                connection.sendall(upgrade(world))
                selector.modify(connection, selectors.EVENT_READ, connection)
            except ConnectionError:
                return b""
            return None

        for _ in range(AT_ONCE):
            come()
        again = AT_ONCE
        while selector.get_map():
            ready = selector.select(timeout=60)
            assert ready, f"{len(selector.get_map())} connections have no answer"
            for key, events in ready:
                code = answer(key.data, events)
                if code is None:
                    continue
                selector.unregister(key.data)
                key.data.close()
                if code:
                    answers[code] += 1
                else:
                    again -= 1
                    assert again, "connections are cut off again and again"
                    come()
    return answers


async def test_many_connects_at_once(world: World) -> None:
    crowd = Crowd(world, visitors=3)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    async with crowd.talking():
        assert await asyncio.to_thread(storm, world) == {b"101": AT_ONCE}
        await crowd.goes_on()


async def test_a_client_that_acknowledges_nothing_costs_no_more_than_its_ring(world: World) -> None:
    crowd = Crowd(world, visitors=3)
    token = world.token(Role.VISITOR, "never")
    async with crowd.talking():
        # Two devices of one visitor: what is said on one is pushed to the other, which never says that it came.
        async with wire(world, token) as talks, wire(world, token) as never:
            conversation = new_id()
            before = gateway_memory(world)
            heard = 0
            while heard < 6_000_000:
                for _ in range(20):
                    await talks.send(conversation, "x" * 4_000)
                for _ in range(20):
                    await talks.hear("send_ack")
                for _ in range(20):
                    while not (push := await never.hear("push")).HasField("message"):
                        pass
                    heard += len(push.message.content.text)
            assert gateway_memory(world) - before < 3_000_000
            await never.say(ping=frame_pb2.Ping(id=9))
            assert (await never.hear("pong")).id == 9
        await crowd.goes_on()
