"""Domain errors, and their only translation to and from google.rpc.Status.

Code raises one of these classes with a reason of the contract and a message that says what to do. The error
interceptor of `rpc` turns it into a Status with one ErrorInfo; nobody else sets a gRPC code.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from deskwire.common.v1 import error_reason_pb2

DOMAIN: Final = "deskwire"
TEXT_BYTES: Final = 1024
"""Bytes of an error's message, and of its violations: trailers, in which gRPC carries both, hold 8 KiB."""
_PREFIX: Final = "ERROR_REASON_"
Reason = error_reason_pb2.ErrorReason


class DeskwireError(Exception):
    """An error that a caller may see.

    `reason` is the contract's ErrorReason, `metadata` what a program needs to go on, `retry_after` seconds,
    `violations` pairs of field path and broken rule. What is over TEXT_BYTES is cut off.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    default_reason: ClassVar[Reason.ValueType] = error_reason_pb2.ERROR_REASON_INTERNAL
    retry_after: float | None = None

    def __init__(
        self,
        message: str,
        *,
        reason: Reason.ValueType | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        field: str | None = None,
        violations: Iterable[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message = _cut(message)
        self.reason = self.default_reason if reason is None else reason
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        named = [] if field is None else [(field, message)]
        self.violations = _first_of(itertools.chain(violations, named))

    @property
    def reason_name(self) -> str:
        """The reason as ErrorInfo has it: `TOKEN_EXPIRED`."""
        return Reason.Name(self.reason).removeprefix(_PREFIX)

    @property
    def temporary(self) -> bool:
        """Whether the same call may succeed later."""
        return self.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}


class InvalidArgument(DeskwireError):
    """The request breaks a rule of the contract, whatever the state."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = error_reason_pb2.ERROR_REASON_INVALID_FIELD


class NotFound(DeskwireError):
    """No such thing in the caller's tenant; pass the reason that names the thing."""

    code = grpc.StatusCode.NOT_FOUND
    default_reason = error_reason_pb2.ERROR_REASON_UNSPECIFIED


class AlreadyExists(DeskwireError):
    """The id that the caller chose is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS
    default_reason = error_reason_pb2.ERROR_REASON_ALREADY_EXISTS


class RequestIdReused(AlreadyExists):
    """The request_id was used with another body."""

    default_reason = error_reason_pb2.ERROR_REASON_REQUEST_ID_REUSED


class PermissionDenied(DeskwireError):
    """The caller is known, and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    default_reason = error_reason_pb2.ERROR_REASON_ROLE_NOT_ALLOWED


class Unauthenticated(DeskwireError):
    """The caller is not known."""

    code = grpc.StatusCode.UNAUTHENTICATED
    default_reason = error_reason_pb2.ERROR_REASON_TOKEN_INVALID

    @property
    def temporary(self) -> bool:
        """Whether the same token will be good later: after `retry_after`, which no other token's error has."""
        return self.retry_after is not None


class FailedPrecondition(DeskwireError):
    """The state doesn't allow it."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = error_reason_pb2.ERROR_REASON_INVALID_STATE


class Aborted(DeskwireError):
    """Another caller changed it first: read again and decide again."""

    code = grpc.StatusCode.ABORTED
    default_reason = error_reason_pb2.ERROR_REASON_VERSION_MISMATCH


class VersionMismatch(Aborted):
    """`expected_version` is not the current version."""

    def __init__(self, current: int, expected: int) -> None:
        super().__init__(
            f"expected version {expected}, but the current version is {current}: read it again",
            metadata={"current_version": str(current), "expected_version": str(expected)},
        )


class OutOfRange(DeskwireError):
    """The position is no longer kept."""

    code = grpc.StatusCode.OUT_OF_RANGE
    default_reason = error_reason_pb2.ERROR_REASON_CURSOR_EXPIRED


class ResourceExhausted(DeskwireError):
    """A limit is reached: come back after `retry_after`."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = error_reason_pb2.ERROR_REASON_OVERLOADED


class Unavailable(DeskwireError):
    """Something that the call needs doesn't answer; nothing was stored."""

    code = grpc.StatusCode.UNAVAILABLE
    default_reason = error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE


def stopping() -> Unavailable:
    """Return the error that ends what can't be finished since the process stops."""
    return Unavailable(
        "the server is stopping; connect again",
        reason=error_reason_pb2.ERROR_REASON_SHUTTING_DOWN,
        retry_after=1.0,
    )


class DeadlineExceeded(DeskwireError):
    """The call took longer than its deadline."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED


class Internal(DeskwireError):
    """A fault of the server."""


_BY_CODE: Final[dict[grpc.StatusCode, type[DeskwireError]]] = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        Unauthenticated,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Internal,
    )
}
# A call that this side cancels raises CancelledError: this one the other side, or the way to it, cut off.
_BY_CODE[grpc.StatusCode.CANCELLED] = Unavailable


def to_status(error: DeskwireError) -> status_pb2.Status:
    """The Status with its details: one ErrorInfo, BadRequest if fields are named, RetryInfo if a retry helps."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason_name, domain=DOMAIN, metadata=error.metadata
        )
    ]
    if error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=field, description=rule)
                    for field, rule in error.violations
                ]
            )
        )
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(error.retry_after * 1000))
        details.append(retry)
    return status_pb2.Status(
        code=error.code.value[0], message=error.message, details=[_pack(each) for each in details]
    )


def from_rpc_error(error: grpc.RpcError) -> DeskwireError:
    """The domain error that a failed call stands for; one without details keeps its code (CANCELLED: Unavailable)."""
    call: Any = error if isinstance(error, grpc.aio.AioRpcError) else None
    code = grpc.StatusCode.UNKNOWN if call is None else call.code()
    status = None if call is None else rpc_status.from_call(call)
    text = str(error) if call is None else call.details()
    kind = _BY_CODE.get(code, Internal)
    reason: Reason.ValueType | None = None
    metadata: dict[str, str] = {}
    retry_after: float | None = None
    violations: list[tuple[str, str]] = []
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            name = _PREFIX + info.reason
            reason = Reason.Value(name) if name in Reason.keys() else None  # noqa: SIM118
            metadata = dict(info.metadata)
        elif detail.Unpack(bad):
            violations = [(each.field, each.description) for each in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToMilliseconds() / 1000
    found = kind.__new__(kind)
    DeskwireError.__init__(
        found,
        text or code.name,
        reason=reason,
        metadata=metadata,
        retry_after=retry_after,
        violations=violations,
    )
    return found


def _cut(text: str) -> str:
    data = text.encode(errors="replace")
    return text if len(data) <= TEXT_BYTES else data[:TEXT_BYTES].decode(errors="ignore") + "…"


def _first_of(violations: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first ones, at least one if there are any, up to TEXT_BYTES."""
    found: list[tuple[str, str]] = []
    room = TEXT_BYTES
    for field, rule in violations:
        room -= len(field.encode()) + len(rule.encode())
        if room < 0 and found:
            break
        found.append((_cut(field), _cut(rule)))
    return found


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
