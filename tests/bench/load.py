"""The load generator: pairs of visitors and agents on raw frames, as lean as Python can be.

Run by a bench as its own process: `python load.py '{"url": …, "pairs": …, "rates": [...], …}'`; it prints one JSON line
per step. Latency runs from the moment a message was due, so a generator that falls behind shows as latency.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
import uuid
from typing import Any, Final

import picows
import uvloop

from deskwire.chat.v1 import agent_pb2, agent_service_pb2, agent_service_pb2_grpc
from deskwire.gateway.v1 import frame_pb2
from deskwire_common.auth import KeySet, Role, TokenSigner
from deskwire_common.rpc import make_channel

_TICK: Final = 0.005
_GRACE: Final = 10.0
_PING: Final = 15.0


class Peer(picows.WSListener):
    """One connection."""

    def __init__(self, load: Load) -> None:
        super().__init__()
        self.load = load
        self.transport: Any = None
        self.conversation_id = ""
        self.assigned: asyncio.Event | None = None

    def on_ws_connected(self, transport: Any) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        if frame.msg_type != picows.WSMsgType.BINARY:
            return
        now = time.perf_counter()
        for each in frame_pb2.Batch.FromString(frame.get_payload_as_bytes()).frames:
            kind = each.WhichOneof("kind")
            if kind == "push":
                if each.push.HasField("message"):
                    self.load.delivered(self, each.push.message, now)
            elif kind == "send_ack":
                self.load.acked(each.send_ack.client_msg_id, now)
            elif kind == "head" and self.load.due:
                self.load.heads += 1
            elif kind == "error":
                self.load.errors += 1
                self.load.last_error = each.error.message

    def send(self, **kind: Any) -> None:
        """Send one frame."""
        batch = frame_pb2.Batch(frames=[frame_pb2.Frame(**kind)])
        self.transport.send(picows.WSMsgType.BINARY, batch.SerializeToString())


class Load:
    """All pairs of this process."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.due: dict[str, float] = {}
        self.ack: list[float] = []
        self.delivery: list[float] = []
        self.received: dict[str, int] = {}
        self.errors = 0
        self.heads = 0  # the server says: something may have been missed, Sync
        self.last_error = ""
        self.number = 0
        self.last_seq: dict[str, int] = {}
        self.out_of_order = 0

    def acked(self, client_msg_id: str, now: float) -> None:
        """A SendAck came."""
        due = self.due.get(client_msg_id)
        if due is not None:
            self.ack.append(now - due)

    def delivered(self, peer: Peer, message: Any, now: float) -> None:
        """A push came to an agent (or the greeting to a visitor)."""
        if peer.assigned is not None:
            if message.client_msg_id.startswith("greeting"):
                peer.assigned.set()
            return
        key = message.client_msg_id
        due = self.due.get(key)
        if due is None:
            return
        count = self.received.get(key, 0)
        self.received[key] = count + 1
        if not count:
            self.delivery.append(now - due)
            if message.seq <= self.last_seq.get(message.conversation_id, 0):
                self.out_of_order += 1
            self.last_seq[message.conversation_id] = message.seq

    async def connect(self, token: str) -> Peer:
        """Open one connection and say Hello."""
        _, peer = await picows.ws_connect(
            lambda: Peer(self),
            self.plan["url"],
            extra_headers={"Sec-WebSocket-Protocol": "deskwire.v1"},
            read_buffer_init_size=2048,
            use_aiofastnet=False,
        )
        assert isinstance(peer, Peer)
        peer.send(hello=frame_pb2.Hello(token=token, client="bench"))
        return peer

    async def run(self) -> None:
        """Set up, then one step per rate."""
        plan = self.plan
        signer = TokenSigner(KeySet.load(plan["keys_file"]))
        tenant = plan["tenant"]
        operator = signer.mint(tenant=tenant, role=Role.OPERATOR, subject="bench")
        channel = make_channel(plan["chat"], token=lambda: operator)
        stub = agent_service_pb2_grpc.AgentServiceStub(channel)
        agents, visitors = [], []
        for number in range(plan["pairs"]):
            subject = f"agent-{plan['part']}-{number}"
            agents.append(
                await self.connect(signer.mint(tenant=tenant, role=Role.AGENT, subject=subject))
            )
            await stub.SetAgentStatus(
                agent_service_pb2.SetAgentStatusRequest(
                    request_id=subject,
                    agent_id=subject,
                    status=agent_pb2.AGENT_STATUS_AVAILABLE,
                    capacity=1,
                )
            )
            token = signer.mint(
                tenant=tenant, role=Role.VISITOR, subject=f"visitor-{plan['part']}-{number}"
            )
            visitor = await self.connect(token)
            visitor.conversation_id = str(uuid.uuid4())
            visitor.assigned = asyncio.Event()
            visitors.append(visitor)
            self.send(visitor, time.perf_counter())
        for visitor in visitors:
            assert visitor.assigned is not None
            await asyncio.wait_for(visitor.assigned.wait(), 60)
        await channel.close()
        gc.collect()
        gc.freeze()
        pinging = asyncio.create_task(self.ping(agents))
        for rate in plan["rates"]:
            print(json.dumps(await self.step(visitors, rate)), flush=True)
        pinging.cancel()

    async def ping(self, agents: list[Peer]) -> None:
        """Who says nothing for long is taken for gone."""
        while True:
            for agent in agents:
                agent.send(ping=frame_pb2.Ping(id=1))
            await asyncio.sleep(_PING)

    def send(self, visitor: Peer, due: float) -> None:
        """Send the next message of a visitor."""
        self.number += 1
        key = f"{self.plan['part']}.{self.number}"
        self.due[key] = due
        send = frame_pb2.Send(conversation_id=visitor.conversation_id, client_msg_id=key)
        send.content.text = "Is there a table for two at half past eleven in the morning, please?"
        visitor.send(send=send)

    async def step(self, visitors: list[Peer], rate: float) -> dict[str, Any]:
        """Send at `rate` for the plan's seconds, after two seconds that don't count."""
        await self.pump(visitors, rate, 2.0)
        await self.settle()
        for store in (self.due, self.received):
            store.clear()
        self.ack, self.delivery, self.errors = [], [], 0
        print("{}", flush=True)  # the bench reads CPU times now
        cpu = time.process_time()
        started = time.perf_counter()
        await self.pump(visitors, rate, self.plan["seconds"])
        sending = time.perf_counter() - started
        await self.settle()
        return {
            "rate": rate,
            "sent": len(self.due),
            "received": len(self.received),
            "duplicates": sum(self.received.values()) - len(self.received),
            "out_of_order": self.out_of_order,
            "acked": len(self.ack),
            "heads": self.heads,
            "errors": self.errors,
            "last_error": self.last_error,
            "seconds": sending,
            "generator_cpu_cores": (time.process_time() - cpu) / (time.perf_counter() - started),
            "ack": self.ack,
            "delivery": self.delivery,
        }

    async def pump(self, visitors: list[Peer], rate: float, seconds: float) -> None:
        """Messages at an even rate, round robin."""
        started = time.perf_counter()
        sent = 0
        while True:
            now = time.perf_counter() - started
            if now >= seconds:
                return
            while sent < now * rate:
                self.send(visitors[sent % len(visitors)], started + sent / rate)
                sent += 1
            await asyncio.sleep(_TICK)

    async def settle(self) -> None:
        """Wait for what is on its way."""
        deadline = time.perf_counter() + _GRACE
        while len(self.received) < len(self.due) and time.perf_counter() < deadline:
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    uvloop.run(Load(json.loads(sys.argv[1])).run())
