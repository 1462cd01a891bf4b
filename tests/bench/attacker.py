"""The attackers of a bench: `python attacker.py '{"kind": "sync", "url": …, "keys_file": …, "seconds": …}'`.

Visitors of a tenant of their own. They send what the gateway would let through and a bit more, or connect as fast as
they can, and read nothing but what keeps their sockets from filling.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from typing import Any, Final

import picows
import uvloop
from load import yield_to_servers

from deskwire.gateway.v1 import frame_pb2
from deskwire_common.auth import KeySet, Role, TokenSigner

VISITORS: Final = 4
RATE: Final = 1_000
"""Frames a second of each visitor; the gateway allows 800 of the cheapest."""
CONNECTS: Final = 10_000
_AT_ONCE: Final = 500
_TICK: Final = 0.01


class Silent(picows.WSListener):
    """Reads and forgets."""

    def on_ws_connected(self, transport: Any) -> None:
        self.transport = transport


def frame(kind: str, number: int) -> frame_pb2.Frame:
    """One frame of a flood, about a conversation that isn't there."""
    talk = str(uuid.uuid4())
    if kind == "typing":
        return frame_pb2.Frame(typing=frame_pb2.Typing(conversation_id=talk, typing=True))
    if kind == "read":
        return frame_pb2.Frame(read=frame_pb2.Read(conversation_id=talk, seq=1))
    if kind == "sync":
        return frame_pb2.Frame(sync=frame_pb2.Sync(conversation_id=talk, limit=500))
    send = frame_pb2.Send(conversation_id=talk, client_msg_id=f"m-{number}")
    send.content.text = "open, please"
    return frame_pb2.Frame(send=send)


class Attack:
    """One attack, of so many seconds at the most."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._signer = TokenSigner(KeySet.load(plan["keys_file"]))
        self._until = time.perf_counter() + plan["seconds"]

    async def run(self) -> None:
        if self._plan["kind"] == "connects":
            await asyncio.gather(*(self._storm() for _ in range(_AT_ONCE)))
        else:
            await asyncio.gather(*(self._flood(number) for number in range(VISITORS)))

    async def _connect(self, subject: str) -> Silent:
        token = self._signer.mint(tenant="attackers", role=Role.VISITOR, subject=subject)
        _, peer = await picows.ws_connect(
            Silent,
            self._plan["url"],
            extra_headers={"Sec-WebSocket-Protocol": "deskwire.v1"},
            websocket_handshake_timeout=60,
            use_aiofastnet=False,
            proxy=None,
            local_addr=("127.0.0.90", 0),
        )
        assert isinstance(peer, Silent)
        hello = frame_pb2.Frame(hello=frame_pb2.Hello(token=token, client="attacker"))
        self._send(peer, [hello])
        return peer

    @staticmethod
    def _send(peer: Silent, frames: list[frame_pb2.Frame]) -> None:
        batch = frame_pb2.Batch(frames=frames)
        peer.transport.send(picows.WSMsgType.BINARY, batch.SerializeToString())

    async def _flood(self, visitor: int) -> None:
        peer = await self._connect(f"flood-{visitor}")
        number = 0
        while time.perf_counter() < self._until:
            frames = [frame(self._plan["kind"], number + each) for each in range(int(RATE * _TICK))]
            number += len(frames)
            self._send(peer, frames)
            await asyncio.sleep(_TICK)

    async def _storm(self) -> None:
        for _ in range(CONNECTS // _AT_ONCE):
            if time.perf_counter() >= self._until:
                return
            try:
                await self._connect(f"storm-{uuid.uuid4().hex}")
            except (OSError, picows.WSError):
                await asyncio.sleep(_TICK)


if __name__ == "__main__":
    yield_to_servers()
    uvloop.run(Attack(json.loads(sys.argv[1])).run())
