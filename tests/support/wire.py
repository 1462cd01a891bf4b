"""A client of the `websockets` library and raw protobuf, which shares no line with deskwire's own."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import pytest
from google.protobuf.message import Message
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from deskwire.common.v1 import error_reason_pb2
from deskwire.gateway.v1 import frame_pb2
from support.suite import new_id


class Wire:
    """One raw connection."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.number = 0
        self.welcome = frame_pb2.Welcome()
        self._frames: list[frame_pb2.Frame] = []

    async def greet(self, token: str, **hello: Any) -> None:
        """Send Hello, and wait for the Welcome."""
        await self.say(hello=frame_pb2.Hello(token=token, **hello))
        self.welcome = await self.hear("welcome")

    async def resume(self, token: str, before: Wire) -> frame_pb2.Resumed:
        """Resume the session of an earlier connection."""
        resume = frame_pb2.Resume(session_id=before.welcome.session_id, last_number=before.number)
        await self.greet(token, resume=resume)
        self.number = before.number
        found: frame_pb2.Resumed = await self.hear("resumed")
        return found

    async def say(self, **kind: Any) -> None:
        await self.raw(frame_pb2.Batch(frames=[frame_pb2.Frame(**kind)]).SerializeToString())

    async def raw(self, data: bytes | str) -> None:
        await self.socket.send(data)

    async def hear(self, kind: str) -> Any:
        """Return the next frame of a kind; skip others."""
        return await self.hear_one_of(kind)

    async def hear_one_of(self, *kinds: str) -> Any:
        """Return the next frame of one of some kinds; skip others."""
        while True:
            while self._frames:
                frame = self._frames.pop(0)
                if (kind := frame.WhichOneof("kind")) in kinds:
                    return getattr(frame, str(kind))
            data = await asyncio.wait_for(self.socket.recv(), 30)
            assert isinstance(data, bytes)
            batch = frame_pb2.Batch.FromString(data)
            self._frames = list(batch.frames)
            self.number = batch.number or self.number

    async def refused(self) -> str:
        """Return the reason of the next Error, which must have a message too."""
        error = await self.hear("error")
        assert error.message
        return reason(error.reason)

    async def ended(self) -> tuple[str, int]:
        """Return the reason of the next Goodbye, and the close code after it."""
        goodbye = await self.hear("goodbye")
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await self.socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == goodbye.code
        assert goodbye.reconnect == (goodbye.code < 3500)
        return reason(goodbye.reason), goodbye.code

    async def send(self, conversation_id: str, text: str, client_msg_id: str = "") -> None:
        send = frame_pb2.Send(
            conversation_id=conversation_id, client_msg_id=client_msg_id or new_id()
        )
        send.content.text = text
        await self.say(send=send)

    async def call(self, number: int, method: str, request: Message, **more: Any) -> None:
        """Send an Rpc frame; `method` is `Service/Method` of chat."""
        rpc = frame_pb2.Rpc(
            id=number,
            method=f"/deskwire.chat.v1.{method}",
            request=request.SerializeToString(),
            **more,
        )
        await self.say(rpc=rpc)

    async def result(self, number: int) -> frame_pb2.RpcResult:
        """Return the next RpcResult, which must be that of call `number`."""
        found: frame_pb2.RpcResult = await self.hear("rpc_result")
        assert found.id == number, found
        return found

    async def works(self) -> None:
        """Check that a message sent on this connection is still stored."""
        await self.send(str(uuid.uuid4()), "are you there?")
        assert (await self.hear("send_ack")).seq == 1


class HasUrl(Protocol):
    """A desk or a world."""

    @property
    def url(self) -> str: ...


def reason(number: int) -> str:
    return error_reason_pb2.ErrorReason.Name(error_reason_pb2.ErrorReason.ValueType(number))[13:]


@asynccontextmanager
async def wire(d: HasUrl, token: str = "", **options: Any) -> AsyncIterator[Wire]:
    """Open a connection; with a token, also send Hello and wait for the Welcome."""
    async with connect(d.url, subprotocols=["deskwire.v1"], **options) as socket:  # type: ignore[list-item]
        found = Wire(socket)
        if token:
            await found.greet(token)
        yield found
