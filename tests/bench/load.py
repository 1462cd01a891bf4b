"""The load generator: pairs of visitors and agents, as lean as Python can be, so that the servers have the machine.

Run by a bench as its own process: `python load.py '{"url": …, "pairs": …, "seconds": …, …}'`. It prints a JSON line
when all are connected. Every line on stdin is a rate: it prints one when that begins and one when it is over, and ends
with stdin. Latency runs from the moment a message was due, so a generator that falls behind shows as latency.

Frames are written and read as bytes: every client_msg_id has the same length, so a Send is a template with a number in
it, and a pattern finds the numbers and seqs in what came, when the sending is over. tests/bench is checked by its own
totals: each message must come exactly once, and the seqs of a conversation without a hole.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import sys
import time
import uuid
from collections import deque
from typing import Any, Final

import picows
import uvloop

from deskwire.chat.v1 import agent_pb2, agent_service_pb2, agent_service_pb2_grpc
from deskwire.gateway.v1 import frame_pb2
from deskwire_common.auth import KeySet, Role, TokenSigner
from deskwire_common.rpc import make_channel

_TICK: Final = 0.005
_GRACE: Final = 10.0
_PORTION: Final = 200
_DIGITS: Final = 10
_TEXT: Final = "Is there a table for two at half past eleven in the morning, please?"

# Of a SendAck: client_msg_id (2). Of a Message: seq (3), sender (4), client_msg_id (5).
_SEND_ACK: Final = re.compile(rb"\x12\x0b[k](\d{10})\x1a")
_MESSAGE: Final = re.compile(
    rb"\x18([\x80-\xff]*[\x00-\x7f])\x22.[^\x00]{0,120}?\x2a\x0b[k](\d{10})2", re.DOTALL
)
# The tag of Frame.error; what has the byte for another reason costs a closer look.
_ERROR: Final = b"\x52"
_NUMBER: Final = re.compile(rb"\x10([\x80-\xff]*[\x00-\x7f])\Z")


def yield_to_servers() -> None:
    """Don't interrupt a server whenever it sends something (SCHED_BATCH of sched(7)): real clients are elsewhere."""
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def varint(data: bytes) -> int:
    """Return the number that a base-128 varint is."""
    number = 0
    for place, byte in enumerate(data):
        number |= (byte & 127) << 7 * place
    return number


class Peer(picows.WSListener):
    """One connection."""

    def __init__(self, load: Load, *, writes: bool) -> None:
        super().__init__()
        self.load = load
        self.writes = writes
        self.transport: Any = None
        self.greeted = asyncio.Event()
        self.tail = b""
        """The last message that came, for the cumulative ack."""
        self.before = b""
        self.after = b""
        self.last_seq = 0

    def on_ws_connected(self, transport: Any) -> None:
        self.transport = transport

    def on_ws_disconnected(self, _transport: Any) -> None:
        self.load.closed += 1

    def on_ws_frame(self, _transport: Any, frame: Any) -> None:
        if frame.msg_type != picows.WSMsgType.BINARY:
            return
        data = frame.get_payload_as_bytes()
        if self.load.started:
            self.tail = data
            self.load.came.append((time.perf_counter(), self, data))
        else:
            self.setting_up(data)

    def setting_up(self, data: bytes) -> None:
        """Read what comes before the load: the greeting says that an agent is there."""
        for each in frame_pb2.Batch.FromString(data).frames:
            if each.HasField("welcome"):
                self.load.interval = each.welcome.ping_interval.ToMilliseconds() / 1000
            if each.WhichOneof("kind") != "push" or not each.push.HasField("message"):
                continue
            message = each.push.message
            self.last_seq = max(self.last_seq, message.seq)
            if message.client_msg_id.startswith("greeting"):
                self.greeted.set()

    def send(self, **kind: Any) -> None:
        """Send one frame."""
        self.write(frame_pb2.Batch(frames=[frame_pb2.Frame(**kind)]).SerializeToString())

    def write(self, data: bytes) -> None:
        """Send an encoded Batch."""
        self.transport.send(picows.WSMsgType.BINARY, data)

    def ping(self) -> None:
        """A sign of life, with the cumulative ack: what the server needn't keep any more."""
        batch = frame_pb2.Batch(frames=[frame_pb2.Frame(ping=frame_pb2.Ping(id=1))])
        found = _NUMBER.search(self.tail)
        if found is not None:
            batch.ack = varint(found[1])
        self.write(batch.SerializeToString())


class Load:
    """All pairs of this process."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.started = False
        self.number = 0
        self.first = 0
        self.came: deque[tuple[float, Peer, bytes]] = deque()
        """What came, when and to whom; read when the sending is over."""
        self.due: list[float] = []
        self.seen = bytearray()
        self.ack: list[float] = []
        self.delivery: list[float] = []
        self.duplicates = 0
        self.out_of_order = 0
        self.refused = 0
        self.interval = 25.0
        self.heads = 0  # the server says: something may have been missed, Sync
        self.last_error = ""
        self.closed = 0

    def acked(self, number: int, now: float) -> None:
        """A SendAck came."""
        if number >= self.first:
            self.ack.append(now - self.due[number - self.first])

    def delivered(self, peer: Peer, seq: int, number: int, now: float) -> None:
        """A message came to an agent."""
        place = number - self.first
        if seq <= peer.last_seq:
            self.duplicates += 1
            return
        if seq != peer.last_seq + 1:
            self.out_of_order += 1
        peer.last_seq = seq
        if place >= 0 and not self.seen[place]:
            self.seen[place] = 1
            self.delivery.append(now - self.due[place])

    async def read(self) -> None:
        """Read what came, in portions of a few milliseconds: what comes meanwhile would look late."""
        while self.came:
            for _ in range(min(_PORTION, len(self.came))):
                self.read_one(*self.came.popleft())
            await asyncio.sleep(0)

    def read_one(self, now: float, peer: Peer, data: bytes) -> None:
        """Read what came to a peer at once."""
        if peer.writes:
            found = _SEND_ACK.findall(data)
            for number in found:
                self.acked(int(number), now)
        else:
            found = _MESSAGE.findall(data)
            for seq, number in found:
                self.delivered(peer, varint(seq), int(number), now)
        if not found or _ERROR in data:
            self.note(data)

    def note(self, data: bytes) -> None:
        """Count what shouldn't come: refusals, and Heads, which say that something may be missing."""
        for each in frame_pb2.Batch.FromString(data).frames:
            if each.HasField("error"):
                self.refused += 1
                self.last_error = each.error.message
            elif each.HasField("head"):
                self.heads += 1

    async def connect(self, token: str, *, writes: bool) -> Peer:
        """Open one connection and say Hello."""
        _, peer = await picows.ws_connect(
            lambda: Peer(self, writes=writes),
            self.plan["url"],
            extra_headers={"Sec-WebSocket-Protocol": "deskwire.v1"},
            read_buffer_init_size=2048,
            use_aiofastnet=False,
            proxy=None,
            local_addr=(self.plan["address"], 0),
        )
        assert isinstance(peer, Peer)
        peer.send(hello=frame_pb2.Hello(token=token, client="bench"))
        return peer

    async def run(self) -> None:
        """Set up, then one step per rate that is asked for."""
        visitors, agents = await self.set_up()
        gc.collect()
        gc.disable()  # what came is kept, and nothing of it is a cycle
        self.started = True
        pinging = asyncio.create_task(self.ping([*agents, *visitors]))
        loop = asyncio.get_running_loop()
        print(json.dumps({"pairs": len(visitors)}), flush=True)
        while rate := await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(await self.step(visitors, float(rate))), flush=True)
        pinging.cancel()

    async def set_up(self) -> tuple[list[Peer], list[Peer]]:
        """Connect all pairs, and give each visitor an agent."""
        plan = self.plan
        signer = TokenSigner(KeySet.load(plan["keys_file"]))
        tenant = plan["tenant"]
        operator = signer.mint(tenant=tenant, role=Role.OPERATOR, subject="bench")
        channel = make_channel(plan["chat"], token=lambda: operator)
        stub = agent_service_pb2_grpc.AgentServiceStub(channel)
        visitors, agents = [], []
        for number in range(plan["pairs"]):
            name = f"{plan['part']}-{number}"
            agents.append(
                await self.connect(
                    signer.mint(tenant=tenant, role=Role.AGENT, subject=f"agent-{name}"),
                    writes=False,
                )
            )
            await stub.SetAgentStatus(
                agent_service_pb2.SetAgentStatusRequest(
                    request_id=name,
                    agent_id=f"agent-{name}",
                    status=agent_pb2.AGENT_STATUS_AVAILABLE,
                    capacity=1,
                )
            )
            visitor = await self.connect(
                signer.mint(tenant=tenant, role=Role.VISITOR, subject=f"visitor-{name}"),
                writes=True,
            )
            first = frame_pb2.Send(conversation_id=str(uuid.uuid4()), client_msg_id="k" * 11)
            first.content.text = _TEXT
            visitor.send(send=first)
            encoded = frame_pb2.Batch(frames=[frame_pb2.Frame(send=first)]).SerializeToString()
            visitor.before, _, visitor.after = encoded.partition(b"k" * _DIGITS)
            visitor.before += b"k"
            visitor.after = visitor.after[1:]
            visitors.append(visitor)
        # Of the agents, too: a greeting that is read after this looks like a hole.
        for peer in [*visitors, *agents]:
            await asyncio.wait_for(peer.greeted.wait(), 60)
        await channel.close()
        return visitors, agents

    async def ping(self, peers: list[Peer]) -> None:
        """Everybody once in the interval that the server asked for, evenly."""
        portions = int(self.interval / _TICK / 4)
        while True:
            for portion in range(portions):
                for peer in peers[portion::portions]:
                    peer.ping()
                await asyncio.sleep(_TICK * 4)

    async def step(self, visitors: list[Peer], rate: float) -> dict[str, Any]:
        """Send at `rate` for the plan's seconds, after two seconds that don't count."""
        await self.pump(visitors, rate, 2.0)
        await self.settle()
        self.first, self.due, self.seen = self.number, [], bytearray()
        self.ack, self.delivery, self.refused = [], [], 0
        print(json.dumps({"begins": rate}), flush=True)  # the bench reads CPU times now
        cpu = time.process_time()
        started = time.perf_counter()
        await self.pump(visitors, rate, self.plan["seconds"])
        sending = time.perf_counter() - started
        cpu = time.process_time() - cpu
        await self.settle()
        return {
            "rate": rate,
            "sent": len(self.due),
            "received": len(self.delivery),
            "duplicates": self.duplicates,
            "out_of_order": self.out_of_order,
            "acked": len(self.ack),
            "heads": self.heads,
            "refused": self.refused,
            "last_error": self.last_error,
            "closed": self.closed,
            "seconds": sending,
            "generator_cpu_cores": cpu / sending,
            "ack": self.ack,
            "delivery": self.delivery,
        }

    async def pump(self, visitors: list[Peer], rate: float, seconds: float) -> None:
        """Messages at an even rate, round robin."""
        started = time.perf_counter()
        sent, count = 0, len(visitors)
        binary = picows.WSMsgType.BINARY
        while True:
            now = time.perf_counter() - started
            if now >= seconds:
                return
            while sent < now * rate:
                visitor = visitors[sent % count]
                self.due.append(started + sent / rate)
                self.seen.append(0)
                visitor.transport.send(
                    binary, visitor.before + b"%010d" % self.number + visitor.after
                )
                self.number += 1
                sent += 1
            await asyncio.sleep(_TICK)

    async def settle(self) -> None:
        """Wait for what is on its way, and read all that came."""
        deadline = time.perf_counter() + _GRACE
        await self.read()
        while len(self.delivery) < len(self.due) and time.perf_counter() < deadline:
            await asyncio.sleep(0.02)
            await self.read()


if __name__ == "__main__":
    yield_to_servers()
    uvloop.run(Load(json.loads(sys.argv[1])).run())
