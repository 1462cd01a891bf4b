"""The codes that end a connection."""

from __future__ import annotations

from enum import IntEnum


class Close(IntEnum):
    """WebSocket close codes: from 3000 come back, from 3500 don't."""

    GOING_AWAY = 3000
    TOKEN_EXPIRED = 3001
    SLOW_READER = 3002
    SILENT = 3003
    NO_ROOM = 3004
    HELLO_REQUIRED = 3500
    TOKEN_REFUSED = 3501
    TOO_MANY_FAULTS = 3502
    SHUT_OUT = 3503
    REPLACED = 3504

    @property
    def reconnect(self) -> bool:
        """Whether the client should come back."""
        return may_reconnect(self)


def may_reconnect(code: int) -> bool:
    """Whether a client should come back after a close with this code, even one that only a newer server has."""
    return code < Close.HELLO_REQUIRED
