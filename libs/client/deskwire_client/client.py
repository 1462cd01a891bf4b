"""A connection to the gateway that comes back by itself, loses nothing and keeps the order.

Sends wait in an outbox until their SendAck and are sent again after every break. A session whose connection broke is
resumed, so that a brief break costs nothing. Messages are handed out in `seq` order per conversation, each once; a gap
is filled by Sync before anything after it is handed out.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeVar

import picows
from google.protobuf.message import Message

from deskwire.chat.v1 import attachment_pb2, conversation_pb2
from deskwire.common.v1 import actor_pb2, error_reason_pb2
from deskwire.gateway.v1 import frame_pb2
from deskwire_wire.codes import may_reconnect
from deskwire_wire.limits import SUBPROTOCOL

_FIRST_BACKOFF: Final = 0.2
_MAX_BACKOFF: Final = 10.0
_HANDSHAKE: Final = 10.0
_MAX_FRAMES: Final = 32
"""Sends per message."""
_MAX_MESSAGE: Final = 16_384
"""Bytes per message, unless Welcome says otherwise."""
_FRAME_OVERHEAD: Final = 6
"""Tag and length of a frame in its batch."""
_BATCH_OVERHEAD: Final = 11
"""Batch.ack, at its largest."""
_ACK_AFTER: Final = 32
"""Messages of the server after which it is told that they are here, if nothing else is said."""
_RECEIPT_SECONDS: Final = 0.5
_REFRESH_SECONDS: Final = 60.0
"""So long before the token's end a new one is asked for; less when the token doesn't live five times that."""

TokenSource = str | Callable[[], str | Awaitable[str]]
"""A token, or where to get a new one: asked at every connect."""


Signal = frame_pb2.Typing | frame_pb2.Presence
"""What is worth knowing now, and nothing later."""


ResponseT = TypeVar("ResponseT", bound=Message)


class Refused(Exception):
    """The server refused something; `reason` is the contract's name: `CONVERSATION_CLOSED`.

    A Send is refused for good. Of a call, `temporary` says whether it may succeed later (`retry_after` seconds, if the
    server says). `metadata` is what a program needs to go on (`current_version`), `violations` pairs of field and rule.
    """

    def __init__(
        self,
        reason: int,
        message: str,
        *,
        temporary: bool = False,
        retry_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: tuple[tuple[str, str], ...] = (),
    ) -> None:
        number = error_reason_pb2.ErrorReason.ValueType(reason)
        # A newer server may have reasons that aren't known here.
        known = number in error_reason_pb2.ErrorReason.values()
        name = error_reason_pb2.ErrorReason.Name(number) if known else str(number)
        self.reason = name.removeprefix("ERROR_REASON_")
        self.temporary = temporary
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})
        self.violations = violations
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
class _Call:
    """An Rpc without its RpcResult."""

    rpc: frame_pb2.Rpc
    future: asyncio.Future[bytes]
    in_flight: bool = False


@dataclass(slots=True)
class _Thread:
    """What is known of one conversation: everything up to `seq` was handed out."""

    epoch: int = 0
    seq: int = 0
    target: int = 0
    early: dict[int, conversation_pb2.Message] = field(default_factory=dict)
    syncing: bool = False
    version: int = 0
    is_open: bool = False
    delivered_said: int = 0
    read: int = 0
    read_said: int = 0


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
            self._client._receive(  # noqa: SLF001 - same module
                frame_pb2.Batch.FromString(frame.get_payload_as_bytes())
            )
        elif frame.msg_type == picows.WSMsgType.CLOSE:
            self.close_code = frame.get_close_code() or 1005
            transport.send_close(self.close_code)
            transport.disconnect()

    def send(self, frames: list[frame_pb2.Frame], ack: int = 0) -> None:
        if self.transport is not None:
            data = frame_pb2.Batch(frames=frames, ack=ack).SerializeToString()
            self.transport.send(picows.WSMsgType.BINARY, data)


class Client:
    """One visitor, agent or bot. Use it as `async with Client(url, token) as client`."""

    def __init__(
        self,
        url: str,
        token: TokenSource,
        *,
        name: str = "deskwire-client/0.1.0",
        device_id: str = "",
        receipts: bool = True,
        on_push: Callable[[frame_pb2.Push], None] | None = None,
        on_signal: Callable[[Signal], None] = lambda _signal: None,
    ) -> None:
        """`url` is the gateway's, `ws://host:port/ws`. `on_push` gets what `updates` would give, without a queue.

        `device_id`: the user has one connection per device, the newest. `receipts`: tell the others that messages
        have arrived. `on_signal` is told who writes, and who comes and leaves.
        """
        self._url = url
        self._token = token
        self._name = name
        self._device_id = device_id
        self._receipts = receipts
        self._on_signal = on_signal
        self._updates: asyncio.Queue[frame_pb2.Push | None] = asyncio.Queue()
        self._on_push = on_push or self._updates.put_nowait
        self._outbox: OrderedDict[tuple[str, str], _Waiting] = OrderedDict()
        self._calls: OrderedDict[int, _Call] = OrderedDict()
        self._last_call = 0
        self._max_calls = 1
        self._brings_token = False
        self._used_token = ""
        self._threads: dict[str, _Thread] = {}
        self._held: dict[str, asyncio.TimerHandle] = {}
        self._socket: _Socket | None = None
        self._welcome: asyncio.Future[frame_pb2.Welcome] | None = None
        self._session_id = ""
        self._number = 0
        self._acked_number = 0
        self._backoff = (_FIRST_BACKOFF, _MAX_BACKOFF)
        self._refresh_at = 0.0
        self._unsaid: set[str] = set()
        self._saying: asyncio.TimerHandle | None = None
        self._lossless = False
        self.lossless_resumes = 0
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
        content = conversation_pb2.Content(text=text)
        return self.post_content(
            conversation_id, content, client_msg_id=client_msg_id, traceparent=traceparent
        )

    async def edit(self, conversation_id: str, seq: int, text: str) -> frame_pb2.SendAck:
        """Give an own message another text. Raises Refused, Closed."""
        content = conversation_pb2.Content(edit=conversation_pb2.Edit(seq=seq, text=text))
        return await self.post_content(conversation_id, content)

    async def redact(self, conversation_id: str, seq: int, reason: str = "") -> frame_pb2.SendAck:
        """Take a message back: it is wiped from history. Raises Refused, Closed."""
        redaction = conversation_pb2.Redaction(seq=seq, reason=reason)
        return await self.post_content(
            conversation_id, conversation_pb2.Content(redaction=redaction)
        )

    async def note(self, conversation_id: str, text: str) -> frame_pb2.SendAck:
        """Make a note that only the desk sees. Raises Refused, Closed."""
        content = conversation_pb2.Content(note=conversation_pb2.Note(text=text))
        return await self.post_content(conversation_id, content)

    async def attach(
        self, conversation_id: str, attachment: attachment_pb2.Attachment
    ) -> frame_pb2.SendAck:
        """Send a file that AttachmentService has made READY. Raises Refused, Closed."""
        reference = conversation_pb2.AttachmentReference(
            attachment_id=attachment.attachment_id,
            file_name=attachment.file_name,
            content_type=attachment.content_type,
            size_bytes=attachment.size_bytes,
        )
        content = conversation_pb2.Content(attachment=reference)
        return await self.post_content(conversation_id, content)

    def post_content(
        self,
        conversation_id: str,
        content: conversation_pb2.Content,
        *,
        client_msg_id: str = "",
        traceparent: str = "",
    ) -> asyncio.Future[frame_pb2.SendAck]:
        """Queue any content, in order after what was queued before; the future is `send`'s result."""
        if self._task is None or self._task.done():
            raise Closed("the client is not connected")
        send = frame_pb2.Send(
            conversation_id=conversation_id,
            client_msg_id=client_msg_id or str(uuid.uuid4()),
            content=content,
            traceparent=traceparent,
        )
        future: asyncio.Future[frame_pb2.SendAck] = asyncio.get_running_loop().create_future()
        self._outbox[conversation_id, send.client_msg_id] = _Waiting(send, future)
        self._flush()
        return future

    async def call(
        self,
        method: str,
        request: Message,
        response: type[ResponseT],
        *,
        timeout: float = 10.0,
        traceparent: str = "",
    ) -> ResponseT:
        """Make a unary call to chat, for example of `/deskwire.chat.v1.AgentService/SetAgentStatus`.

        It is made again when the connection breaks meanwhile: calls read, or have a request_id. Raises Refused,
        TimeoutError when no answer came within `timeout` seconds (30 at the most), Closed.
        """
        if self._task is None or self._task.done():
            raise Closed("the client is not connected")
        self._last_call += 1
        number = self._last_call
        rpc = frame_pb2.Rpc(
            id=number,
            method=method,
            request=request.SerializeToString(),
            traceparent=traceparent,
        )
        rpc.timeout.FromMilliseconds(int(timeout * 1000))
        call = _Call(rpc, asyncio.get_running_loop().create_future())
        self._calls[number] = call
        self._flush_calls()
        try:
            async with asyncio.timeout(timeout):
                return response.FromString(await call.future)
        finally:
            if self._calls.pop(number, None) is not None:
                self._flush_calls()

    async def updates(self) -> AsyncIterator[frame_pb2.Push]:
        """What happens, until the client is closed: messages in order (one's own too), conversations, customers.

        Receipts, the queue and, to agents, offers and their ends come as they are pushed; an offer may come twice.
        """
        while True:
            push = await self._updates.get()
            if push is None:
                return
            yield push

    def read(self, conversation_id: str, seq: int = 0) -> None:
        """Tell the others that a person has seen the messages up to `seq`; 0: all that were handed out."""
        thread = self._threads.setdefault(conversation_id, _Thread())
        thread.read = max(thread.read, seq or thread.seq)
        self._say(conversation_id)

    def typing(self, conversation_id: str, *, on: bool = True) -> None:
        """Tell the others that somebody writes here, or has stopped; say it again every 3 s."""
        typing = frame_pb2.Typing(conversation_id=conversation_id, typing=on)
        self._write([frame_pb2.Frame(typing=typing)])

    def position(self, conversation_id: str) -> int:
        """The seq up to which this client has handed out a conversation."""
        return self._threads.get(conversation_id, _Thread()).seq

    @property
    def connected(self) -> bool:
        """Whether a connection is open now."""
        return self._socket is not None

    # ---------------------------------------------------------------------------------- connection

    async def _stay_connected(self) -> None:
        backoff = self._backoff[0]
        while True:
            try:
                await self._connect_once()
                backoff = self._backoff[0]
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
            except Exception as error:
                # Whatever it is, nobody waits for what won't come any more.
                self._fail(error)
                raise
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
            backoff = min(backoff * 2, self._backoff[1])

    async def _new_token(self) -> str:
        token = self._token() if callable(self._token) else self._token
        self._used_token = await token if inspect.isawaitable(token) else token
        return self._used_token

    async def _connect_once(self) -> None:
        token = await self._new_token()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_HANDSHAKE):
            _, socket = await picows.ws_connect(
                lambda: _Socket(self),
                self._url,
                extra_headers={"Sec-WebSocket-Protocol": SUBPROTOCOL},
                read_buffer_init_size=2048,
                use_aiofastnet=False,
            )
        if not isinstance(socket, _Socket):
            # It broke before it could be handed over.
            raise ConnectionResetError("the connection was lost in its handshake")
        try:
            self._welcome = loop.create_future()
            hello = frame_pb2.Hello(token=token, client=self._name, device_id=self._device_id)
            if self._session_id:
                hello.resume.session_id = self._session_id
                hello.resume.last_number = self._number
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
            self._max_calls = welcome.max_calls or 1
            self._max_message = welcome.max_message_bytes or _MAX_MESSAGE
            self._ping_interval = _seconds(welcome.ping_interval) or 25.0
            self._backoff = (
                _seconds(welcome.backoff.initial) or _FIRST_BACKOFF,
                _seconds(welcome.backoff.max) or _MAX_BACKOFF,
            )
            self._lives_until(welcome.token_expire_time.seconds)
            self._socket = socket
            self._last_seen = self._last_sent = loop.time()
            self._in_flight = 0
            lossless, self._lossless = self._lossless, False
            for waiting in self._outbox.values():
                waiting.in_flight = False
            for call in self._calls.values():
                call.in_flight = False
            for conversation_id, thread in self._threads.items():
                thread.syncing = False
                # Also what came with Welcome in one read, before there was a socket to ask on. An open conversation
                # may have been closed meanwhile: its Synced says so.
                if thread.early or thread.seq < thread.target or (thread.is_open and not lossless):
                    self._sync(conversation_id, thread)
                # What was said last may have been lost with the connection.
                thread.delivered_said = thread.read_said = 0
                self._say(conversation_id)
            self._flush()
            self._flush_calls()
            if self._first is not None and not self._first.done():
                self._first.set_result(None)
            await self._beat(socket)
            self._judge(socket)
        finally:
            if socket.transport is not None:
                socket.transport.disconnect()

    async def _beat(self, socket: _Socket) -> None:
        """Ping when nothing was sent for an interval; leave when nothing was heard for two. Renew the token in time."""
        loop = asyncio.get_running_loop()
        while True:
            if callable(self._token) and self._refresh_at <= time.time():
                self._refresh_at += _REFRESH_SECONDS  # unless the answer says more
                refresh = frame_pb2.Refresh(token=await self._new_token())
                self._write([frame_pb2.Frame(refresh=refresh)])
            pause = self._ping_interval / 2
            if callable(self._token):
                pause = min(pause, max(0.0, self._refresh_at - time.time()))
            await asyncio.wait({socket.lost}, timeout=pause)
            if socket.lost.done():
                return
            now = loop.time()
            if now - self._last_seen > 2 * self._ping_interval:
                return
            if now - self._last_sent >= self._ping_interval / 2:
                self._pings += 1
                self._write([frame_pb2.Frame(ping=frame_pb2.Ping(id=self._pings))])

    def _lives_until(self, expires: float) -> None:
        now = time.time()
        self._refresh_at = expires - min(_REFRESH_SECONDS, (expires - now) / 5)

    def _judge(self, socket: _Socket) -> None:
        """Raise Refused when the server said not to come back."""
        goodbye = self._goodbye
        if goodbye is not None and not goodbye.reconnect:
            raise Refused(goodbye.reason, goodbye.message)
        if not may_reconnect(socket.close_code):
            raise Refused(0, f"closed with {socket.close_code}")

    def _fail(self, error: Exception) -> None:
        self._socket = None
        if self._saying is not None:
            self._saying.cancel()
            self._saying = None
        if self._first is not None and not self._first.done():
            self._first.set_exception(error)
        for timer in self._held.values():
            timer.cancel()
        for waiting in self._outbox.values():
            if not waiting.future.done():
                waiting.future.set_exception(error)
        self._outbox.clear()
        for call in self._calls.values():
            if not call.future.done():
                call.future.set_exception(error)
        self._updates.put_nowait(None)

    def _write(self, frames: list[frame_pb2.Frame]) -> None:
        if self._socket is not None and frames:
            self._last_sent = asyncio.get_running_loop().time()
            self._socket.send(frames, self._ack())

    def _ack(self) -> int:
        """The number to acknowledge, or 0 when the server knows it."""
        if self._acked_number == self._number:
            return 0
        self._acked_number = self._number
        return self._number

    # ---------------------------------------------------------------------------------------- sends

    def _flush(self) -> None:
        """Send what waits, as far as the window goes, in messages of the size that the server takes."""
        if self._socket is None:
            return
        frames: list[frame_pb2.Frame] = []
        size = _BATCH_OVERHEAD
        for key, waiting in list(self._outbox.items()):
            if self._in_flight >= self._window:
                break
            if waiting.in_flight or key[0] in self._held:
                continue
            frame = frame_pb2.Frame(send=waiting.send)
            bytes_more = frame.ByteSize() + _FRAME_OVERHEAD
            if _BATCH_OVERHEAD + bytes_more > self._max_message:
                self._refuse_large(key, waiting)
                continue
            if size + bytes_more > self._max_message or len(frames) == _MAX_FRAMES:
                self._write(frames)
                frames, size = [], _BATCH_OVERHEAD
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
                waiting.future.set_exception(_refusal(error))
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

    # ---------------------------------------------------------------------------------------- calls

    def _flush_calls(self) -> None:
        """Say what waits, as far as the server allows; each in a message of its own, since requests may be large."""
        if self._socket is None:
            return
        in_flight = sum(each.in_flight for each in self._calls.values())
        for call in list(self._calls.values()):
            if in_flight >= self._max_calls:
                return
            if call.in_flight or call.future.done():
                continue
            if self._brings_token:
                call.rpc.token = self._used_token
            frame = frame_pb2.Frame(rpc=call.rpc)
            if _BATCH_OVERHEAD + frame.ByteSize() + _FRAME_OVERHEAD > self._max_message:
                text = (
                    f"the request has more than the {self._max_message} bytes that the server takes"
                )
                reason = error_reason_pb2.ERROR_REASON_TOO_LARGE
                call.future.set_exception(Refused(reason, text))
                continue
            call.in_flight = True
            in_flight += 1
            self._write([frame])

    def _called(self, result: frame_pb2.RpcResult) -> None:
        # A second answer to a call that was made again after a break finds nobody.
        call = self._calls.get(result.id)
        if call is None:
            return
        missing = error_reason_pb2.ERROR_REASON_TOKEN_MISSING
        if result.error.reason == missing and not call.rpc.token:
            # The server keeps no visitor's token.
            self._brings_token, call.in_flight = True, False
            self._flush_calls()
            return
        del self._calls[result.id]
        if not call.future.done():
            if result.HasField("error"):
                call.future.set_exception(_refusal(result.error))
            else:
                call.future.set_result(result.response)
        self._flush_calls()

    # --------------------------------------------------------------------------------------- frames

    def _receive(self, batch: frame_pb2.Batch) -> None:
        for frame in batch.frames:
            self._frame(frame)
        if batch.number > self._number:
            self._number = batch.number
            if self._number - self._acked_number >= _ACK_AFTER and self._socket is not None:
                self._socket.send([], self._ack())

    def _frame(self, frame: frame_pb2.Frame) -> None:
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
        elif kind == "rpc_result":
            self._called(frame.rpc_result)
        elif kind == "error":
            self._refused(frame.error)
        elif kind == "typing":
            self._on_signal(frame.typing)
        elif kind == "presence":
            self._on_signal(frame.presence)
        elif kind == "ping":
            self._write([frame_pb2.Frame(pong=frame_pb2.Pong(id=frame.ping.id))])
        else:
            self._session_frame(kind or "", frame)

    def _session_frame(self, kind: str, frame: frame_pb2.Frame) -> None:
        if kind == "goodbye":
            self._goodbye = frame.goodbye
        elif kind == "resumed":
            self._lossless = frame.resumed.lossless
            self.lossless_resumes += frame.resumed.lossless
        elif kind == "refreshed":
            self._lives_until(frame.refreshed.token_expire_time.seconds)
        elif kind == "welcome":
            if frame.welcome.session_id != self._session_id:
                # A new session is numbered from 1.
                self._session_id, self._number, self._acked_number = frame.welcome.session_id, 0, 0
            if self._welcome is not None and not self._welcome.done():
                self._welcome.set_result(frame.welcome)

    def _pushed(self, push: frame_pb2.Push) -> None:
        if push.WhichOneof("subject") == "message":
            self._arrived(push.message, push.epoch)
            return
        if push.WhichOneof("subject") == "conversation":
            item = push.conversation
            self._altered(item)
            self._head(item.conversation_id, item.epoch, item.head_seq)
            return
        self._on_push(push)

    def _altered(self, item: conversation_pb2.Conversation) -> None:
        """Hand a conversation out, unless this version or a newer one was."""
        thread = self._thread(item.conversation_id, item.epoch)
        if item.version > thread.version:
            thread.version = item.version
            thread.is_open = item.state != conversation_pb2.CONVERSATION_STATE_CLOSED
            self._on_push(frame_pb2.Push(conversation=item))

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
            self._say(message.conversation_id)

    def _say(self, conversation_id: str) -> None:
        """Have the others told how far this user has got, in a moment and in one go."""
        self._unsaid.add(conversation_id)
        if self._saying is None:
            loop = asyncio.get_running_loop()
            self._saying = loop.call_later(_RECEIPT_SECONDS, self._say_all)

    def _say_all(self) -> None:
        self._saying = None
        unsaid, self._unsaid = self._unsaid, set()
        frames = []
        for conversation_id in unsaid if self._socket is not None else ():
            thread = self._threads.get(conversation_id, _Thread())
            if self._receipts and thread.delivered_said < thread.seq:
                thread.delivered_said = thread.seq
                delivered = frame_pb2.Delivered(conversation_id=conversation_id, seq=thread.seq)
                frames.append(frame_pb2.Frame(delivered=delivered))
            if thread.read_said < thread.read:
                thread.read_said = thread.read
                read = frame_pb2.Read(conversation_id=conversation_id, seq=thread.read)
                frames.append(frame_pb2.Frame(read=read))
        for start in range(0, len(frames), _MAX_FRAMES):
            self._write(frames[start : start + _MAX_FRAMES])

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
        if synced.HasField("conversation"):
            self._altered(synced.conversation)
        if thread.early or thread.seq < thread.target:
            self._sync(synced.conversation_id, thread)


def _refusal(error: frame_pb2.Error) -> Refused:
    return Refused(
        error.reason,
        error.message,
        temporary=error.temporary,
        retry_after=_seconds(error.retry_after) if error.HasField("retry_after") else None,
        metadata=error.metadata,
        violations=tuple((each.field, each.description) for each in error.violations),
    )


def _seconds(duration: Any) -> float:
    return float(duration.seconds) + float(duration.nanos) / 1e9
