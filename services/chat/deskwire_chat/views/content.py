"""The contents of messages: what a client wants to write, and what the log holds."""

from __future__ import annotations

from typing import Final

from deskwire.chat.v1 import (
    conversation_pb2,
)
from deskwire_chat.domain.attachments import Reference
from deskwire_chat.domain.messages import Kind
from deskwire_common.errors import InvalidArgument

WITHHELD: Final = conversation_pb2.Content(withheld=conversation_pb2.Withheld()).SerializeToString()

REDACTED: Final = conversation_pb2.Content(redacted=conversation_pb2.Redacted()).SerializeToString()


def kind_of(content: conversation_pb2.Content) -> tuple[Kind, int]:
    """Return what a client wants to write, and the seq of the message that it changes.

    Raises InvalidArgument for kinds that only the server writes.
    """
    kind = content.WhichOneof("kind")
    if kind == "edit":
        return Kind.EDIT, content.edit.seq
    if kind == "redaction":
        return Kind.REDACTION, content.redaction.seq
    if kind == "note":
        return Kind.NOTE, 0
    if kind == "attachment":
        return Kind.ATTACHMENT, 0
    if kind != "text":
        raise InvalidArgument(f"content.{kind} is for the server to say", field="content")
    return Kind.TEXT, 0


def edited(body: bytes) -> bytes:
    """Return the body of a message after the edit that is encoded in `body`."""
    return text_content(conversation_pb2.Content.FromString(body).edit.text)


def reference_of(body: bytes) -> Reference:
    """Return what the body of an ATTACHMENT message says of its file."""
    said = conversation_pb2.Content.FromString(body).attachment
    return Reference(said.attachment_id.lower(), said.file_name, said.content_type, said.size_bytes)


def text_content(text: str) -> bytes:
    """Return an encoded Content of plain text: the body of a message."""
    return conversation_pb2.Content(text=text).SerializeToString()
