"""A session, and the transport that carries it."""

from __future__ import annotations

import math
from typing import Final, Protocol

from deskwire.common.v1 import actor_pb2
from deskwire_common.auth import Principal, Role
from deskwire_common.lines import MOST, HeldLines
from deskwire_gateway.ring import Ring


class Transport(Protocol):
    """What carries a connection: a WebSocket or a gRPC stream."""

    name: str
    session: Session | None
    """The session that it carries; a Resume gives it an older session."""

    def send(self, data: bytes) -> None:
        """Send one encoded Batch. Doesn't block: if too many bytes wait for a slow reader, it closes."""
        ...

    def close(self, code: int, text: str) -> None:
        """Close after the batches that were sent."""
        ...

    def rest(self, seconds: float) -> None:
        """Read nothing more of the client for a while; what it sends meanwhile waits at its side."""
        ...


class _Parked:
    """The transport of a session whose connection broke: what is sent stays in the ring."""

    name = "parked"
    session: Session | None = None

    def send(self, data: bytes) -> None:
        """Keep nothing here."""

    def close(self, code: int, text: str) -> None:
        """Do nothing: the connection is closed."""

    def rest(self, seconds: float) -> None:
        """Do nothing: there is nothing to read."""


PARKED: Final = _Parked()
"""Carries every session whose connection broke."""


class Session:
    """One client's stay: made when a connection opens; `principal` is set by Hello.

    `sent` is the number of the last numbered message. `parked` is when its connection broke, 0 while it has one.
    `token` is what an agent's or bot's calls are made with; a visitor's isn't kept. `held` are the conversations in
    which a Send was refused for now; None while there is none. `is_waiting`: its Hello has come and wasn't read yet.
    """

    __slots__ = (
        "budget",
        "budget_at",
        "client",
        "closed",
        "connected_at",
        "device_id",
        "expires",
        "faults",
        "held",
        "is_waiting",
        "number",
        "parked",
        "principal",
        "ring",
        "seen",
        "sent",
        "session_id",
        "token",
        "transport",
        "typing_full_at",
        "unacked",
    )

    def __init__(self, number: int, session_id: str, transport: Transport, now: float) -> None:
        self.number = number
        self.session_id = session_id
        self.transport = transport
        self.principal: Principal | None = None
        self.token = ""
        self.client = ""
        self.device_id = ""
        self.sent = 0
        self.ring: Ring | None = None
        self.parked = 0.0
        self.seen = now
        self.connected_at = 0.0
        self.expires = 0.0
        self.unacked = 0
        self.faults = 0
        self.budget = math.inf
        self.budget_at = now
        self.typing_full_at = 0.0
        self.held: HeldLines[str] | None = None
        self.closed = False
        self.is_waiting = False

    def actor(self) -> actor_pb2.Actor:
        """Return who is connected, for chat and the directory. Only for sessions after their Hello."""
        assert self.principal is not None  # noqa: S101 - callers have said Hello
        return actor_pb2.Actor(
            role=actor_pb2.Role.Value(f"ROLE_{self.principal.role.name}"),
            subject=self.principal.subject,
            display_name=self.principal.name,
        )

    def hold(self, conversation_id: str, client_msg_id: str) -> None:
        """Hold the line of a conversation until the Send that was refused for now comes again."""
        if self.held is None:
            visits = self.principal is not None and self.principal.role is Role.VISITOR
            self.held = HeldLines(MOST if visits else None)
        self.held.hold(conversation_id, client_msg_id)

    def release(self, conversation_id: str) -> None:
        """Let the line of a conversation go on."""
        if self.held is not None:
            self.held.release(conversation_id)
            # None and not empty: every Send checks whether something is held, and that must cost no call.
            self.held = self.held or None


def same_user(one: Principal | None, other: Principal) -> bool:
    """Return whether two tokens are of the same user."""
    return one is not None and (one.tenant, one.role, one.subject) == (
        other.tenant,
        other.role,
        other.subject,
    )
