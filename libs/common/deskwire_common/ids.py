"""Ids, injected: UUIDv7 text, so that new rows are neighbours in an index (RFC 9562)."""

from __future__ import annotations

import re
import secrets
from typing import Final, Protocol

import uuid_utils

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Ids(Protocol):
    """The source of new ids."""

    def uuid7(self) -> str:
        """A new UUIDv7 as 36 lower-case characters."""
        ...


class RandomIds:
    """Real ids."""

    def uuid7(self) -> str:
        return str(uuid_utils.uuid7())


def is_uuid(text: str) -> bool:
    """Whether this is a UUID in its canonical, lower-case form."""
    return _UUID.fullmatch(text) is not None


def random_trace_id() -> str:
    """32 hex digits for work that has no trace yet (W3C trace context)."""
    return secrets.token_hex(16)
