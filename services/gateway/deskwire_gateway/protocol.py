"""The client protocol: what each frame of a client does, whatever carries it (WebSocket or gRPC).

The gateway reads frames, but never the contents of messages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import ClassVar, Final

from google.protobuf.message import DecodeError
from opentelemetry.trace import SpanKind

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire_common import telemetry
from deskwire_common.clock import Clock
from deskwire_common.errors import (
    DeskwireError,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
)
from deskwire_common.metrics import METRICS
from deskwire_common.validation import Validator
from deskwire_gateway.admission import CALL_COST, OTHER_COST, SYNC_COST, Admission
from deskwire_gateway.arrivals import Hellos
from deskwire_gateway.calls import Calls
from deskwire_gateway.frames import refuse_by_name, too_large
from deskwire_gateway.handshake import Handshake
from deskwire_gateway.registry import Registry
from deskwire_gateway.sends import Sends
from deskwire_gateway.session import Session
from deskwire_gateway.signals import Signals
from deskwire_gateway.syncs import Syncs
from deskwire_wire.batches import encoded, pong
from deskwire_wire.codes import Close
from deskwire_wire.errors import error_batch, error_frame

MAX_FRAMES: Final = 256
"""Frames per message of a client (frame.proto)."""
READABLE: Final = 3
"""Messages up to this many times the limit are read, to name what is refused. A WebSocket's read buffer, which grows
twofold from 2 KiB, is 128 KiB for the largest of them; four times the limit would take 256."""
MAX_FAULTS: Final = 20
"""Messages that can't be read before the connection is closed."""


class Protocol:
    """Handles what clients send."""

    def __init__(
        self,
        registry: Registry,
        handshake: Handshake,
        admission: Admission,
        sends: Sends,
        syncs: Syncs,
        signals: Signals,
        calls: Calls,
        validator: Validator,
        clock: Clock,
        *,
        trace: bool = False,
    ) -> None:
        """`trace`: begin a trace for Sends that bring none."""
        self.registry = registry
        self._handshake = handshake
        self._admission = admission
        self._sends = sends
        self._syncs = syncs
        self._signals = signals
        self._calls = calls
        self._validator = validator
        self._clock = clock
        self._trace = trace
        self._hellos = Hellos(self._receive)
        self._max_bytes = registry.limits.max_message_bytes
        self._bytes_in = METRICS.gateway_bytes.labels("in")
        self._frames_in = METRICS.gateway_frames.labels("in")

    def receive(self, session: Session, data: bytes) -> None:
        """Handle one message of a client; the first ones, up to its Hello, when it is their turn."""
        if session.closed:
            return
        session.seen = self._clock.monotonic()
        if session.principal is None:
            self._hellos.receive(session, data)
        else:
            self._receive(session, data)

    def _receive(self, session: Session, data: bytes) -> None:
        if session.closed:
            return
        self._bytes_in.inc(len(data))
        if len(data) > self._max_bytes:
            self.refuse_large(session, data)
            return
        try:
            batch = self._parse(data)
        except DeskwireError as error:
            self.fault(session, error)
            return
        if batch.ack and session.ring is not None:
            session.ring.acked(min(batch.ack, session.sent))
        if not batch.frames:
            self._admission.take(session, OTHER_COST)
        self._frames(session, batch)
        if session.budget < 0 and (pause := self._admission.rest(session)):
            # The client sends far too fast.
            METRICS.gateway_rests.inc()
            session.transport.rest(pause)

    def _frames(self, session: Session, batch: frame_pb2.Batch) -> None:
        for frame in batch.frames:
            try:
                self._frame(session, frame)
            except DeskwireError as error:
                self._refuse(session, error)
            if session.closed:
                # Its Hello resumed an earlier session, which handles the rest.
                resumed = session.transport.session
                if resumed is None or resumed.closed:
                    return
                session = resumed

    def fault(self, session: Session, error: DeskwireError) -> None:
        """Refuse a message that can't be read; close the connection after too many."""
        METRICS.gateway_refused.labels(error.reason_name).inc()
        session.faults += 1
        session.transport.send(error_batch(error))
        if session.principal is None or session.faults >= MAX_FAULTS:
            code = Close.HELLO_REQUIRED if session.principal is None else Close.TOO_MANY_FAULTS
            self.registry.goodbye(session, code, error.reason, error.message)

    def refuse_large(self, session: Session, data: bytes = b"") -> None:
        """Refuse a message over the limit: each Send and Rpc in it by its name, where they can be read.

        `data`: the message, unless it is too large to be kept. What is named is no fault: a client that writes long
        texts, one after another, keeps its connection.
        """
        error = too_large(self._max_bytes)
        answers: list[bytes] = []
        if session.principal is not None and len(data) <= READABLE * self._max_bytes:
            with contextlib.suppress(DeskwireError):
                answers = refuse_by_name(self._parse(data), error)
        if not answers:
            self.fault(session, error)
            return
        METRICS.gateway_refused.labels(error.reason_name).inc(len(answers))
        session.transport.send(b"".join(answers))

    def _refuse(self, session: Session, error: DeskwireError) -> None:
        """Refuse one frame; the others of its message are handled."""
        if session.principal is None or error.reason == reasons.ERROR_REASON_UNKNOWN_FRAME:
            self.fault(session, error)
            return
        METRICS.gateway_refused.labels(error.reason_name).inc()
        session.transport.send(error_batch(error))

    def _parse(self, data: bytes) -> frame_pb2.Batch:
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
            self._handshake.hello(session, frame.hello)
            return
        handler = self.HANDLERS.get(kind or "")
        if handler is None:
            raise InvalidArgument(
                f"a client may not send {kind}"
                if kind
                else "a frame of a kind that is not known here",
                reason=reasons.ERROR_REASON_UNKNOWN_FRAME,
            )
        handler(self, session, frame)

    # ------------------------------------------------------------------------------- kinds of frames

    def _send(self, session: Session, frame: frame_pb2.Frame) -> None:
        send = frame.send
        assert session.principal is not None  # noqa: S101 - `_frame` has seen to it
        tenant = session.principal.tenant
        try:
            self._admission.admit(session, tenant, send)
        except DeskwireError as error:
            METRICS.gateway_refused.labels(error.reason_name).inc()
            session.hold(send.conversation_id, send.client_msg_id)
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
        self._sends.send(session, tenant, send)

    def _sync(self, session: Session, frame: frame_pb2.Frame) -> None:
        if self._may_go_on(session, frame.sync.conversation_id, self._admission.cost(SYNC_COST)):
            self._syncs.sync(session, frame.sync)

    def _ping(self, session: Session, frame: frame_pb2.Frame) -> None:
        # Beyond the rate, too, as it is a sign of life: but then little more is read.
        self._admission.take(session, OTHER_COST)
        session.transport.send(pong(frame.ping.id))

    def _delivered(self, session: Session, frame: frame_pb2.Frame) -> None:
        self._validator.check(frame.delivered)
        if self._may_go_on(session, frame.delivered.conversation_id):
            self._signals.receipt(
                session, frame.delivered.conversation_id, delivered=frame.delivered.seq, read=0
            )

    def _read(self, session: Session, frame: frame_pb2.Frame) -> None:
        self._validator.check(frame.read)
        if self._may_go_on(session, frame.read.conversation_id):
            seq = frame.read.seq
            self._signals.receipt(session, frame.read.conversation_id, delivered=seq, read=seq)

    def _typing(self, session: Session, frame: frame_pb2.Frame) -> None:
        self._validator.check(frame.typing)
        if self._admission.may_type(session):
            self._signals.typing(session, frame.typing)

    def _rpc(self, session: Session, frame: frame_pb2.Frame) -> None:
        rpc = frame.rpc
        try:
            pause = self._admission.take(session, self._admission.cost(CALL_COST))
            if pause:
                raise self._admission.too_fast(pause)
            self._calls.call(session, rpc)
        except DeskwireError as error:
            METRICS.gateway_refused.labels(error.reason_name).inc()
            result = frame_pb2.RpcResult(id=rpc.id, error=error_frame(error))
            session.transport.send(encoded(rpc_result=result))

    def _refresh(self, session: Session, frame: frame_pb2.Frame) -> None:
        pause = self._admission.take(session, self._admission.cost(CALL_COST))
        if pause:
            raise self._admission.too_fast(pause)
        self._handshake.refresh(session, frame.refresh)

    def _pong(self, session: Session, _frame: frame_pb2.Frame) -> None:
        """Any message is a sign of life."""
        self._admission.take(session, OTHER_COST)

    def _goodbye(self, session: Session, _frame: frame_pb2.Frame) -> None:
        session.transport.close(1000, "goodbye")
        self.registry.end(session)

    def _may_go_on(self, session: Session, conversation_id: str, cost: float = OTHER_COST) -> bool:
        """Return whether the rate allows a frame about a conversation; otherwise it is refused for now."""
        pause = self._admission.take(session, cost)
        if pause:
            error = self._admission.too_fast(pause)
            METRICS.gateway_refused.labels(error.reason_name).inc()
            session.transport.send(error_batch(error, conversation_id=conversation_id))
        return not pause

    HANDLERS: ClassVar[dict[str, Callable[[Protocol, Session, frame_pb2.Frame], None]]] = {
        "send": _send,
        "sync": _sync,
        "ping": _ping,
        "pong": _pong,
        "delivered": _delivered,
        "read": _read,
        "typing": _typing,
        "refresh": _refresh,
        "rpc": _rpc,
        "goodbye": _goodbye,
    }
    """What a client may send after its Hello."""
