"""One WebSocket of a client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import picows

from deskwire.gateway.v1 import frame_pb2
from deskwire_wire.limits import SUBPROTOCOL


class Socket(picows.WSListener):
    """Batches in and out. `lost` is done when the connection has ended, with `close_code`."""

    def __init__(self, receive: Callable[[frame_pb2.Batch], None]) -> None:
        super().__init__()
        self._receive = receive
        self.transport: Any = None
        self.lost = asyncio.get_running_loop().create_future()
        self.close_code = 1006

    @classmethod
    async def dial(
        cls, url: str, receive: Callable[[frame_pb2.Batch], None], *, timeout: float
    ) -> Socket:
        """Connect within `timeout` seconds. Raises OSError, TimeoutError, picows.WSError."""
        async with asyncio.timeout(timeout):
            _, socket = await picows.ws_connect(
                lambda: cls(receive),
                url,
                extra_headers={"Sec-WebSocket-Protocol": SUBPROTOCOL},
                read_buffer_init_size=2048,
                use_aiofastnet=False,
            )
        if not isinstance(socket, cls):
            # It broke before it could be handed over.
            raise ConnectionResetError("the connection was lost in its handshake")
        return socket

    def on_ws_connected(self, transport: Any) -> None:
        self.transport = transport

    def on_ws_disconnected(self, _transport: Any) -> None:
        self.transport = None
        if not self.lost.done():
            self.lost.set_result(None)

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        if frame.msg_type == picows.WSMsgType.BINARY:
            self._receive(frame_pb2.Batch.FromString(frame.get_payload_as_bytes()))
        elif frame.msg_type == picows.WSMsgType.CLOSE:
            self.close_code = frame.get_close_code() or 1005
            transport.send_close(self.close_code)
            transport.disconnect()

    def send(self, frames: list[frame_pb2.Frame], ack: int = 0) -> None:
        """Send a Batch, unless the connection has ended."""
        if self.transport is not None:
            data = frame_pb2.Batch(frames=frames, ack=ack).SerializeToString()
            self.transport.send(picows.WSMsgType.BINARY, data)

    def end(self) -> None:
        """Close the connection."""
        if self.transport is not None:
            self.transport.disconnect()
