"""The rules of messages and receipts: what may be written, by whom, and what may be changed later."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat.domain.actors import Actor, ActorRole
from deskwire_common import texts
from deskwire_common.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)


class Kind(IntEnum):
    """The kind of a message; the numbers are those of Content's kinds, and of the database."""

    TEXT = 1
    EDIT = 2
    REDACTION = 3
    NOTE = 4
    REDACTED = 6
    ATTACHMENT = 7


@dataclass(slots=True)
class Message:
    """One committed message and its place in its conversation and its partition."""

    message_id: str
    conversation_id: str
    tenant: str
    seq: int
    position: int
    role: int
    subject: str
    name: str
    origin: str
    client_msg_id: str
    body: bytes
    created_at: int
    traceparent: str = ""
    kind: int = Kind.TEXT
    target_seq: int = 0
    """The message that an edit or a redaction changes; 0 for other kinds."""
    changed_at: int = 0
    """When it was last edited or redacted; 0: never."""
    imported: bool = False
    """Whether it was written in another system: then `created_at` is of there, and it has no event of its own."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """How far a user has got in a conversation; it never goes back."""

    conversation_id: str
    role: int
    subject: str
    delivered_seq: int
    read_seq: int


def check_kind(kind: int, who: Actor) -> None:
    """Raise PermissionDenied for a kind that `who` may not write: only the desk writes notes."""
    if kind == Kind.NOTE and who.role == ActorRole.VISITOR:
        raise PermissionDenied(
            "notes are for the desk", reason=reasons.ERROR_REASON_ROLE_NOT_ALLOWED
        )


def check_may_change(target: Message | None, kind: int, seq: int, who: Actor) -> Message:
    """Return the message that an edit or a redaction changes.

    Raises NotFound (MESSAGE_NOT_FOUND), FailedPrecondition (MESSAGE_UNCHANGEABLE), and PermissionDenied
    (NOT_A_PARTICIPANT) for anybody but its sender; agents and bots may redact messages of others.
    """
    if target is None or (who.role == ActorRole.VISITOR and target.kind == Kind.NOTE):
        raise NotFound(
            f"no message {seq} in the conversation", reason=reasons.ERROR_REASON_MESSAGE_NOT_FOUND
        )
    can_be = {Kind.TEXT} if kind == Kind.EDIT else {Kind.TEXT, Kind.NOTE, Kind.ATTACHMENT}
    if target.kind not in can_be or target.role == ActorRole.SYSTEM:
        raise FailedPrecondition(
            f"message {seq} can't be changed: it is redacted, or no message of that kind",
            reason=reasons.ERROR_REASON_MESSAGE_UNCHANGEABLE,
        )
    own = (target.role, target.subject) == (int(who.role), who.subject)
    if not own and (kind == Kind.EDIT or who.role not in {ActorRole.AGENT, ActorRole.BOT}):
        raise PermissionDenied(
            "the message is somebody else's", reason=reasons.ERROR_REASON_NOT_A_PARTICIPANT
        )
    return target


def check_client_msg_id(client_msg_id: str) -> None:
    """Raise InvalidArgument for an id that databases compare differently: MariaDB ignores blanks at the end."""
    if not texts.is_line(client_msg_id) or client_msg_id.endswith(" "):
        raise InvalidArgument(
            f"client_msg_id {texts.LINE_RULE}; its last one may be no blank",
            field="client_msg_id",
            reason=reasons.ERROR_REASON_INVALID_FIELD,
        )
