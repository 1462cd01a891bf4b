"""A connection to the gateway that comes back by itself, loses nothing and keeps the order.

Sends wait in an outbox until their SendAck and are sent again after every break. Messages are handed out in `seq` order
per conversation, each once; a gap is filled by Sync before anything after it is handed out.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Self

import picows

from deskwire.chat.v1 import conversation_pb2
from deskwire.common.v1 import actor_pb2, error_reason_pb2
from deskwire.gateway.v1 import frame_pb2

SUBPROTOCOL: Final = "deskwire.v1"
_FIRST_BACKOFF: Final = 0.2
_MAX_BACKOFF: Final = 10.0
_HANDSHAKE: Final = 10.0
_DONT_COME_BACK: Final = 3500
_MAX_FRAMES: Final = 32
"""Sends per message."""
_MAX_MESSAGE: Final = 16_384
"""Bytes per message, unless Welcome says otherwise."""
_FRAME_OVERHEAD: Final = 6
"""Tag and length of a frame in its batch."""

TokenSource = str | Callable[[], str | Awaitable[str]]
"""A token, or where to get a new one: asked at every connect."""


class Refused(Exception):
    """The server refused something for good; `reason` is the contract's name: `CONVERSATION_CLOSED`."""

    def __init__(self, reason: int, message: str) -> None:
        self.reason = error_reason_pb2.ErrorReason.Name(
            error_reason_pb2.ErrorReason.ValueType(reason)
        ).removeprefix("ERROR_REASON_")
        super().__init__(f"{self.reason}: {message}")


class Closed(Exception):
    """The client is closed."""


@dataclass(slots=True)
class _Waiting:
    """A Send without its SendAck."""

    send: frame_pb2.Send
    future: asyncio.Future[frame_pb2.SendAck]
    in_flight: bool = False


@dataclass(slots=True)
class _Thread:
    """What is known of one conversation: everything up to `seq` was handed out."""

    epoch: int = 0
    seq: int = 0
    target: int = 0
    early: dict[int, conversation_pb2.Message] = field(default_factory=dict)
    syncing: bool = False


class _Socket(picows.WSListener):
    """One WebSocket of a client."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client
        self.transport: Any = None
        self.lost = asyncio.get_running_loop().create_future()
        self.close_code = 1006

    def on_ws_connected(self, transport: Any) -> None:
        self.transport = transport

    def on_ws_disconnected(self, _transport: Any) -> None:
        self.transport = None
        if not self.lost.done():
            self.lost.set_result(None)

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        if frame.msg_type == picows.WSMsgType.BINARY:
            for each in frame_pb2.Batch.FromString(frame.get_payload_as_bytes()).frames:
                self._client._receive(each)  # noqa: SLF001 - same module
        elif frame.msg_type == picows.WSMsgType.CLOSE:
            self.close_code = frame.get_close_code() or 1005
            transport.send_close(self.close_code)
            transport.disconnect()

    def send(self, frames: list[frame_pb2.Frame]) -> None:
        if self.transport is not None and frames:
            data = frame_pb2.Batch(frames=frames).SerializeToString()
            self.transport.send(picows.WSMsgType.BINARY, data)


class Client:
    """One visitor, agent or bot. Use it as `async with Client(url, token) as client`."""

    def __init__(
        self,
        url: str,
        token: TokenSource,
        *,
        name: str = "deskwire-client/0.1.0",
        on_push: Callable[[frame_pb2.Push], None] | None = None,
    ) -> None:
        """`url` is the gateway's, `ws://host:port/ws`. `on_push` gets what `updates` would give, without a queue."""
        self._url = url
        self._token = token
        self._name = name
        self._updates: asyncio.Queue[frame_pb2.Push | None] = asyncio.Queue()
        self._on_push = on_push or self._updates.put_nowait
        self._outbox: OrderedDict[tuple[str, str], _Waiting] = OrderedDict()
        self._threads: dict[str, _Thread] = {}
        self._held: dict[str, asyncio.TimerHandle] = {}
        self._socket: _Socket | None = None
        self._welcome: asyncio.Future[frame_pb2.Welcome] | None = None
        self._window = 1
        self._max_message = _MAX_MESSAGE
        self._in_flight = 0
        self._ping_interval = 25.0
        self._pings = 0
        self._last_sent = 0.0
        self._last_seen = 0.0
        self._goodbye: frame_pb2.Goodbye | None = None
        self._task: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None
        self._actor = actor_pb2.Actor()
        self.reconnects = 0

    # -------------------------------------------------------------------------------------- public

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self, *, timeout: float = 15.0) -> None:
        """Connect and stay connected. Raises Refused for a token that isn't taken, TimeoutError."""
        self._first = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._stay_connected(), name="deskwire-client")
        try:
            async with asyncio.timeout(timeout):
                await self._first
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Say Goodbye. Sends without their ack raise Closed: whether they were stored isn't known."""
        if self._socket is not None:
            self._socket.send([frame_pb2.Frame(goodbye=frame_pb2.Goodbye(code=1000))])
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._fail(Closed("the client was closed"))

    async def send(
        self, conversation_id: str, text: str, *, client_msg_id: str = "", traceparent: str = ""
    ) -> frame_pb2.SendAck:
        """Store a message; returns when it is committed, however often the connection breaks meanwhile.

        A visitor opens a conversation by a new conversation_id (a UUID of their own). Raises Refused, Closed.
        """
        return await self.post(
            conversation_id, text, client_msg_id=client_msg_id, traceparent=traceparent
        )

    def post(
        self, conversation_id: str, text: str, *, client_msg_id: str = "", traceparent: str = ""
    ) -> asyncio.Future[frame_pb2.SendAck]:
        """Queue a message, in order after those before; the future is `send`'s result."""
        if self._task is None or self._task.done():
            raise Closed("the client is not connected")
        send = frame_pb2.Send(
            conversation_id=conversation_id,
            client_msg_id=client_msg_id or str(uuid.uuid4()),
            content=conversation_pb2.Content(text=text),
            traceparent=traceparent,
        )
        future: asyncio.Future[frame_pb2.SendAck] = asyncio.get_running_loop().create_future()
        self._outbox[conversation_id, send.client_msg_id] = _Waiting(send, future)
        self._flush()
        return future

    async def updates(self) -> AsyncIterator[frame_pb2.Push]:
        """What happens, until the client is closed: messages in order (one's own too), conversations, customers."""
        while True:
            push = await self._updates.get()
            if push is None:
                return
            yield push

    def position(self, conversation_id: str) -> int:
        """The seq up to which this client has handed out a conversation."""
        return self._threads.get(conversation_id, _Thread()).seq

    @property
    def connected(self) -> bool:
        """Whether a connection is open now."""
        return self._socket is not None

    # ---------------------------------------------------------------------------------- connection

    async def _stay_connected(self) -> None:
        backoff = _FIRST_BACKOFF
        while True:
            try:
                await self._connect_once()
                backoff = _FIRST_BACKOFF
            except (OSError, TimeoutError, picows.WSError) as error:
                if (
                    self._first is not None
                    and not self._first.done()
                    and isinstance(error, OSError)
                ):
                    # Nobody listens there: at the first time that is for the caller to know.
                    self._first.set_exception(error)
                    return
            except Refused as error:
                self._fail(error)
                return
            finally:
                self._socket = None
            self.reconnects += 1
            pause = backoff * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            if self._goodbye is not None:
                pause = max(pause, _seconds(self._goodbye.after)) + random.uniform(  # noqa: S311 - jitter
                    0, _seconds(self._goodbye.spread)
                )
                self._goodbye = None
            await asyncio.sleep(pause)
            backoff = min(backoff * 2, _MAX_BACKOFF)

    async def _connect_once(self) -> None:
        token = self._token() if callable(self._token) else self._token
        if inspect.isawaitable(token):
            token = await token
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_HANDSHAKE):
            _, socket = await picows.ws_connect(
                lambda: _Socket(self),
                self._url,
                extra_headers={"Sec-WebSocket-Protocol": SUBPROTOCOL},
                read_buffer_init_size=2048,
                use_aiofastnet=False,
            )
        assert isinstance(socket, _Socket)  # noqa: S101 - for the type checker
        try:
            self._welcome = loop.create_future()
            hello = frame_pb2.Hello(token=token, client=self._name)
            socket.send([frame_pb2.Frame(hello=hello)])
            async with asyncio.timeout(_HANDSHAKE):
                await asyncio.wait(
                    {self._welcome, socket.lost}, return_when=asyncio.FIRST_COMPLETED
                )
            if not self._welcome.done():
                self._judge(socket)
                return
            welcome = self._welcome.result()
            self._window = welcome.max_unacked_sends or 1
            self._max_message = welcome.max_message_bytes or _MAX_MESSAGE
            self._ping_interval = _seconds(welcome.ping_interval) or 25.0
            self._socket = socket
            self._last_seen = self._last_sent = loop.time()
            self._in_flight = 0
            for waiting in self._outbox.values():
                waiting.in_flight = False
            for conversation_id, thread in self._threads.items():
                thread.syncing = False
                # Also what came with Welcome in one read, before there was a socket to ask on.
                if thread.early or thread.seq < thread.target:
                    self._sync(conversation_id, thread)
            self._flush()
            if self._first is not None and not self._first.done():
                self._first.set_result(None)
            await self._beat(socket)
            self._judge(socket)
        finally:
            if socket.transport is not None:
                socket.transport.disconnect()

    async def _beat(self, socket: _Socket) -> None:
        """Ping when nothing was sent for an interval; leave when nothing was heard for two."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.wait({socket.lost}, timeout=self._ping_interval / 2)
            if socket.lost.done():
                return
            now = loop.time()
            if now - self._last_seen > 2 * self._ping_interval:
                return
            if now - self._last_sent >= self._ping_interval / 2:
                self._pings += 1
                self._write([frame_pb2.Frame(ping=frame_pb2.Ping(id=self._pings))])

    def _judge(self, socket: _Socket) -> None:
        """Raise Refused when the server said not to come back."""
        goodbye = self._goodbye
        if goodbye is not None and not goodbye.reconnect:
            raise Refused(goodbye.reason, goodbye.message)
        if socket.close_code >= _DONT_COME_BACK:
            raise Refused(0, f"closed with {socket.close_code}")

    def _fail(self, error: Exception) -> None:
        self._socket = None
        if self._first is not None and not self._first.done():
            self._first.set_exception(error)
        for timer in self._held.values():
            timer.cancel()
        for waiting in self._outbox.values():
            if not waiting.future.done():
                waiting.future.set_exception(error)
        self._outbox.clear()
        self._updates.put_nowait(None)

    def _write(self, frames: list[frame_pb2.Frame]) -> None:
        if self._socket is not None and frames:
            self._last_sent = asyncio.get_running_loop().time()
            self._socket.send(frames)

    # ---------------------------------------------------------------------------------------- sends

    def _flush(self) -> None:
        """Send what waits, as far as the window goes, in messages of the size that the server takes."""
        if self._socket is None:
            return
        frames: list[frame_pb2.Frame] = []
        size = 0
        for key, waiting in list(self._outbox.items()):
            if self._in_flight >= self._window:
                break
            if waiting.in_flight or key[0] in self._held:
                continue
            frame = frame_pb2.Frame(send=waiting.send)
            bytes_more = frame.ByteSize() + _FRAME_OVERHEAD
            if bytes_more > self._max_message:
                self._refuse_large(key, waiting)
                continue
            if size + bytes_more > self._max_message or len(frames) == _MAX_FRAMES:
                self._write(frames)
                frames, size = [], 0
            waiting.in_flight = True
            self._in_flight += 1
            frames.append(frame)
            size += bytes_more
        self._write(frames)

    def _refuse_large(self, key: tuple[str, str], waiting: _Waiting) -> None:
        del self._outbox[key]
        if not waiting.future.done():
            text = f"the message has more than the {self._max_message} bytes that the server takes"
            waiting.future.set_exception(Refused(error_reason_pb2.ERROR_REASON_TOO_LARGE, text))

    def _acked(self, ack: frame_pb2.SendAck) -> None:
        waiting = self._outbox.pop((ack.conversation_id, ack.client_msg_id), None)
        if waiting is None:
            return
        self._in_flight -= waiting.in_flight
        if not waiting.future.done():
            waiting.future.set_result(ack)
        message = conversation_pb2.Message(
            message_id=ack.message_id,
            conversation_id=ack.conversation_id,
            seq=ack.seq,
            sender=self._actor,
            client_msg_id=ack.client_msg_id,
            content=waiting.send.content,
            create_time=ack.create_time,
        )
        self._arrived(message, ack.epoch)
        self._flush()

    def _refused(self, error: frame_pb2.Error) -> None:
        key = (error.conversation_id, error.client_msg_id)
        waiting = self._outbox.get(key)
        if waiting is None:
            if error.conversation_id in self._threads:
                # A Sync that failed: the next Head or push asks again.
                self._threads[error.conversation_id].syncing = False
            return
        self._in_flight -= waiting.in_flight
        waiting.in_flight = False
        if not error.temporary:
            del self._outbox[key]
            if not waiting.future.done():
                waiting.future.set_exception(Refused(error.reason, error.message))
            self._flush()
            return
        if error.conversation_id not in self._held:
            # Order is kept by sending the whole line again, once it may.
            self._held[error.conversation_id] = asyncio.get_running_loop().call_later(
                max(0.02, _seconds(error.retry_after)), self._release, error.conversation_id
            )

    def _release(self, conversation_id: str) -> None:
        line = [each for (owner, _), each in self._outbox.items() if owner == conversation_id]
        if any(each.in_flight for each in line) and self._socket is not None:
            # Answers of the old line are still to come.
            self._held[conversation_id] = asyncio.get_running_loop().call_later(
                0.05, self._release, conversation_id
            )
            return
        del self._held[conversation_id]
        self._flush()

    # --------------------------------------------------------------------------------------- frames

    def _receive(self, frame: frame_pb2.Frame) -> None:
        self._last_seen = asyncio.get_running_loop().time()
        kind = frame.WhichOneof("kind")
        if kind == "push":
            self._pushed(frame.push)
        elif kind == "send_ack":
            self._acked(frame.send_ack)
        elif kind == "synced":
            self._synced(frame.synced)
        elif kind == "head":
            self._head(frame.head.conversation_id, frame.head.epoch, frame.head.seq)
        elif kind == "error":
            self._refused(frame.error)
        elif kind == "ping":
            self._write([frame_pb2.Frame(pong=frame_pb2.Pong(id=frame.ping.id))])
        elif kind == "goodbye":
            self._goodbye = frame.goodbye
        elif kind == "welcome" and self._welcome is not None and not self._welcome.done():
            self._welcome.set_result(frame.welcome)

    def _pushed(self, push: frame_pb2.Push) -> None:
        if push.WhichOneof("subject") == "message":
            self._arrived(push.message, push.epoch)
            return
        if push.WhichOneof("subject") == "conversation":
            item = push.conversation
            self._on_push(push)
            self._head(item.conversation_id, item.epoch, item.head_seq)
            return
        self._on_push(push)

    def _thread(self, conversation_id: str, epoch: int) -> _Thread:
        thread = self._threads.get(conversation_id)
        if thread is None or (thread.epoch and thread.epoch != epoch):
            thread = self._threads[conversation_id] = _Thread()
        thread.epoch = epoch
        return thread

    def _arrived(self, message: conversation_pb2.Message, epoch: int) -> None:
        thread = self._thread(message.conversation_id, epoch)
        if message.seq <= thread.seq:
            return
        thread.early[message.seq] = message
        self._hand_out(thread, epoch)
        if thread.early:
            self._sync(message.conversation_id, thread)

    def _hand_out(self, thread: _Thread, epoch: int) -> None:
        while (message := thread.early.pop(thread.seq + 1, None)) is not None:
            thread.seq += 1
            self._on_push(frame_pb2.Push(message=message, epoch=epoch))

    def _head(self, conversation_id: str, epoch: int, seq: int) -> None:
        thread = self._thread(conversation_id, epoch)
        thread.target = max(thread.target, seq)
        if thread.seq < seq:
            self._sync(conversation_id, thread)

    def _sync(self, conversation_id: str, thread: _Thread) -> None:
        if thread.syncing or self._socket is None:
            return
        thread.syncing = True
        sync = frame_pb2.Sync(conversation_id=conversation_id, after_seq=thread.seq)
        self._write([frame_pb2.Frame(sync=sync)])

    def _synced(self, synced: frame_pb2.Synced) -> None:
        thread = self._thread(synced.conversation_id, synced.epoch)
        thread.syncing = False
        thread.target = max(thread.target, synced.head_seq)
        for message in synced.messages:
            if message.seq > thread.seq:
                thread.early[message.seq] = message
        self._hand_out(thread, synced.epoch)
        if thread.early or thread.seq < thread.target:
            self._sync(synced.conversation_id, thread)


def _seconds(duration: Any) -> float:
    return float(duration.seconds) + float(duration.nanos) / 1e9
