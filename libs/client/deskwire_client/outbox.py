"""Sends that wait for their SendAck: in order, and sent again after every break."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from deskwire.chat.v1 import conversation_pb2
from deskwire.gateway.v1 import frame_pb2
from deskwire_client.connection import BATCH_OVERHEAD, FRAME_OVERHEAD, MAX_FRAMES, Connection
from deskwire_client.errors import refusal, seconds, too_large

_SHORTEST_HOLD: Final = 0.02
_LOOK_AGAIN: Final = 0.05


@dataclass(slots=True)
class _Waiting:
    """A Send without its SendAck."""

    send: frame_pb2.Send
    future: asyncio.Future[frame_pb2.SendAck]
    in_flight: bool = False


class Outbox:
    """The Sends of one client. A Send's key is its conversation and its client_msg_id."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: OrderedDict[tuple[str, str], _Waiting] = OrderedDict()
        self._held: dict[str, asyncio.TimerHandle] = {}
        self._window = 1
        self._in_flight = 0

    def add(self, send: frame_pb2.Send) -> asyncio.Future[frame_pb2.SendAck]:
        """Queue a Send behind those queued before, and send those that may be sent."""
        future: asyncio.Future[frame_pb2.SendAck] = asyncio.get_running_loop().create_future()
        self._waiting[send.conversation_id, send.client_msg_id] = _Waiting(send, future)
        self.flush()
        return future

    def again(self, window: int) -> None:
        """A connection opened: Sends under way on the last one count as unsent. `window`: Sends without an ack."""
        self._window = window
        self._in_flight = 0
        for waiting in self._waiting.values():
            waiting.in_flight = False

    def flush(self) -> None:
        """Send the waiting Sends that fit into the window, in messages of the size that the server accepts."""
        if not self._connection.is_open:
            return
        limit = self._connection.max_message
        frames: list[frame_pb2.Frame] = []
        size = BATCH_OVERHEAD
        for key, waiting in list(self._waiting.items()):
            if self._in_flight >= self._window:
                break
            if waiting.in_flight or key[0] in self._held:
                continue
            frame = frame_pb2.Frame(send=waiting.send)
            bytes_more = frame.ByteSize() + FRAME_OVERHEAD
            if BATCH_OVERHEAD + bytes_more > limit:
                self._refuse(key, too_large("message", limit))
                continue
            if size + bytes_more > limit or len(frames) == MAX_FRAMES:
                self._connection.write(frames)
                frames, size = [], BATCH_OVERHEAD
            waiting.in_flight = True
            self._in_flight += 1
            frames.append(frame)
            size += bytes_more
        self._connection.write(frames)

    def acked(self, ack: frame_pb2.SendAck) -> conversation_pb2.Content | None:
        """Settle a Send that is stored; return its content, or None for a repeated ack."""
        waiting = self._waiting.pop((ack.conversation_id, ack.client_msg_id), None)
        if waiting is None:
            return None
        self._in_flight -= waiting.in_flight
        if not waiting.future.done():
            waiting.future.set_result(ack)
        return waiting.send.content

    def refused(self, error: frame_pb2.Error) -> bool:
        """End a Send refused for good, hold the line of one refused for now; return whether the error was a Send's."""
        key = (error.conversation_id, error.client_msg_id)
        waiting = self._waiting.get(key)
        if waiting is None:
            return False
        self._in_flight -= waiting.in_flight
        waiting.in_flight = False
        if not error.temporary:
            self._refuse(key, refusal(error))
            self.flush()
        elif error.conversation_id not in self._held:
            # The whole line is sent again later, which keeps its order.
            self._hold(error.conversation_id, max(_SHORTEST_HOLD, seconds(error.retry_after)))
        return True

    def fail(self, error: Exception) -> None:
        """End all waiting Sends with an error."""
        for timer in self._held.values():
            timer.cancel()
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_exception(error)
        self._waiting.clear()

    def _refuse(self, key: tuple[str, str], error: Exception) -> None:
        waiting = self._waiting.pop(key)
        if not waiting.future.done():
            waiting.future.set_exception(error)

    def _hold(self, conversation_id: str, pause: float) -> None:
        loop = asyncio.get_running_loop()
        self._held[conversation_id] = loop.call_later(pause, self._release, conversation_id)

    def _release(self, conversation_id: str) -> None:
        line = [each for (owner, _), each in self._waiting.items() if owner == conversation_id]
        if any(each.in_flight for each in line) and self._connection.is_open:
            # Answers of the old line are still to come.
            self._hold(conversation_id, _LOOK_AGAIN)
            return
        del self._held[conversation_id]
        self.flush()
