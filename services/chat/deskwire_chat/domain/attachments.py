"""The rules of attachments: which files are taken, who sees and sends them, and their states."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final
from urllib.parse import quote

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat.domain.actors import Actor
from deskwire_chat.domain.conversations import Conversation, may_see
from deskwire_common import texts
from deskwire_common.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)

UNSENT_SECONDS: Final = 24 * 3600
"""How long an attachment waits to be sent before it is removed."""


class AttachmentState(IntEnum):
    """The state of an attachment; the numbers are those of the contract and the database. REMOVED is never shown."""

    PENDING = 1
    READY = 2
    SENT = 3
    REMOVED = 4
    """The object is to be removed, and then the row: the durable mark from which the remover works."""


@dataclass(frozen=True, slots=True)
class Reference:
    """How a message refers to an attachment."""

    attachment_id: str
    file_name: str
    content_type: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Attachment:
    """One file of a conversation. `remove_at`: when its object may be removed, 0: it stays."""

    attachment_id: str
    tenant: str
    conversation_id: str
    uploader_role: int
    uploader_id: str
    uploader_name: str
    file_name: str
    content_type: str
    size_bytes: int
    sha256: str
    state: AttachmentState
    seq: int
    created_at: int
    remove_at: int

    @property
    def reference(self) -> Reference:
        """The reference that a message which carries it must have."""
        return Reference(self.attachment_id, self.file_name, self.content_type, self.size_bytes)

    def is_of(self, who: Actor) -> bool:
        """Whether `who` created it."""
        return (self.tenant, self.uploader_role, self.uploader_id) == (
            who.tenant,
            int(who.role),
            who.subject,
        )


def not_found(attachment_id: str) -> NotFound:
    """Return the error for attachments that don't exist, or that the caller may not see or send."""
    return NotFound(
        f"no attachment {attachment_id} that you can see, or send here",
        reason=reasons.ERROR_REASON_ATTACHMENT_NOT_FOUND,
    )


def not_ready(state: AttachmentState, why: str) -> FailedPrecondition:
    """Return the error for a step that needs a READY attachment."""
    return FailedPrecondition(
        why, reason=reasons.ERROR_REASON_ATTACHMENT_NOT_READY, metadata={"state": state.name}
    )


def not_uploaded(why: str) -> FailedPrecondition:
    """Return the error for bytes that are missing, or differ from the declared ones."""
    return not_ready(AttachmentState.PENDING, f"{why}: PUT the declared bytes to the upload URL")


def checked_name(
    file_name: str, content_type: str, size: int, *, allowed: Sequence[str], max_bytes: int
) -> str:
    """Return the name that a file is kept under.

    `allowed`: types, or beginnings of types followed by a *. Raises InvalidArgument for a file that isn't taken.
    """
    name = texts.line(file_name, "file_name")
    if not name.strip("."):
        raise InvalidArgument("file_name may not have only dots", field="file_name")
    if size > max_bytes:
        raise InvalidArgument(
            f"a file may have at most {max_bytes} bytes here (DESKWIRE_ATTACHMENTS_MAX_BYTES)",
            field="size_bytes",
        )
    if not any(_matches(content_type, each) for each in allowed):
        raise InvalidArgument(
            f"files of type {content_type} aren't taken here: allowed are {', '.join(allowed)} "
            "(DESKWIRE_ATTACHMENTS_TYPES)",
            field="content_type",
        )
    return name


def _matches(content_type: str, pattern: str) -> bool:
    if pattern.endswith("*"):
        return content_type.startswith(pattern[:-1])
    return content_type == pattern


def check_unsent(count: int, limit: int) -> None:
    """Raise ResourceExhausted (RATE_LIMITED) for a user with too many files that no message carries."""
    if count >= limit:
        raise ResourceExhausted(
            f"{count} of your attachments aren't sent yet: send one, or wait until they are removed",
            reason=reasons.ERROR_REASON_RATE_LIMITED,
            retry_after=60.0,
        )


def is_visible(item: Attachment | None, conversation: Conversation | None, who: Actor) -> bool:
    """Whether `who` may fetch it: its uploader, and once it is sent everybody who sees the conversation."""
    if item is None or item.tenant != who.tenant or item.state == AttachmentState.REMOVED:
        return False
    if item.is_of(who):
        # An agent may always fetch their own file; a visitor's conversation may not exist yet.
        return True
    sent = item.state == AttachmentState.SENT
    return sent and conversation is not None and may_see(conversation, who)


def check_may_send(
    item: Attachment | None, reference: Reference, conversation_id: str, who: Actor
) -> Attachment:
    """Return the record of an attachment that `who` wants to send.

    Raises NotFound (ATTACHMENT_NOT_FOUND) unless it belongs to them and to this conversation, FailedPrecondition
    (ATTACHMENT_NOT_READY) unless its bytes were checked and no message carries it, InvalidArgument for a reference
    that differs from the record.
    """
    if (
        item is None
        or not item.is_of(who)
        or item.conversation_id != conversation_id
        or item.state == AttachmentState.REMOVED
    ):
        raise not_found(reference.attachment_id)
    if item.state == AttachmentState.PENDING:
        raise not_ready(
            item.state, "the attachment isn't complete: PUT its bytes, then call CompleteAttachment"
        )
    if item.state == AttachmentState.SENT:
        raise not_ready(item.state, "a message has the attachment already: create another one")
    if reference != item.reference:
        raise InvalidArgument(
            "the attachment has another name, type or size than the message says",
            field="content.attachment",
        )
    return item


def sent(item: Attachment, seq: int) -> Attachment:
    """Return the attachment once a message carries it: it stays."""
    return replace(item, state=AttachmentState.SENT, seq=seq, remove_at=0)


def disposition(file_name: str) -> str:
    """Return a Content-Disposition with which browsers save a file and never show it (RFC 6266, RFC 8187)."""
    plain = unicodedata.normalize("NFKD", file_name).encode("ascii", "ignore").decode()
    safe = "".join(each if each.isalnum() or each in " ._-()" else "_" for each in plain).strip()
    encoded = quote(file_name, safe="")
    return f"attachment; filename=\"{safe or 'file'}\"; filename*=UTF-8''{encoded}"
