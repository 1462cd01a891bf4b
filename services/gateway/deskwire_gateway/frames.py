"""Frames that the gateway itself says, encoded."""

from __future__ import annotations

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire_common.errors import DeadlineExceeded, DeskwireError, ResourceExhausted
from deskwire_common.protobytes import nested, number
from deskwire_gateway.session import Close


def encoded(**kind: object) -> bytes:
    """Return an encoded Batch of one frame."""
    frame = frame_pb2.Frame(**kind)  # type: ignore[arg-type] # one member of the oneof
    return frame_pb2.Batch(frames=[frame]).SerializeToString()


def pong(ping_id: int) -> bytes:
    """Return an encoded Batch with the answer to a Ping; by hand, as most frames of many connections are heartbeats."""
    return nested(b"\x0a", nested(b"\x22", number(b"\x08", ping_id)))


def error_batch(
    error: DeskwireError, *, client_msg_id: str = "", conversation_id: str = ""
) -> bytes:
    """Return an encoded Batch that refuses a frame."""
    frame = error_frame(error)
    frame.client_msg_id, frame.conversation_id = client_msg_id, conversation_id
    return encoded(error=frame)


def error_frame(error: DeskwireError) -> frame_pb2.Error:
    """Return an error in its form on the wire."""
    frame = frame_pb2.Error(
        reason=error.reason,
        message=error.message,
        temporary=error.temporary or isinstance(error, DeadlineExceeded),
        metadata=error.metadata,
        violations=[
            frame_pb2.FieldViolation(field=field, description=rule)
            for field, rule in error.violations
        ],
    )
    if error.retry_after is not None:
        frame.retry_after.FromMilliseconds(int(error.retry_after * 1000))
    return frame


def slow_reader() -> bytes:
    """The Goodbye for a transport whose client reads too slowly. Its session stays, to be resumed."""
    goodbye = frame_pb2.Goodbye(
        code=Close.SLOW_READER,
        reason=reasons.ERROR_REASON_SLOW_READER,
        message="you read slower than is sent to you; come back and Sync",
        reconnect=True,
    )
    return encoded(goodbye=goodbye)


def too_large(limit: int) -> ResourceExhausted:
    """The error for a message over the limit."""
    return ResourceExhausted(
        f"the message is larger than {limit} bytes", reason=reasons.ERROR_REASON_TOO_LARGE
    )
