"""`make fuzz`: random and mutated frames against a whole message path, while others talk.

Every message is answered by typed frames or the end of the connection, with a code that the protocol knows; no process
dies, logs a fault of ours or grows; and those who talk meanwhile lose nothing. `python fuzz.py --frames N --seed S`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deskwire.gateway.v1 import frame_pb2
from deskwire_common.auth import Role
from deskwire_gateway.calls import METHODS as METHODS_OF_CHAT
from support.history import Crowd
from support.suite import new_id
from support.world import World, a_world

CODES = {1000, 1002, 1006, 1007, 1009, *range(3000, 3004), *range(3500, 3505)}
CONNECTIONS = 16
_LAST = 4_711
_PING = frame_pb2.Batch(frames=[frame_pb2.Frame(ping=frame_pb2.Ping(id=_LAST))]).SerializeToString()
SAID_BY_CLIENTS = ("send", "sync", "delivered", "read", "typing", "refresh", "ping", "pong", "rpc")
METHODS = (
    *sorted(METHODS_OF_CHAT),
    "/deskwire.chat.v1.ConversationService/WatchConversation",
    "/deskwire.chat.v1.TenantService/ListTenants",
    "/deskwire.shard.v1.ShardService/Link",
    "/grpc.health.v1.Health/Check",
    "",
)
GROWTH = 150_000_000


class Frames:
    """Frames of a client, good ones and others."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.conversations = [new_id() for _ in range(8)]

    def batch(self) -> tuple[int, bytes]:
        """How many frames were put into some bytes, and those."""
        count = self.random.choice((1, 1, 2, 5, 20, 60))
        batch = frame_pb2.Batch(frames=[self.frame() for _ in range(count)])
        if self.random.random() < 0.2:
            batch.ack = self.random.getrandbits(self.random.choice((1, 8, 64)))
        data = batch.SerializeToString()
        return count, self.random.choice(self._mutations())(data)

    def frame(self) -> frame_pb2.Frame:
        """A frame whose fields are right, nearly right, or neither."""
        pick = self.random.choice
        conversation = pick([*self.conversations * 3, new_id(), "", "x", "é" * 40, self._text(40)])
        seq = pick([0, 1, 2, 7, 2**31, 2**32 - 1])
        frame = frame_pb2.Frame()
        kind = pick(["send", "send", *SAID_BY_CLIENTS])
        if self.random.random() < 0.01:
            kind = pick([each.name for each in frame.DESCRIPTOR.fields])
        said = getattr(frame, kind)
        said.SetInParent()
        if kind == "send":
            said.conversation_id = conversation
            said.client_msg_id = pick(
                ["", self._text(8), self._text(70), "same", *(new_id() for _ in range(6))]
            )
            said.traceparent = pick(["", "", "00-" + "0" * 52, self._text(55)])
            if self.random.random() < 0.9:
                said.content.text = self._text(
                    9_000 if self.random.random() < 0.002 else pick([0, 1, 20, 200])
                )
        elif kind in {"sync", "delivered", "read", "typing"}:
            said.conversation_id = conversation
            if kind == "sync":
                said.after_seq, said.limit = seq, pick([0, 1, 500, 501, 2**32 - 1])
            elif kind == "typing":
                said.typing = pick([True, False])
            else:
                said.seq = seq
        elif kind == "rpc":
            said.id = pick([0, 1, 2, 3, 2**64 - 1])
            said.method = pick([*METHODS * 3, self._text(40), "x" * 300])
            # Many requests have an id of something first, or a request_id and then that.
            first = pick([conversation, self._text(8), "same"]).encode()
            said.request = pick(
                [
                    b"",
                    b"\x0a" + bytes((len(first),)) + first,
                    b"\x0a\x01r\x12" + bytes((len(first),)) + first,
                    self.random.randbytes(pick([1, 20, 300])),
                ]
            )
            said.timeout.seconds, said.timeout.nanos = pick([(0, 0), (1, 0), (-1, 5), (2**50, -1)])
            said.token = pick(["", "", self._text(60)])
            said.traceparent = pick(["", self._text(50), "00-" + "a" * 32 + "-" + "b" * 16 + "-00"])
        elif kind in {"hello", "refresh"}:
            said.token = self._text(pick([1, 200]))
        elif kind in {"ping", "pong"}:
            said.id = self.random.getrandbits(64)
        elif kind == "goodbye":
            frame.Clear()  # that would only end it
        return frame

    def _text(self, length: int) -> str:
        alphabet = "ab \t\n\r\\é漢\u202e\x00\x7f😀"
        return "".join(self.random.choices(alphabet, k=length))

    def _mutations(self) -> list[Callable[[bytes], bytes]]:
        return [
            *[lambda data: data] * 12,
            self._flipped,
            lambda data: data[: self.random.randrange(len(data) + 1)],
            lambda data: data + self.random.randbytes(self.random.randrange(40)),
            lambda data: data * self.random.choice((2, 3)),
            lambda data: self.random.randbytes(self.random.choice((0, 1, 10, 300, 20_000))),
        ]

    def _flipped(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.random.randrange(1, 6) if data else 0):
            changed[self.random.randrange(len(changed))] = self.random.randrange(256)
        return bytes(changed)


class Fuzz:
    """Some connections that say frames until there were enough."""

    def __init__(self, world: World, frames: int, seed: int) -> None:
        self.world = world
        self.left = frames
        self.said = 0
        self.answers: Counter[str] = Counter()
        self._frames = Frames(seed)

    async def run(self) -> None:
        """Say them all."""
        await asyncio.gather(*(self._connection(number) for number in range(CONNECTIONS)))

    async def _connection(self, number: int) -> None:
        role = (Role.VISITOR, Role.VISITOR, Role.AGENT, Role.BOT)[number % 4]
        token = self.world.token(role, f"fuzz-{number}")
        while self.left > 0:
            try:
                async with connect(
                    self.world.url,
                    subprotocols=["deskwire.v1"],
                    max_size=None,  # type: ignore[list-item]
                ) as socket:
                    hello = frame_pb2.Hello(token=token)
                    batch = frame_pb2.Batch(frames=[frame_pb2.Frame(hello=hello)])
                    await socket.send(batch.SerializeToString())
                    while self.left > 0:
                        count, data = self._frames.batch()
                        self.left -= count
                        self.said += count
                        # Whatever comes before it, a Ping is answered while the connection stands.
                        await socket.send(data)
                        await socket.send(_PING)
                        while not self._hear(await asyncio.wait_for(socket.recv(), 30)):
                            pass
            except ConnectionClosed as closed:
                code = closed.rcvd.code if closed.rcvd is not None else 1006
                assert code in CODES, f"closed with {code}"
                self.answers[f"closed {code}"] += 1

    def _hear(self, data: bytes | str) -> bool:
        """Count what the server says; whether it has answered the Ping."""
        assert isinstance(data, bytes)
        frames = frame_pb2.Batch.FromString(data).frames
        for frame in frames:
            self.answers[frame.WhichOneof("kind") or "unknown"] += 1
        return any(each.pong.id == _LAST for each in frames)


def faults(log: Path) -> list[str]:
    """What a service logged as a fault of its own."""
    found = []
    for line in log.read_text().splitlines():
        entry = json.loads(line) if line.startswith("{") else {"level": "error", "event": line}
        if entry.get("level") in {"error", "critical"} or "exception" in entry:
            found.append(line)
    return found


async def fuzz(world: World, frames: int, seed: int) -> Counter[str]:
    """Say so many frames to a world that runs, and check everything. Raises AssertionError."""
    family = {
        name: [part, *part.children()]
        for name in ("chat", "gateway")
        if (part := psutil.Process(world.parts[name].process.pid))
    }
    before = {name: sum(p.memory_info().rss for p in each) for name, each in family.items()}
    crowd = Crowd(world, visitors=2, agents=1)
    work = Fuzz(world, frames, seed)
    async with crowd.talking():
        running = asyncio.create_task(work.run())
        while not running.done():
            await asyncio.wait({running}, timeout=5)
            print(f"{work.said:,} frames", file=sys.stderr, flush=True)
        await running
        await crowd.goes_on()
    for name, each in family.items():
        assert all(process.is_running() for process in each), f"a process of {name} is gone"
        assert not faults(world.folder / f"{name}.log"), faults(world.folder / f"{name}.log")[:3]
        growth = sum(process.memory_info().rss for process in each) - before[name]
        assert growth < GROWTH, f"{name} grew by {growth / 1e6:.0f} MB"
    assert work.answers["error"] > frames / 50
    assert work.answers["send_ack"] > 0
    assert work.answers["rpc_result"] > 0
    return work.answers


def main() -> None:
    """Run it; a failed assertion says what was wrong, and the seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    with a_world() as world:
        answers = asyncio.run(fuzz(world, options.frames, options.seed))
    for what, count in answers.most_common():
        print(f"{count:>10,}  {what}")


if __name__ == "__main__":
    main()
