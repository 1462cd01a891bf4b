"""A session with the gateway: it connects, says Hello, sends Pings, and comes back after every break."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

import picows

from deskwire.common.v1 import actor_pb2
from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire_client.errors import Refused, seconds
from deskwire_client.socket import Socket
from deskwire_client.tokens import Tokens
from deskwire_wire.codes import may_reconnect
from deskwire_wire.limits import MAX_MESSAGE_BYTES

FRAME_OVERHEAD: Final = 6
"""Bytes of the tag and length of a frame in its batch."""
BATCH_OVERHEAD: Final = 11
"""Bytes of Batch.ack, at its largest."""
MAX_FRAMES: Final = 32
"""Frames per message."""

_FIRST_BACKOFF: Final = 0.2
_MAX_BACKOFF: Final = 10.0
_HANDSHAKE: Final = 10.0
_PING_INTERVAL: Final = 25.0
_ACK_AFTER: Final = 32
"""Messages of the server after which the client acknowledges them, if it sends nothing else."""


class Connection:
    """One client's connections, one after another, and the session that they continue.

    `on_open` is called with the Welcome and whether nothing was lost since the last connection, `on_frame` with each
    frame that the session doesn't handle itself, `on_end` with the error that ends the session for good.
    """

    def __init__(
        self,
        url: str,
        tokens: Tokens,
        *,
        name: str,
        device_id: str,
        on_open: Callable[[frame_pb2.Welcome, bool], None],
        on_frame: Callable[[str, frame_pb2.Frame], None],
        on_end: Callable[[Exception], None],
    ) -> None:
        self._url = url
        self._tokens = tokens
        self._name = name
        self._device_id = device_id
        self._on_open = on_open
        self._on_frame = on_frame
        self._on_end = on_end
        self._task: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None
        self._socket: Socket | None = None
        self._welcome: asyncio.Future[frame_pb2.Welcome] | None = None
        self._goodbye: frame_pb2.Goodbye | None = None
        self.user = actor_pb2.Actor()
        """Who this client is, as the server says."""
        self._session_id = ""
        self._number = 0
        self._acked_number = 0
        self._lossless = False
        self._backoff = (_FIRST_BACKOFF, _MAX_BACKOFF)
        self._ping_interval = _PING_INTERVAL
        self._pings = 0
        self._last_sent = 0.0
        self._last_seen = 0.0
        self.max_message = MAX_MESSAGE_BYTES
        self.reconnects = 0
        self.lossless_resumes = 0

    # -------------------------------------------------------------------------------------- public

    @property
    def is_open(self) -> bool:
        """Whether a connection is open now."""
        return self._socket is not None

    @property
    def is_kept(self) -> bool:
        """Whether it is open, or will be again."""
        return self._task is not None and not self._task.done()

    async def start(self) -> None:
        """Connect and stay connected; returns after the first Welcome. Raises OSError, Refused.

        It goes on trying while the token has expired and a new one can be had, and while it isn't valid yet.
        """
        self._first = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._stay_connected(), name="deskwire-client")
        await self._first

    async def stop(self) -> None:
        """Say Goodbye, and don't come back."""
        if self._socket is not None:
            self._socket.send([frame_pb2.Frame(goodbye=frame_pb2.Goodbye(code=1000))])
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._socket = None

    def write(self, frames: list[frame_pb2.Frame]) -> None:
        """Send frames in one message; they are lost when no connection is open."""
        if self._socket is not None and frames:
            self._last_sent = asyncio.get_running_loop().time()
            self._socket.send(frames, self._ack())

    # ---------------------------------------------------------------------------------------- life

    async def _stay_connected(self) -> None:
        failures = 0
        while True:
            try:
                failures = 0 if await self._connect_once() else failures
            except (OSError, TimeoutError, picows.WSError) as error:
                if isinstance(error, OSError) and self._fail_first(error):
                    # Nobody listens there: at the first try the caller gets this error.
                    return
            except Refused as error:
                self._end(error)
                return
            except Exception as error:
                # Whatever the error is, end everything that waits: no answers will come any more.
                self._end(error)
                raise
            finally:
                self._socket = None
            self.reconnects += 1
            await asyncio.sleep(self._pause(failures))
            failures += 1

    def _pause(self, failures: int) -> float:
        """Return the pause in seconds: longer after each failure, and at least as long as the server asked for."""
        first, longest = self._backoff
        pause = min(first * 2.0 ** min(failures, 30), longest) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        if self._goodbye is not None:
            spread = random.uniform(0, seconds(self._goodbye.spread))  # noqa: S311 - jitter
            pause = max(pause, seconds(self._goodbye.after)) + spread
            self._goodbye = None
        return pause

    async def _connect_once(self) -> bool:
        """Connect, and return when the connection has ended: whether there was a Welcome.

        Raises Refused when the server forbids to come back, or when it would be of no use.
        """
        token = await self._tokens.new()
        socket = await Socket.dial(self._url, self._receive, timeout=_HANDSHAKE)
        try:
            welcome = await self._greet(socket, token)
            if welcome is not None:
                self._open(socket, welcome)
                await self._beat(socket)
            self._judge(socket)
            return welcome is not None
        finally:
            socket.end()

    async def _greet(self, socket: Socket, token: str) -> frame_pb2.Welcome | None:
        """Say Hello; returns the Welcome, or None when the connection ends instead. Raises TimeoutError."""
        self._welcome = asyncio.get_running_loop().create_future()
        hello = frame_pb2.Hello(token=token, client=self._name, device_id=self._device_id)
        if self._session_id:
            hello.resume.session_id = self._session_id
            hello.resume.last_number = self._number
        socket.send([frame_pb2.Frame(hello=hello)])
        async with asyncio.timeout(_HANDSHAKE):
            await asyncio.wait({self._welcome, socket.lost}, return_when=asyncio.FIRST_COMPLETED)
        return self._welcome.result() if self._welcome.done() else None

    def _open(self, socket: Socket, welcome: frame_pb2.Welcome) -> None:
        """Apply the limits of the Welcome, and send what waits."""
        self.max_message = welcome.max_message_bytes or MAX_MESSAGE_BYTES
        self._ping_interval = seconds(welcome.ping_interval) or _PING_INTERVAL
        self._backoff = (
            seconds(welcome.backoff.initial) or _FIRST_BACKOFF,
            seconds(welcome.backoff.max) or _MAX_BACKOFF,
        )
        self._tokens.lives_until(welcome.token_expire_time.seconds)
        self._socket = socket
        self._last_seen = self._last_sent = asyncio.get_running_loop().time()
        lossless, self._lossless = self._lossless, False
        self._on_open(welcome, lossless)
        if self._first is not None and not self._first.done():
            self._first.set_result(None)

    async def _beat(self, socket: Socket) -> None:
        """Ping after an interval without sending; leave after two without receiving. Renew the token in time."""
        loop = asyncio.get_running_loop()
        while True:
            if self._tokens.due():
                refresh = frame_pb2.Refresh(token=await self._tokens.new())
                self.write([frame_pb2.Frame(refresh=refresh)])
            pause = min(self._ping_interval / 2, self._tokens.seconds_until_due())
            await asyncio.wait({socket.lost}, timeout=pause)
            if socket.lost.done():
                return
            now = loop.time()
            if now - self._last_seen > 2 * self._ping_interval:
                return
            if now - self._last_sent >= self._ping_interval / 2:
                self._pings += 1
                self.write([frame_pb2.Frame(ping=frame_pb2.Ping(id=self._pings))])

    def _judge(self, socket: Socket) -> None:
        """Raise Refused when the server forbids to come back, or wants another token than the only one there is."""
        goodbye = self._goodbye
        if goodbye is not None:
            expired = goodbye.reason == reasons.ERROR_REASON_TOKEN_EXPIRED
            if not goodbye.reconnect or (expired and not self._tokens.renewable):
                raise Refused(goodbye.reason, goodbye.message)
        if not may_reconnect(socket.close_code):
            raise Refused(0, f"closed with {socket.close_code}")

    def _end(self, error: Exception) -> None:
        self._socket = None
        self._fail_first(error)
        self._on_end(error)

    def _fail_first(self, error: Exception) -> bool:
        """Give the error to the caller who waits for the first connection; return whether there is one."""
        if self._first is None or self._first.done():
            return False
        self._first.set_exception(error)
        return True

    # -------------------------------------------------------------------------------------- frames

    def _receive(self, batch: frame_pb2.Batch) -> None:
        for frame in batch.frames:
            self._last_seen = asyncio.get_running_loop().time()
            self._frame(frame.WhichOneof("kind") or "", frame)
        if batch.number > self._number:
            self._number = batch.number
            if self._number - self._acked_number >= _ACK_AFTER and self._socket is not None:
                self._socket.send([], self._ack())

    def _frame(self, kind: str, frame: frame_pb2.Frame) -> None:
        if kind == "goodbye":
            self._goodbye = frame.goodbye
        elif kind == "resumed":
            self._lossless = frame.resumed.lossless
            self.lossless_resumes += frame.resumed.lossless
        elif kind == "refreshed":
            self._tokens.lives_until(frame.refreshed.token_expire_time.seconds)
        elif kind == "welcome":
            self._welcomed(frame.welcome)
        elif kind == "ping":
            self.write([frame_pb2.Frame(pong=frame_pb2.Pong(id=frame.ping.id))])
        else:
            self._on_frame(kind, frame)

    def _welcomed(self, welcome: frame_pb2.Welcome) -> None:
        self.user.CopyFrom(welcome.user)
        if welcome.session_id != self._session_id:
            # A new session is numbered from 1.
            self._session_id, self._number, self._acked_number = welcome.session_id, 0, 0
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_result(welcome)

    def _ack(self) -> int:
        """Return the number to acknowledge, or 0 when the server knows it."""
        if self._acked_number == self._number:
            return 0
        self._acked_number = self._number
        return self._number
