"""The frames that the gateway itself writes: one Goodbye, and the refusals of what is too large."""

from __future__ import annotations

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire_common.errors import DeskwireError, InvalidArgument
from deskwire_wire.batches import encoded
from deskwire_wire.codes import Close
from deskwire_wire.errors import error_batch, error_frame


def slow_reader() -> bytes:
    """Return the Goodbye for a transport whose client reads too slowly. Its session stays, to be resumed."""
    goodbye = frame_pb2.Goodbye(
        code=Close.SLOW_READER,
        reason=reasons.ERROR_REASON_SLOW_READER,
        message="you read slower than is sent to you; come back and Sync",
        reconnect=True,
    )
    return encoded(goodbye=goodbye)


def too_large(limit: int) -> InvalidArgument:
    """Return the error for a message over the limit. It is final: sent again, the message is as large."""
    return InvalidArgument(
        f"the message is larger than {limit} bytes", reason=reasons.ERROR_REASON_TOO_LARGE
    )


def refuse_by_name(batch: frame_pb2.Batch, error: DeskwireError) -> list[bytes]:
    """Return encoded batches that refuse each Send and Rpc of a batch; none when it has neither."""
    answers = []
    for frame in batch.frames:
        kind = frame.WhichOneof("kind")
        if kind == "send":
            names = {
                "client_msg_id": frame.send.client_msg_id,
                "conversation_id": frame.send.conversation_id,
            }
            answers.append(error_batch(error, **names))
        elif kind == "rpc":
            result = frame_pb2.RpcResult(id=frame.rpc.id, error=error_frame(error))
            answers.append(encoded(rpc_result=result))
    return answers
