"""Calls over the connection that wait for their result: made again after every break."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from google.protobuf.message import Message

from deskwire.common.v1 import error_reason_pb2
from deskwire.gateway.v1 import frame_pb2
from deskwire_client.connection import BATCH_OVERHEAD, FRAME_OVERHEAD, Connection
from deskwire_client.errors import refusal, too_large
from deskwire_client.tokens import Tokens


@dataclass(slots=True)
class _Call:
    """An Rpc without its RpcResult."""

    rpc: frame_pb2.Rpc
    future: asyncio.Future[bytes]
    in_flight: bool = False


class Calls:
    """The calls of one client."""

    def __init__(self, connection: Connection, tokens: Tokens) -> None:
        self._connection = connection
        self._tokens = tokens
        self._waiting: OrderedDict[int, _Call] = OrderedDict()
        self._last = 0
        self._limit = 1
        self._brings_token = False

    async def make(
        self, method: str, request: Message, *, timeout: float, traceparent: str
    ) -> bytes:
        """Return the encoded response. Raises Refused, TimeoutError, and the error given to `fail`."""
        self._last += 1
        number = self._last
        rpc = frame_pb2.Rpc(
            id=number, method=method, request=request.SerializeToString(), traceparent=traceparent
        )
        rpc.timeout.FromMilliseconds(int(timeout * 1000))
        call = _Call(rpc, asyncio.get_running_loop().create_future())
        self._waiting[number] = call
        self.flush()
        try:
            async with asyncio.timeout(timeout):
                return await call.future
        finally:
            if self._waiting.pop(number, None) is not None:
                self.flush()

    def again(self, limit: int) -> None:
        """A connection opened: calls under way on the last one count as not sent. `limit`: calls at a time."""
        self._limit = limit
        for call in self._waiting.values():
            call.in_flight = False

    def flush(self) -> None:
        """Send the waiting calls that the server allows; each in a message of its own, since requests may be large."""
        if not self._connection.is_open:
            return
        in_flight = sum(each.in_flight for each in self._waiting.values())
        for call in list(self._waiting.values()):
            if in_flight >= self._limit:
                return
            if not call.in_flight and not call.future.done():
                in_flight += self._say(call)

    def _say(self, call: _Call) -> bool:
        """Send a call, unless it is too large; return whether it was sent."""
        if self._brings_token:
            call.rpc.token = self._tokens.used
        frame = frame_pb2.Frame(rpc=call.rpc)
        limit = self._connection.max_message
        if BATCH_OVERHEAD + frame.ByteSize() + FRAME_OVERHEAD > limit:
            call.future.set_exception(too_large("request", limit))
            return False
        call.in_flight = True
        self._connection.write([frame])
        return True

    def answered(self, result: frame_pb2.RpcResult) -> None:
        """Settle a call. A second answer to a call that was made again after a break is ignored."""
        call = self._waiting.get(result.id)
        if call is None:
            return
        missing = error_reason_pb2.ERROR_REASON_TOKEN_MISSING
        if result.error.reason == missing and not call.rpc.token:
            # The server keeps no visitor's token.
            self._brings_token, call.in_flight = True, False
            self.flush()
            return
        del self._waiting[result.id]
        if not call.future.done():
            if result.HasField("error"):
                call.future.set_exception(refusal(result.error))
            else:
                call.future.set_result(result.response)
        self.flush()

    def fail(self, error: Exception) -> None:
        """End all waiting calls with an error."""
        for call in self._waiting.values():
            if not call.future.done():
                call.future.set_exception(error)
