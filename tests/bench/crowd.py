"""The crowd: many idle visitors of one process, who say Hello, and Ping as often as the server asked for.

Run by a bench as its own process: `python crowd.py '{"url": …, "visitors": …, "address": "127.0.0.2", …}'`. Prints a
JSON line when all are connected, one more for every line on stdin, and ends with stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import itertools
import json
import os
import sys
import time
from collections import Counter
from typing import Any, Final

import picows
import uvloop
from load import yield_to_servers

from deskwire.gateway.v1 import frame_pb2
from deskwire_common.auth import KeySet, Role, TokenSigner

_AT_ONCE: Final = 64
_TICK: Final = 0.02
_FIRST_PORT: Final = 10_000
_READ: Final = 4_096
_PING: Final = frame_pb2.Batch(
    frames=[frame_pb2.Frame(ping=frame_pb2.Ping(id=1))]
).SerializeToString()
# RFC 6455, 5.2: the last fragment, binary, and a mask of four zeros.
_PING_FRAME: Final = bytes((0x82, 0x80 | len(_PING), 0, 0, 0, 0)) + _PING
_CLOSE: Final = 0x88


class Visitor(picows.WSListener):
    """One connection. Its Pongs wait in its socket for its next Ping: nobody here is woken by them."""

    __slots__ = ("answered", "crowd", "descriptor", "transport", "welcome")

    def __init__(self, crowd: Crowd) -> None:
        super().__init__()
        self.crowd = crowd
        self.descriptor = -1
        self.answered = True
        self.transport: Any = None
        self.welcome: asyncio.Future[float] | None = asyncio.get_running_loop().create_future()

    def on_ws_connected(self, transport: Any) -> None:
        self.transport = transport

    def on_ws_disconnected(self, _transport: Any) -> None:
        self.transport = None
        self.crowd.lost += 1

    def on_ws_frame(self, _transport: Any, frame: Any) -> None:
        if self.welcome is None or frame.msg_type != picows.WSMsgType.BINARY:
            return
        for each in frame_pb2.Batch.FromString(frame.get_payload_as_bytes()).frames:
            if each.HasField("welcome"):
                self.welcome.set_result(each.welcome.ping_interval.ToMilliseconds() / 1000)
                self.welcome = None
                return

    def settle(self) -> None:
        """From here on the event loop doesn't look at this connection."""
        underlying = self.transport.underlying_transport
        underlying.pause_reading()
        self.descriptor = underlying.get_extra_info("socket").fileno()

    def beat(self) -> None:
        """Read what came since the last time, the Pong to the last Ping, and send the next one."""
        self.read()
        if self.transport is None:
            return
        self.crowd.unanswered += not self.answered
        self.answered = False
        with contextlib.suppress(OSError):  # the next read says so
            os.write(self.descriptor, _PING_FRAME)
        self.crowd.pings += 1

    def read(self) -> None:
        """Read what came."""
        if self.transport is None:
            return
        try:
            data = os.read(self.descriptor, _READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.answered = True
        code = close_code(data)
        if code:
            self.crowd.closed[code] += 1
        if code or not data:
            self.transport.underlying_transport.abort()


def close_code(data: bytes) -> int:
    """Return the code of a Close among whole WebSocket frames of a server, 0 without one."""
    place = 0
    while place + 4 <= len(data):
        size = data[place + 1]
        start = place + 2
        if size == 126:
            size, start = int.from_bytes(data[start : start + 2], "big"), start + 2
        if data[place] == _CLOSE:
            return int.from_bytes(data[start : start + 2], "big")
        place = start + size
    return 0


class Crowd:
    """All visitors of this process."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.visitors: list[Visitor] = []
        self.lost = 0
        self.again = 0
        self.unanswered = 0
        self.closed: Counter[int] = Counter()
        self.pings = 0
        self.interval = 0.0
        self._ports = itertools.count(_FIRST_PORT)

    async def run(self) -> None:
        """Connect, tell, and stay."""
        signer = TokenSigner(KeySet.load(self.plan["keys_file"]))
        tokens = iter(
            [
                signer.mint(
                    tenant=self.plan["tenant"],
                    role=Role.VISITOR,
                    subject=f"idle-{self.plan['part']}-{number}",
                    ttl=86_400.0,
                )
                for number in range(self.plan["visitors"])
            ]
        )
        print(json.dumps({"ready": True}), flush=True)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, sys.stdin.readline)
        started = time.perf_counter()
        pinging = asyncio.create_task(self._ping())
        await asyncio.gather(*(self._connect_all(tokens) for _ in range(_AT_ONCE)))
        seconds = time.perf_counter() - started
        gc.collect()
        gc.freeze()
        told = {"connected": len(self.visitors), "seconds": seconds, "again": self.again}
        print(json.dumps(told), flush=True)
        while await loop.run_in_executor(None, sys.stdin.readline):
            told = {"pings": self.pings, "cpu_seconds": time.process_time()}
            for visitor in self.visitors:
                visitor.read()
            await asyncio.sleep(_TICK)  # those who were closed count as lost then
            told |= {"lost": self.lost, "closed": self.closed, "unanswered": self.unanswered}
            print(json.dumps(told), flush=True)
        pinging.cancel()

    async def _connect_all(self, tokens: Any) -> None:
        for token in tokens:
            visitor = await self._open()
            assert visitor.welcome is not None
            hello = frame_pb2.Hello(token=token, client="bench")
            batch = frame_pb2.Batch(frames=[frame_pb2.Frame(hello=hello)])
            visitor.transport.send(picows.WSMsgType.BINARY, batch.SerializeToString())
            self.interval = await asyncio.wait_for(visitor.welcome, 60)
            visitor.settle()
            self.visitors.append(visitor)

    async def _open(self) -> Visitor:
        """Connect; a full machine may end a handshake that took too long, and then we come again."""
        while True:
            try:
                _, visitor = await picows.ws_connect(
                    lambda: Visitor(self),
                    self.plan["url"],
                    extra_headers={"Sec-WebSocket-Protocol": "deskwire.v1"},
                    websocket_handshake_timeout=60,
                    read_buffer_init_size=512,
                    use_aiofastnet=False,
                    proxy=None,
                    # The kernel's own search for one takes long where many are taken: most of this process' time.
                    local_addr=(self.plan["address"], next(self._ports)),
                )
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            if isinstance(visitor, Visitor):
                return visitor
            self.lost -= 1  # it wasn't there yet
            self.again += 1
            await asyncio.sleep(1.0)

    async def _ping(self) -> None:
        """Everybody about once an interval, evenly."""
        due, place, looked = 0.0, 0, time.perf_counter()
        while True:
            await asyncio.sleep(_TICK)
            now = time.perf_counter()
            if self.visitors:
                due += (now - looked) / self.interval * len(self.visitors)
            looked = now
            while due >= 1:
                due -= 1
                place = place + 1 if place + 1 < len(self.visitors) else 0
                self.visitors[place].beat()


if __name__ == "__main__":
    yield_to_servers()
    uvloop.run(Crowd(json.loads(sys.argv[1])).run())
