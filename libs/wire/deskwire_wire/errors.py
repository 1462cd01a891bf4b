"""The only form of errors in frames: an Error that refuses a frame, or the error of an RpcResult."""

from __future__ import annotations

from typing import Protocol

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire_wire.batches import encoded


class Refusal(Protocol):
    """The parts of an error that a frame has: those of a DeskwireError, without the libraries of a server."""

    reason: reasons.ErrorReason.ValueType
    message: str
    metadata: dict[str, str]
    violations: list[tuple[str, str]]
    retry_after: float | None

    @property
    def temporary(self) -> bool: ...


def error_frame(
    error: Refusal, *, client_msg_id: str = "", conversation_id: str = ""
) -> frame_pb2.Error:
    """Return an error as a frame: all that the status of a unary call would contain."""
    frame = frame_pb2.Error(
        reason=error.reason,
        message=error.message,
        # A Send or a call is idempotent: one that took too long may be sent again.
        temporary=error.temporary or error.reason == reasons.ERROR_REASON_DEADLINE_EXCEEDED,
        client_msg_id=client_msg_id,
        conversation_id=conversation_id,
        metadata=error.metadata,
        violations=[
            frame_pb2.FieldViolation(field=field, description=rule)
            for field, rule in error.violations
        ],
    )
    if error.retry_after is not None:
        frame.retry_after.FromMilliseconds(int(error.retry_after * 1000))
    return frame


def error_batch(error: Refusal, *, client_msg_id: str = "", conversation_id: str = "") -> bytes:
    """Return an encoded Batch that refuses a frame."""
    return encoded(
        error=error_frame(error, client_msg_id=client_msg_id, conversation_id=conversation_id)
    )
