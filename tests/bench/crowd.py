"""The crowd: many idle visitors of one process, who say Hello, and Ping as often as the server asked for.

Run by a bench as its own process: `python crowd.py '{"url": …, "visitors": …, "address": "127.0.0.2", …}'`. Prints a
JSON line when all are connected, one more for every line on stdin, and ends with stdin.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import itertools
import json
import sys
import time
from collections import Counter
from typing import Any, Final

import picows
import uvloop

from deskwire.gateway.v1 import frame_pb2
from deskwire_common.auth import KeySet, Role, TokenSigner

_AT_ONCE: Final = 64
_TICK: Final = 0.02
_FIRST_PORT: Final = 10_000
_PING: Final = frame_pb2.Batch(
    frames=[frame_pb2.Frame(ping=frame_pb2.Ping(id=1))]
).SerializeToString()


class Visitor(picows.WSListener):
    """One connection."""

    __slots__ = ("crowd", "transport", "welcome")

    def __init__(self, crowd: Crowd) -> None:
        super().__init__()
        self.crowd = crowd
        self.transport: Any = None
        self.welcome: asyncio.Future[float] | None = asyncio.get_running_loop().create_future()

    def on_ws_connected(self, transport: Any) -> None:
        self.transport = transport

    def on_ws_disconnected(self, _transport: Any) -> None:
        self.transport = None
        self.crowd.lost += 1

    def on_ws_frame(self, _transport: Any, frame: Any) -> None:
        self.crowd.frames += 1
        if frame.msg_type == picows.WSMsgType.CLOSE:
            self.crowd.closed[frame.get_close_code()] += 1
        if self.welcome is None or frame.msg_type != picows.WSMsgType.BINARY:
            return
        for each in frame_pb2.Batch.FromString(frame.get_payload_as_bytes()).frames:
            if each.HasField("welcome"):
                self.welcome.set_result(each.welcome.ping_interval.ToMilliseconds() / 1000)
                self.welcome = None
                return


class Crowd:
    """All visitors of this process."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.visitors: list[Visitor] = []
        self.lost = 0
        self.again = 0
        self.frames = 0
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
            used = time.process_time()
            print(
                json.dumps(
                    {
                        "lost": self.lost,
                        "closed": self.closed,
                        "frames": self.frames,
                        "pings": self.pings,
                        "cpu_seconds": used,
                    }
                ),
                flush=True,
            )
        pinging.cancel()

    async def _connect_all(self, tokens: Any) -> None:
        for token in tokens:
            visitor = await self._open()
            assert visitor.welcome is not None
            hello = frame_pb2.Hello(token=token, client="bench")
            batch = frame_pb2.Batch(frames=[frame_pb2.Frame(hello=hello)])
            visitor.transport.send(picows.WSMsgType.BINARY, batch.SerializeToString())
            self.interval = await asyncio.wait_for(visitor.welcome, 60)
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
                visitor = self.visitors[place]
                if visitor.transport is not None:
                    visitor.transport.send(picows.WSMsgType.BINARY, _PING)
                    self.pings += 1


if __name__ == "__main__":
    uvloop.run(Crowd(json.loads(sys.argv[1])).run())
