"""What the client raises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deskwire.common.v1 import error_reason_pb2
from deskwire.gateway.v1 import frame_pb2


class Refused(Exception):
    """The server refused something; `reason` is the contract's name: `CONVERSATION_CLOSED`.

    A Send is refused for good. A call whose refusal is `temporary` may succeed later (after `retry_after` seconds, if
    the server gives them). `metadata` is what a program needs to go on (`current_version`), `violations` are pairs of
    field and rule.
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


def refusal(error: frame_pb2.Error) -> Refused:
    """Return the exception for an Error frame."""
    return Refused(
        error.reason,
        error.message,
        temporary=error.temporary,
        retry_after=seconds(error.retry_after) if error.HasField("retry_after") else None,
        metadata=error.metadata,
        violations=tuple((each.field, each.description) for each in error.violations),
    )


def too_large(what: str, limit: int) -> Refused:
    """Return the refusal for something too large for the server, before it is sent."""
    return Refused(
        error_reason_pb2.ERROR_REASON_TOO_LARGE,
        f"the {what} has more than the {limit} bytes that the server takes",
    )


def seconds(duration: Any) -> float:
    """Return a protobuf Duration as seconds."""
    return float(duration.seconds) + float(duration.nanos) / 1e9
