"""Sessions: the client protocol of one worker, whatever carries it (WebSocket or gRPC).

No task, queue or timer per connection: callbacks, and one timing wheel for heartbeats, time-outs and token ends. The
gateway reads what frames are, never what messages say.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from google.protobuf.message import DecodeError
from opentelemetry.trace import SpanKind

from deskwire.common.v1 import actor_pb2
from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire_common import telemetry
from deskwire_common.auth import Principal, Role, TokenVerifier
from deskwire_common.clock import Clock
from deskwire_common.errors import (
    DeskwireError,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from deskwire_common.ids import Ids
from deskwire_common.metrics import METRICS
from deskwire_common.validation import Validator

MAX_FRAMES: Final = 256
"""Frames per message of a client (frame.proto)."""
MAX_FAULTS: Final = 20
"""Messages that can't be read before the connection is closed."""
_SILENT_AFTER: Final = 3
"""Ping intervals without a sign of life."""
_MAY_CONNECT: Final = frozenset({Role.VISITOR, Role.AGENT, Role.BOT})


class Close(IntEnum):
    """WebSocket close codes: from 3000 come back, from 3500 don't."""

    GOING_AWAY = 3000
    TOKEN_EXPIRED = 3001
    SLOW_READER = 3002
    SILENT = 3003
    HELLO_REQUIRED = 3500
    TOKEN_REFUSED = 3501
    TOO_MANY_FAULTS = 3502
    SHUT_OUT = 3503

    @property
    def reconnect(self) -> bool:
        """Whether the client should come back."""
        return self < Close.HELLO_REQUIRED


class Transport(Protocol):
    """What carries a connection."""

    name: str

    def send(self, data: bytes) -> None:
        """Send one encoded Batch; never waits."""
        ...

    def close(self, code: int, text: str) -> None:
        """Close after what was sent."""
        ...


class Chat(Protocol):
    """The way to chat (link.Link)."""

    @property
    def pending_count(self) -> int: ...

    def attach(self, session: Session) -> None: ...

    def detach(self, session: Session) -> None: ...

    def send(self, session: Session, send: frame_pb2.Send) -> None: ...

    def sync(self, session: Session, sync: frame_pb2.Sync) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may do; seconds, bytes, per second."""

    ping_interval: float
    hello_timeout: float
    max_message_bytes: int
    max_unacked_sends: int
    max_pending_sends: int
    send_rate: float
    send_burst: int


class Session:
    """One connection: made when it opens, `principal` is set by Hello."""

    __slots__ = (
        "budget",
        "budget_at",
        "client",
        "closed",
        "connected_at",
        "expires",
        "faults",
        "held",
        "number",
        "principal",
        "seen",
        "session_id",
        "transport",
        "unacked",
    )

    def __init__(self, number: int, session_id: str, transport: Transport, now: float) -> None:
        self.number = number
        self.session_id = session_id
        self.transport = transport
        self.principal: Principal | None = None
        self.client = ""
        self.seen = now
        self.connected_at = 0.0
        self.expires = 0.0
        self.unacked = 0
        self.faults = 0
        self.budget = -1.0
        self.budget_at = now
        self.held: dict[str, str] | None = None
        self.closed = False

    def actor(self) -> actor_pb2.Actor:
        """Who is connected, for chat and the directory."""
        assert self.principal is not None  # noqa: S101 - callers have said Hello
        return actor_pb2.Actor(
            role=actor_pb2.Role.Value(f"ROLE_{self.principal.role.name}"),
            subject=self.principal.subject,
            display_name=self.principal.name,
        )


def _batch(**kind: object) -> bytes:
    frame = frame_pb2.Frame(**kind)  # type: ignore[arg-type] # one member of the oneof
    return frame_pb2.Batch(frames=[frame]).SerializeToString()


def error_batch(
    error: DeskwireError, *, client_msg_id: str = "", conversation_id: str = ""
) -> bytes:
    """Return an encoded Batch that refuses a frame."""
    frame = frame_pb2.Error(
        reason=error.reason,
        message=error.message,
        temporary=error.temporary,
        client_msg_id=client_msg_id,
        conversation_id=conversation_id,
    )
    if error.retry_after is not None:
        frame.retry_after.FromMilliseconds(int(error.retry_after * 1000))
    return _batch(error=frame)


class Sessions:
    """All connections of this worker."""

    def __init__(
        self,
        limits: Limits,
        verifier: TokenVerifier,
        validator: Validator,
        ids: Ids,
        clock: Clock,
        *,
        trace: bool = False,
        opened: Callable[[Session], None] = lambda _session: None,
        ended: Callable[[Session], None] = lambda _session: None,
    ) -> None:
        """`trace`: begin a trace for Sends that bring none. `opened` and `ended` tell the directory."""
        self.limits = limits
        self.by_number: dict[int, Session] = {}
        self._verifier = verifier
        self._validator = validator
        self._ids = ids
        self._clock = clock
        self._trace = trace
        self._opened = opened
        self._ended = ended
        self._chat: Chat | None = None
        self._next = 0
        # One bucket per second of the heartbeat interval: each session is looked at once a turn.
        self._wheel: list[set[Session]] = [set() for _ in range(max(1, int(limits.ping_interval)))]
        self._tick = 0
        self._greeting: deque[tuple[float, Session]] = deque()
        self._handlers: dict[str, Callable[[Session, frame_pb2.Frame], None]] = {
            "send": self._send,
            "sync": self._sync,
            "ping": self._ping,
            "pong": lambda _session, _frame: None,
            "goodbye": self._leave,
        }

    def bind(self, chat: Chat) -> None:
        """Give it the way to chat."""
        self._chat = chat

    # -------------------------------------------------------------------------------- life

    def open(self, transport: Transport) -> Session:
        """A connection opened; its first frame must be Hello."""
        self._next += 1
        now = self._clock.monotonic()
        session = Session(self._next, self._ids.uuid7(), transport, now)
        self._greeting.append((now + self.limits.hello_timeout, session))
        METRICS.gateway_accepted.labels(transport.name).inc()
        METRICS.gateway_connections.labels(transport.name).inc()
        return session

    def lost(self, session: Session) -> None:
        """The connection is gone, whoever ended it."""
        if session.closed:
            return
        session.closed = True
        METRICS.gateway_connections.labels(session.transport.name).dec()
        self._wheel[session.number % len(self._wheel)].discard(session)
        if self.by_number.pop(session.number, None) is not None:
            if self._chat is not None:
                self._chat.detach(session)
            self._ended(session)

    def goodbye(
        self, session: Session, code: Close, reason: int, text: str, *, spread: float = 0.0
    ) -> None:
        """Say Goodbye and close."""
        if session.closed:
            return
        frame = frame_pb2.Goodbye(
            code=code,
            reason=reasons.ErrorReason.ValueType(reason),
            message=text,
            reconnect=code.reconnect,
        )
        if spread:
            frame.after.FromMilliseconds(100)
            frame.spread.FromMilliseconds(int(spread * 1000))
        METRICS.gateway_closed.labels(code.name.lower()).inc()
        session.transport.send(_batch(goodbye=frame))
        session.transport.close(code, text)
        self.lost(session)

    def tick(self) -> None:
        """Once a second: a turn of the wheel."""
        now = self._clock.monotonic()
        while self._greeting and self._greeting[0][0] <= now:
            _, session = self._greeting.popleft()
            if session.principal is None:
                self.goodbye(
                    session,
                    Close.HELLO_REQUIRED,
                    reasons.ERROR_REASON_HELLO_REQUIRED,
                    "no Hello came in time",
                )
        self._tick = (self._tick + 1) % len(self._wheel)
        wall = self._clock.now().timestamp()
        silent = now - _SILENT_AFTER * self.limits.ping_interval
        for session in list(self._wheel[self._tick]):
            if session.expires <= wall:
                self.goodbye(
                    session,
                    Close.TOKEN_EXPIRED,
                    reasons.ERROR_REASON_TOKEN_EXPIRED,
                    "the token has expired; come back with a new one",
                )
            elif session.seen < silent:
                self.goodbye(
                    session,
                    Close.SILENT,
                    reasons.ERROR_REASON_UNSPECIFIED,
                    "nothing was heard of you",
                )

    def drain(self, spread: float = 5.0) -> None:
        """Send everybody away, to come back elsewhere."""
        for session in list(self.by_number.values()):
            self.goodbye(
                session,
                Close.GOING_AWAY,
                reasons.ERROR_REASON_SHUTTING_DOWN,
                "this server stops; connect again",
                spread=spread,
            )

    # ------------------------------------------------------------------------------- frames

    def receive(self, session: Session, data: bytes) -> None:
        """Handle one message of a client."""
        if session.closed:
            return
        session.seen = self._clock.monotonic()
        METRICS.gateway_bytes.labels("in").inc(len(data))
        try:
            batch = self._parse(data)
            for frame in batch.frames:
                self._frame(session, frame)
                if session.closed:
                    return
        except DeskwireError as error:
            self.fault(session, error)

    def fault(self, session: Session, error: DeskwireError) -> None:
        """Refuse what can't be read; too often, and the connection ends."""
        METRICS.gateway_refused.labels(error.reason_name).inc()
        session.faults += 1
        session.transport.send(error_batch(error))
        if session.principal is None or session.faults >= MAX_FAULTS:
            code = Close.HELLO_REQUIRED if session.principal is None else Close.TOO_MANY_FAULTS
            self.goodbye(session, code, error.reason, error.message)

    def _parse(self, data: bytes) -> frame_pb2.Batch:
        if len(data) > self.limits.max_message_bytes:
            raise too_large(self.limits.max_message_bytes)
        try:
            batch = frame_pb2.Batch.FromString(data)
        except DecodeError:
            raise InvalidArgument(
                "the message is not an encoded deskwire.gateway.v1.Batch",
                reason=reasons.ERROR_REASON_MALFORMED_FRAME,
            ) from None
        if len(batch.frames) > MAX_FRAMES:
            raise ResourceExhausted(
                f"more than {MAX_FRAMES} frames in a batch", reason=reasons.ERROR_REASON_TOO_LARGE
            )
        return batch

    def _frame(self, session: Session, frame: frame_pb2.Frame) -> None:
        kind = frame.WhichOneof("kind")
        METRICS.gateway_frames.labels("in").inc()
        if session.principal is None:
            if kind != "hello":
                raise FailedPrecondition(
                    "say Hello first, with a token", reason=reasons.ERROR_REASON_HELLO_REQUIRED
                )
            self._hello(session, frame.hello)
            return
        handler = self._handlers.get(kind or "")
        if handler is None:
            raise InvalidArgument(
                f"a client may not send {kind}"
                if kind
                else "a frame of a kind that is not known here",
                reason=reasons.ERROR_REASON_UNKNOWN_FRAME,
            )
        handler(session, frame)

    def _hello(self, session: Session, hello: frame_pb2.Hello) -> None:
        try:
            self._validator.check(hello)
            principal, expires = self._verifier.verify_with_expiry(hello.token)
            if principal.role not in _MAY_CONNECT:
                raise PermissionDenied(f"role {principal.role.value} connects over gRPC calls only")
        except DeskwireError as error:
            METRICS.gateway_refused.labels(error.reason_name).inc()
            session.transport.send(error_batch(error))
            self.goodbye(session, Close.TOKEN_REFUSED, error.reason, error.message)
            return
        session.principal = principal
        session.expires = expires
        session.client = hello.client
        session.connected_at = self._clock.now().timestamp()
        self.by_number[session.number] = session
        self._wheel[session.number % len(self._wheel)].add(session)
        welcome = frame_pb2.Welcome(
            session_id=session.session_id,
            max_message_bytes=self.limits.max_message_bytes,
            max_unacked_sends=self.limits.max_unacked_sends,
        )
        welcome.ping_interval.FromMilliseconds(int(self.limits.ping_interval * 1000))
        welcome.token_expire_time.FromSeconds(int(expires))
        session.transport.send(_batch(welcome=welcome))
        if self._chat is not None:
            self._chat.attach(session)
        self._opened(session)

    def _ping(self, session: Session, frame: frame_pb2.Frame) -> None:
        session.transport.send(_batch(pong=frame_pb2.Pong(id=frame.ping.id)))

    def _leave(self, session: Session, _frame: frame_pb2.Frame) -> None:
        session.transport.close(1000, "goodbye")
        self.lost(session)

    def _sync(self, session: Session, frame: frame_pb2.Frame) -> None:
        if self._chat is not None:
            self._chat.sync(session, frame.sync)

    def _send(self, session: Session, frame: frame_pb2.Frame) -> None:
        send = frame.send
        try:
            self._admit(session, send)
        except DeskwireError as error:
            METRICS.gateway_refused.labels(error.reason_name).inc()
            if session.held is None:
                session.held = {}
            session.held.setdefault(send.conversation_id, send.client_msg_id)
            session.transport.send(
                error_batch(
                    error, client_msg_id=send.client_msg_id, conversation_id=send.conversation_id
                )
            )
            return
        traceparent = send.traceparent
        if (traceparent and telemetry.sampled(traceparent)) or (self._trace and not traceparent):
            with telemetry.span(
                "gateway.send", traceparent=traceparent or None, kind=SpanKind.SERVER
            ):
                send.traceparent = telemetry.current_traceparent()
        session.unacked += 1
        assert self._chat is not None  # noqa: S101 - _admit has seen it
        self._chat.send(session, send)

    def _admit(self, session: Session, send: frame_pb2.Send) -> None:
        """Raise unless this Send may go on. Whatever is refused here holds the line of its conversation."""
        limits = self.limits
        if session.held:
            held = session.held.get(send.conversation_id)
            if held is not None and held != send.client_msg_id:
                raise ResourceExhausted(
                    f"send {held!r} again first: it was refused for now, and order is kept",
                    reason=reasons.ERROR_REASON_LINE_HELD,
                    retry_after=0.5,
                )
        if self._chat is None:
            raise Unavailable("the gateway is not ready", retry_after=1.0)
        if session.unacked >= limits.max_unacked_sends:
            raise ResourceExhausted(
                f"{limits.max_unacked_sends} Sends are without their SendAck; wait for those",
                retry_after=0.5,
            )
        if self._chat.pending_count >= limits.max_pending_sends:
            raise ResourceExhausted(
                "too many messages wait to be stored",
                retry_after=1 + random.random(),  # noqa: S311 - a spread, no secret
            )
        now = session.seen
        budget = session.budget
        if budget < 0:
            budget = float(limits.send_burst)
        budget = min(
            float(limits.send_burst), budget + (now - session.budget_at) * limits.send_rate
        )
        session.budget_at = now
        if budget < 1:
            session.budget = budget
            raise ResourceExhausted(
                f"more than {limits.send_rate:g} messages a second",
                reason=reasons.ERROR_REASON_RATE_LIMITED,
                retry_after=(1 - budget) / limits.send_rate + 0.05,
            )
        session.budget = budget - 1
        if session.held:
            session.held.pop(send.conversation_id, None)


def too_large(limit: int) -> ResourceExhausted:
    """The error for a message over the limit."""
    return ResourceExhausted(
        f"the message is larger than {limit} bytes", reason=reasons.ERROR_REASON_TOO_LARGE
    )
