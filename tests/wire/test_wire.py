"""The parts of the client protocol that both sides share, against the contract."""

from __future__ import annotations

import re

import pytest
from google.protobuf.message import Message

from deskwire.chat.v1 import conversation_pb2, conversation_service_pb2
from deskwire.gateway.v1 import frame_pb2
from deskwire_common.errors import DeadlineExceeded, InvalidArgument, VersionMismatch
from deskwire_common.validation import Validator
from deskwire_wire.batches import encoded, pong
from deskwire_wire.errors import error_batch, error_frame
from deskwire_wire.limits import MAX_CLIENT_MSG_ID, MAX_TEXT, MAX_TRACEPARENT


def longest(message: Message, field: str) -> int:
    """How many characters the contract allows."""
    setattr(message, field, "x" * 100_000)
    with pytest.raises(InvalidArgument) as refused:
        Validator().check(message)
    [rule] = [rule for at, rule in refused.value.violations if at == field]
    return int(re.findall(r"[0-9]+", rule)[-1])


def test_limits_are_the_contracts() -> None:
    assert longest(conversation_pb2.Content(), "text") == MAX_TEXT
    for message in (frame_pb2.Send(), conversation_service_pb2.StreamedMessage()):
        assert longest(message, "client_msg_id") == MAX_CLIENT_MSG_ID
        assert longest(message, "traceparent") == MAX_TRACEPARENT


def test_a_pong_by_hand_is_a_pong() -> None:
    for number in (0, 1, 127, 128, 16_384, 2**32 - 1):
        made = frame_pb2.Batch.FromString(pong(number))
        assert made == frame_pb2.Batch(frames=[frame_pb2.Frame(pong=frame_pb2.Pong(id=number))])


def test_an_error_in_a_frame_says_all_that_it_knows() -> None:
    frame = error_frame(VersionMismatch(7, 6), client_msg_id="m", conversation_id="c")
    assert dict(frame.metadata) == {"current_version": "7", "expected_version": "6"}
    assert (frame.client_msg_id, frame.conversation_id, frame.temporary) == ("m", "c", False)
    wrong = InvalidArgument("write it in lower case", field="conversation_id")
    batch = frame_pb2.Batch.FromString(error_batch(wrong))
    assert [(each.field, each.description) for each in batch.frames[0].error.violations] == [
        ("conversation_id", "write it in lower case")
    ]
    assert encoded(error=error_frame(wrong)) == error_batch(wrong)


def test_what_took_too_long_may_be_said_again() -> None:
    frame = error_frame(DeadlineExceeded("too slow", retry_after=1.5))
    assert frame.temporary
    assert frame.retry_after.ToMilliseconds() == 1500
