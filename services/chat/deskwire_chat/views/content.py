"""The contents of messages: those that a client wants to write, and those that the log holds."""

from __future__ import annotations

from typing import Final

from deskwire.chat.v1 import conversation_pb2, conversation_service_pb2
from deskwire.gateway.v1 import frame_pb2
from deskwire_chat.domain.attachments import Reference
from deskwire_chat.domain.messages import Kind, check_client_msg_id
from deskwire_common import texts
from deskwire_common.errors import InvalidArgument
from deskwire_common.ids import is_uuid
from deskwire_common.validation import Validator
from deskwire_wire.limits import MAX_CLIENT_MSG_ID, MAX_TEXT, MAX_TRACEPARENT

WITHHELD: Final = conversation_pb2.Content(withheld=conversation_pb2.Withheld()).SerializeToString()

REDACTED: Final = conversation_pb2.Content(redacted=conversation_pb2.Redacted()).SerializeToString()


def kind_of(content: conversation_pb2.Content) -> tuple[Kind, int]:
    """Return the kind of a client's content, and the seq of the message that it changes.

    Raises InvalidArgument for kinds that only the server writes, and for a text of which nothing can be seen.
    """
    kind = content.WhichOneof("kind")
    if kind == "edit":
        texts.check_seen(content.edit.text, "content.edit.text")
        return Kind.EDIT, content.edit.seq
    if kind == "redaction":
        return Kind.REDACTION, content.redaction.seq
    if kind == "note":
        texts.check_seen(content.note.text, "content.note.text")
        return Kind.NOTE, 0
    if kind == "attachment":
        # As CreateAttachment keeps it.
        content.attachment.file_name = texts.trimmed(content.attachment.file_name)
        return Kind.ATTACHMENT, 0
    if kind != "text":
        raise InvalidArgument(f"content.{kind} is for the server to say", field="content")
    texts.check_seen(content.text, "content.text")
    return Kind.TEXT, 0


def edited(body: bytes) -> bytes:
    """Return the body of a message after the edit that is encoded in `body`."""
    return text_content(conversation_pb2.Content.FromString(body).edit.text)


def reference_of(body: bytes) -> Reference:
    """Return the reference to its file in the body of an ATTACHMENT message."""
    file = conversation_pb2.Content.FromString(body).attachment
    return Reference(file.attachment_id.lower(), file.file_name, file.content_type, file.size_bytes)


def text_content(text: str) -> bytes:
    """Return an encoded Content of plain text: the body of a message."""
    return conversation_pb2.Content(text=text).SerializeToString()


def checked(
    message: frame_pb2.Send | conversation_service_pb2.StreamedMessage,
    validator: Validator,
    *,
    lower_case: bool = False,
) -> tuple[Kind, int]:
    """Check a client's message; return its kind, and the seq that it changes. Raises InvalidArgument.

    The usual cases are checked by hand, as this is the hot path; the validator knows all rules, and their error texts.
    `lower_case`: conversation_id must be in lower case, as it is used unchanged.
    """
    client_msg_id, conversation_id = message.client_msg_id, message.conversation_id
    content = message.content
    check_client_msg_id(client_msg_id)
    if (
        is_uuid(conversation_id)
        and 0 < len(client_msg_id) <= MAX_CLIENT_MSG_ID
        and content.WhichOneof("kind") == "text"
        and len(content.text) <= MAX_TEXT
        and texts.has_seen(content.text)
        and len(message.traceparent) <= MAX_TRACEPARENT
    ):
        return Kind.TEXT, 0
    validator.check(message)
    if lower_case and not is_uuid(conversation_id):
        raise InvalidArgument("write conversation_id in lower case", field="conversation_id")
    return kind_of(content)
