"""The frames that the gateway itself writes: one Goodbye, and one refusal."""

from __future__ import annotations

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire_common.errors import ResourceExhausted
from deskwire_wire.batches import encoded
from deskwire_wire.codes import Close


def slow_reader() -> bytes:
    """Return the Goodbye for a transport whose client reads too slowly. Its session stays, to be resumed."""
    goodbye = frame_pb2.Goodbye(
        code=Close.SLOW_READER,
        reason=reasons.ERROR_REASON_SLOW_READER,
        message="you read slower than is sent to you; come back and Sync",
        reconnect=True,
    )
    return encoded(goodbye=goodbye)


def too_large(limit: int) -> ResourceExhausted:
    """Return the error for a message over the limit."""
    return ResourceExhausted(
        f"the message is larger than {limit} bytes", reason=reasons.ERROR_REASON_TOO_LARGE
    )
