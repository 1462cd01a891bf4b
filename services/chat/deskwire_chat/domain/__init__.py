"""The rules of chat, by noun. Pure: no I/O, no protobuf, no clock reads. Times are microseconds since 1970 UTC."""

from deskwire_chat.domain import (
    access,
    actors,
    agents,
    attachments,
    changes,
    contacts,
    conversations,
    customers,
    history,
    messages,
    openings,
    words,
    work,
)

__all__ = [
    "access",
    "actors",
    "agents",
    "attachments",
    "changes",
    "contacts",
    "conversations",
    "customers",
    "history",
    "messages",
    "openings",
    "words",
    "work",
]
