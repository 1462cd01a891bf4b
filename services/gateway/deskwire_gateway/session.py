"""What a session is, what carries it, and what it needs; the protocol itself is in `sessions`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from deskwire.common.v1 import actor_pb2
from deskwire.gateway.v1 import frame_pb2
from deskwire_common.auth import Principal
from deskwire_gateway.ring import Ring


class Transport(Protocol):
    """What carries a connection."""

    name: str
    session: Session | None
    """Whose it is; a Resume gives it to an older session."""

    def send(self, data: bytes) -> None:
        """Send one encoded Batch; never waits."""
        ...

    def close(self, code: int, text: str) -> None:
        """Close after what was sent."""
        ...


class _Parked:
    """The Transport of a session whose connection broke: what is sent stays in the ring."""

    name = "parked"
    session: Session | None = None

    def send(self, data: bytes) -> None:
        """Keep nothing here."""

    def close(self, code: int, text: str) -> None:
        """It is closed."""


PARKED: Final = _Parked()
"""Carries every session whose connection broke."""


class Chat(Protocol):
    """The way to chat (shards.Shards)."""

    @property
    def pending_count(self) -> int: ...

    def attach(self, session: Session) -> None: ...

    def detach(self, session: Session) -> None: ...

    def send(self, session: Session, send: frame_pb2.Send) -> None: ...

    def sync(self, session: Session, sync: frame_pb2.Sync) -> None: ...

    def park(self, session: Session) -> None: ...

    def unpark(self, session: Session) -> None: ...

    def receipt(
        self, session: Session, conversation_id: str, *, delivered: int, read: int
    ) -> None: ...

    def typing(self, session: Session, typing: frame_pb2.Typing) -> None: ...


class Calls(Protocol):
    """The way for unary calls (calls.Calls)."""

    def call(self, session: Session, said: frame_pb2.Rpc) -> None: ...

    def end(self, session: Session) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may do; seconds, bytes, per second."""

    ping_interval: float
    visitor_ping_interval: float
    hello_timeout: float
    max_message_bytes: int
    max_unacked_sends: int
    max_calls: int
    max_pending_sends: int
    send_rate: float
    send_burst: int
    tenant_send_rate: float
    backoff_initial: float
    backoff_max: float
    resume_window: float
    ring_bytes: int
    ring_total_bytes: int


class Session:
    """One client's stay: made when a connection opens, `principal` is set by Hello.

    `sent` is the number of the last numbered message; `parked` is when its connection broke, 0 while it has one.
    `token` is what an agent's or bot's calls are made with; a visitor's isn't kept.
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
        "number",
        "parked",
        "principal",
        "ring",
        "seen",
        "sent",
        "session_id",
        "token",
        "transport",
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
        self.budget = -1.0
        self.budget_at = now
        self.held: dict[str, str] | None = None
        self.closed = False

    def actor(self) -> actor_pb2.Actor:
        """Who is connected, for chat and the directory."""
        assert self.principal is not None  # noqa: S101 - callers have said Hello
        return actor_pb2.Actor(
            role=actor_pb2.Role.Value(f"ROLE_{self.principal.role.name}"),
            subject=self.principal.subject,
            display_name=self.principal.name,
        )


def same_user(one: Principal | None, other: Principal) -> bool:
    """Whether two tokens are of the same user."""
    return one is not None and (one.tenant, one.role, one.subject) == (
        other.tenant,
        other.role,
        other.subject,
    )
