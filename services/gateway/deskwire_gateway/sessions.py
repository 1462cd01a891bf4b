"""Sessions: the client protocol of one worker, whatever carries it (WebSocket or gRPC).

A session outlives its connection for a while: what is sent to it is numbered and kept in a ring, so that a client
that comes back soon misses nothing. No task, queue or timer per connection: callbacks, and one timing wheel for
heartbeats, time-outs and token ends. The gateway reads what frames are, never what messages say.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError
from opentelemetry.trace import SpanKind

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
from deskwire_gateway.frames import too_large
from deskwire_gateway.limits import TenantRates
from deskwire_gateway.ring import Budget, Ring
from deskwire_gateway.session import (
    PARKED,
    Calls,
    Chat,
    Limits,
    Session,
    Transport,
    same_user,
)
from deskwire_wire.batches import encoded, pong
from deskwire_wire.codes import Close
from deskwire_wire.errors import error_batch, error_frame
from deskwire_wire.protobytes import varint

MAX_FRAMES: Final = 256
"""Frames per message of a client (frame.proto)."""
MAX_FAULTS: Final = 20
"""Messages that can't be read before the connection is closed."""
_SILENT_AFTER: Final = 3
"""Ping intervals without a sign of life."""
_OTHER_COST: Final = 0.25
"""What a frame costs of the rate that isn't a Send."""
_CALL_COST: Final = 4.0
"""What an Rpc costs of the rate: a unary call is some ten times a Send's work."""
_MAY_CONNECT: Final = frozenset({Role.VISITOR, Role.AGENT, Role.BOT})


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
        self._tenants = TenantRates(limits.tenant_send_rate)
        self.by_number: dict[int, Session] = {}
        self.connections = 0
        self._verifier = verifier
        self._validator = validator
        self._ids = ids
        self._clock = clock
        self._trace = trace
        self._opened = opened
        self._ended = ended
        self._chat: Chat | None = None
        self._calls: Calls | None = None
        self._next = 0
        self._bytes_in = METRICS.gateway_bytes.labels("in")
        self._frames_in = METRICS.gateway_frames.labels("in")
        # One bucket per second of the shorter interval: each session is looked at once a turn.
        turn = int(min(limits.ping_interval, limits.visitor_ping_interval))
        self._wheel: list[set[Session]] = [set() for _ in range(max(1, turn))]
        self._tick = 0
        self._greeting: deque[tuple[float, Session]] = deque()
        self._waiting: deque[tuple[float, Session]] = deque()
        self._budget = Budget(each=limits.ring_bytes, limit=limits.ring_total_bytes)
        self._handlers: dict[str, Callable[[Session, frame_pb2.Frame], None]] = {
            "send": self._send,
            "sync": self._sync,
            "ping": self._ping,
            "pong": lambda _session, _frame: None,
            "delivered": self._delivered,
            "read": self._read,
            "typing": self._typing,
            "refresh": self._refresh,
            "rpc": self._rpc,
            "goodbye": self._leave,
        }

    def bind(self, chat: Chat, calls: Calls) -> None:
        """Give it the ways to chat."""
        self._chat = chat
        self._calls = calls

    # -------------------------------------------------------------------------------- life

    def open(self, transport: Transport) -> Session:
        """A connection opened; its first frame must be Hello."""
        self._next += 1
        now = self._clock.monotonic()
        # The number is in the id, so that a Resume finds its session without another index over all of them.
        session_id = f"{self._ids.uuid7()[:24]}{self._next:012x}"
        session = Session(self._next, session_id, transport, now)
        transport.session = session
        self._greeting.append((now + self.limits.hello_timeout, session))
        self.connections += 1
        METRICS.gateway_accepted.labels(transport.name).inc()
        METRICS.gateway_connections.labels(transport.name).inc()
        return session

    def disconnected(self, transport: Transport) -> None:
        """A connection is gone, whoever ended it. Its session waits for a Resume, unless it said Goodbye."""
        self.connections -= 1
        METRICS.gateway_connections.labels(transport.name).dec()
        # Without it they would be a cycle, and work for the collector.
        session, transport.session = transport.session, None
        if session is None or session.transport is not transport or session.closed:
            return
        if session.principal is None or not self.limits.resume_window:
            self.lost(session)
            return
        session.transport = PARKED
        session.parked = self._clock.monotonic()
        self._waiting.append((session.parked, session))
        if self._chat is not None:
            self._chat.park(session)

    def lost(self, session: Session) -> None:
        """The session is over."""
        if session.closed:
            return
        session.closed = True
        if session.ring is not None:
            session.ring.clear()
        self._wheel[session.number % len(self._wheel)].discard(session)
        if self.by_number.pop(session.number, None) is not None:
            if self._chat is not None:
                self._chat.detach(session)
            if self._calls is not None:
                self._calls.end(session)
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
        session.transport.send(encoded(goodbye=frame))
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
        while self._waiting and self._waiting[0][0] + self.limits.resume_window <= now:
            parked, session = self._waiting.popleft()
            if session.parked == parked:
                self.lost(session)
        self._tick = (self._tick + 1) % len(self._wheel)
        wall = self._clock.now().timestamp()
        for session in list(self._wheel[self._tick]):
            if session.expires <= wall:
                self.goodbye(
                    session,
                    Close.TOKEN_EXPIRED,
                    reasons.ERROR_REASON_TOKEN_EXPIRED,
                    "the token has expired; come back with a new one",
                )
            elif (
                session.seen < now - _SILENT_AFTER * self._ping_interval(session)
                and not session.parked
            ):
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
        self._bytes_in.inc(len(data))
        try:
            batch = self._parse(data)
        except DeskwireError as error:
            self.fault(session, error)
            return
        if batch.ack and session.ring is not None:
            session.ring.acked(min(batch.ack, session.sent))
        for frame in batch.frames:
            try:
                self._frame(session, frame)
            except DeskwireError as error:
                self._refuse(session, error)
            if session.closed:
                # Resumed by its Hello: the rest is the older session's.
                resumed = session.transport.session
                if resumed is None or resumed.closed:
                    return
                session = resumed

    def push(self, session: Session, data: bytes) -> None:
        """Send encoded batches to a client, as one numbered message that a Resume repeats."""
        number = session.sent = session.sent + 1
        data += b"\x10" + varint(number)  # Batch.number = 2
        if self.limits.resume_window:
            ring = session.ring
            if ring is None:
                ring = session.ring = Ring(self._budget, number - 1)
            ring.add(number, data)
        session.transport.send(data)

    def fault(self, session: Session, error: DeskwireError) -> None:
        """Refuse what can't be read; too often, and the connection ends."""
        METRICS.gateway_refused.labels(error.reason_name).inc()
        session.faults += 1
        session.transport.send(error_batch(error))
        if session.principal is None or session.faults >= MAX_FAULTS:
            code = Close.HELLO_REQUIRED if session.principal is None else Close.TOO_MANY_FAULTS
            self.goodbye(session, code, error.reason, error.message)

    def _refuse(self, session: Session, error: DeskwireError) -> None:
        """Refuse one frame; the others of its message are handled."""
        if session.principal is None or error.reason == reasons.ERROR_REASON_UNKNOWN_FRAME:
            self.fault(session, error)
            return
        METRICS.gateway_refused.labels(error.reason_name).inc()
        session.transport.send(error_batch(error))

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
        self._frames_in.inc()
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
        if hello.HasField("resume"):
            known = self._known(hello.resume, principal)
            if known is not None:
                self._take(known, hello.token, principal, expires)
                self._resume(known, session, hello.resume.last_number)
                return
        self._take(session, hello.token, principal, expires)
        session.client = hello.client
        session.device_id = hello.device_id
        session.connected_at = self._clock.now().timestamp()
        self.by_number[session.number] = session
        self._wheel[session.number % len(self._wheel)].add(session)
        self._welcome(session)
        if hello.HasField("resume"):
            session.transport.send(encoded(resumed=frame_pb2.Resumed(reset=True)))
        if self._chat is not None:
            self._chat.attach(session)
        self._opened(session)

    def _take(self, session: Session, token: str, principal: Principal, expires: float) -> None:
        """A session lives with this token from now on."""
        session.principal = principal
        session.expires = expires
        session.token = token if principal.role is not Role.VISITOR else ""

    def _welcome(self, session: Session) -> None:
        limits = self.limits
        welcome = frame_pb2.Welcome(
            session_id=session.session_id,
            max_message_bytes=limits.max_message_bytes,
            max_unacked_sends=limits.max_unacked_sends,
            max_calls=limits.max_calls,
        )
        welcome.ping_interval.FromMilliseconds(int(self._ping_interval(session) * 1000))
        welcome.token_expire_time.FromSeconds(int(session.expires))
        welcome.backoff.initial.FromMilliseconds(int(limits.backoff_initial * 1000))
        welcome.backoff.max.FromMilliseconds(int(limits.backoff_max * 1000))
        welcome.resume_window.FromMilliseconds(int(limits.resume_window * 1000))
        session.transport.send(encoded(welcome=welcome))

    def _ping_interval(self, session: Session) -> float:
        """Visitors are many, and whether they are still there matters less than with those who serve them."""
        who = session.principal
        is_visitor = who is not None and who.role is Role.VISITOR
        return self.limits.visitor_ping_interval if is_visitor else self.limits.ping_interval

    def _known(self, resume: frame_pb2.Resume, principal: Principal) -> Session | None:
        """The session that a client may resume: its own, and not older than what it has of it."""
        try:
            session = self.by_number.get(int(resume.session_id[24:], 16))
        except ValueError:
            return None
        if session is None or session.session_id != resume.session_id:
            return None
        return (
            session
            if same_user(session.principal, principal) and resume.last_number <= session.sent
            else None
        )

    def _resume(self, session: Session, fresh: Session, last: int) -> None:
        """Give an older session the connection on which its client has come back."""
        fresh.closed = True
        before, session.transport = session.transport, fresh.transport
        session.transport.session = session
        session.seen = fresh.seen
        # What was sent on the broken connection is sent again by the client, whatever was pending.
        session.unacked = 0
        parked, session.parked = session.parked, 0.0
        if not parked:
            # The server hadn't noticed yet that the connection was broken.
            before.close(Close.SILENT, "resumed on another connection")
        missed = session.ring.after(last) if session.ring is not None else []
        if session.ring is None and last != session.sent:
            missed = None
        self._welcome(session)
        session.transport.send(encoded(resumed=frame_pb2.Resumed(lossless=missed is not None)))
        METRICS.gateway_resumes.labels("lossless" if missed is not None else "lossy").inc()
        if self._chat is not None and missed is None:
            # Attached anew it is told the Heads.
            self._chat.detach(session)
            self._chat.attach(session)
        elif self._chat is not None and parked:
            self._chat.unpark(session)
        if missed:
            session.transport.send(b"".join(missed))

    def _refresh(self, session: Session, frame: frame_pb2.Frame) -> None:
        self._validator.check(frame.refresh)
        try:
            principal, expires = self._verifier.verify_with_expiry(frame.refresh.token)
            if not same_user(session.principal, principal):
                raise PermissionDenied("the new token is another user's; connect with it instead")
        except DeskwireError as error:
            METRICS.gateway_refused.labels(error.reason_name).inc()
            session.transport.send(error_batch(error))
            return
        self._take(session, frame.refresh.token, principal, expires)
        refreshed = frame_pb2.Refreshed()
        refreshed.token_expire_time.FromSeconds(int(expires))
        session.transport.send(encoded(refreshed=refreshed))

    def _ping(self, session: Session, frame: frame_pb2.Frame) -> None:
        session.transport.send(pong(frame.ping.id))

    def _delivered(self, session: Session, frame: frame_pb2.Frame) -> None:
        self._validator.check(frame.delivered)
        self._receipt(session, frame.delivered.conversation_id, frame.delivered.seq, 0)

    def _read(self, session: Session, frame: frame_pb2.Frame) -> None:
        self._validator.check(frame.read)
        self._receipt(session, frame.read.conversation_id, frame.read.seq, frame.read.seq)

    def _receipt(self, session: Session, conversation_id: str, delivered: int, read: int) -> None:
        if self._may_go_on(session, conversation_id) and self._chat is not None:
            self._chat.receipt(session, conversation_id, delivered=delivered, read=read)

    def _typing(self, session: Session, frame: frame_pb2.Frame) -> None:
        self._validator.check(frame.typing)
        # Over the rate it is dropped: it is worth nothing later.
        if self._wait_of(session, _OTHER_COST) == 0 and self._chat is not None:
            self._chat.typing(session, frame.typing)

    def _leave(self, session: Session, _frame: frame_pb2.Frame) -> None:
        session.transport.close(1000, "goodbye")
        self.lost(session)

    def _sync(self, session: Session, frame: frame_pb2.Frame) -> None:
        if self._may_go_on(session, frame.sync.conversation_id) and self._chat is not None:
            self._chat.sync(session, frame.sync)

    def _rpc(self, session: Session, frame: frame_pb2.Frame) -> None:
        said = frame.rpc
        try:
            wait = self._wait_of(session, min(_CALL_COST, self.limits.send_burst))
            if wait:
                raise self._too_fast(wait)
            if self._calls is None:
                raise Unavailable("the gateway is not ready", retry_after=1.0)
            self._calls.call(session, said)
        except DeskwireError as error:
            METRICS.gateway_refused.labels(error.reason_name).inc()
            result = frame_pb2.RpcResult(id=said.id, error=error_frame(error))
            session.transport.send(encoded(rpc_result=result))

    def _may_go_on(self, session: Session, conversation_id: str) -> bool:
        """Whether the rate allows a frame that isn't a Send; otherwise it is refused for now."""
        wait = self._wait_of(session, _OTHER_COST)
        if wait:
            error = self._too_fast(wait)
            METRICS.gateway_refused.labels(error.reason_name).inc()
            session.transport.send(error_batch(error, conversation_id=conversation_id))
        return not wait

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
        wait = self._wait_of(session, 1.0)
        if wait:
            raise self._too_fast(wait)
        if limits.tenant_send_rate and session.principal is not None:
            wait = self._tenants.take(session.principal.tenant, session.seen)
            if wait:
                raise ResourceExhausted(
                    f"more than {limits.tenant_send_rate:g} messages a second of your tenant",
                    reason=reasons.ERROR_REASON_RATE_LIMITED,
                    retry_after=wait,
                )
        if session.held:
            session.held.pop(send.conversation_id, None)

    def _wait_of(self, session: Session, cost: float) -> float:
        """Take tokens from the session's bucket; the seconds to wait when there aren't enough, else 0."""
        limits = self.limits
        budget = session.budget if session.budget >= 0 else float(limits.send_burst)
        budget = min(
            float(limits.send_burst),
            budget + (session.seen - session.budget_at) * limits.send_rate,
        )
        session.budget_at = session.seen
        enough = budget >= cost
        session.budget = budget - cost if enough else budget
        return 0.0 if enough else (cost - budget) / limits.send_rate + 0.05

    def _too_fast(self, wait: float) -> ResourceExhausted:
        return ResourceExhausted(
            f"more than {self.limits.send_rate:g} messages a second",
            reason=reasons.ERROR_REASON_RATE_LIMITED,
            retry_after=wait,
        )
