"""The registry: all sessions of this worker, from the opening of a connection to the end of its session.

A session outlives its connection for a while: what is sent to it is numbered and kept in a ring, so that a client
that comes back soon misses nothing. There is no task, queue or timer per connection: callbacks, and one timing wheel
for heartbeats, time-outs and token ends.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, Protocol

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire_common.auth import EXPIRY_GRACE, Principal, Role
from deskwire_common.clock import Clock
from deskwire_common.errors import ResourceExhausted
from deskwire_common.ids import Ids
from deskwire_common.metrics import METRICS
from deskwire_common.quota import too_many
from deskwire_gateway.in_flight import InFlight
from deskwire_gateway.limits import Limits
from deskwire_gateway.ring import Budget, Ring
from deskwire_gateway.session import PARKED, Session, Transport, same_user
from deskwire_gateway.wheel import Wheel
from deskwire_wire.batches import encoded
from deskwire_wire.codes import Close
from deskwire_wire.protobytes import varint

_SILENT_AFTER: Final = 3
"""Ping intervals without a sign of life after which a connection is closed."""
_ALONE: Final = 1.0
"""Seconds for which a connection without a Hello needn't make room for another one."""
_COME_BACK: Final = 5.0
"""Seconds, on average, after which a client may try again for which there was no room."""


class Presence(Protocol):
    """Tells chat who is connected (presence.Presence)."""

    def attach(self, session: Session) -> None: ...

    def detach(self, session: Session) -> None: ...

    def park(self, session: Session) -> None: ...

    def unpark(self, session: Session) -> None: ...


class Registry:
    """All sessions of this worker, and their life."""

    def __init__(
        self,
        limits: Limits,
        ids: Ids,
        clock: Clock,
        sessions: dict[int, Session],
        presence: Presence,
        in_flight: InFlight,
        *,
        changed: Callable[[Session], None] = lambda _session: None,
    ) -> None:
        """`sessions` will hold those that said Hello, by number.

        `changed` is called after the Hello of a session, and when the session is over (directory.Directory).
        """
        self.limits = limits
        self.by_number = sessions
        """Sessions after their Hello."""
        self.connections = 0
        """Of all transports, before their Hello, too."""
        self.presence = presence
        self._in_flight = in_flight
        self._ids = ids
        self._clock = clock
        self._changed = changed
        self._last_number = 0
        self._of_tenant: Counter[str] = Counter()
        self._wheel = Wheel(min(limits.ping_interval, limits.visitor_ping_interval))
        self._greeting: deque[tuple[float, Session]] = deque()
        self._parked: deque[tuple[float, Session]] = deque()
        self._budget = Budget(per_ring=limits.ring_bytes, limit=limits.ring_total_bytes)

    # ---------------------------------------------------------------------------------------- life

    def open(self, transport: Transport) -> Session:
        """Return the session of a connection that opened; its first frame must be Hello."""
        self._last_number += 1
        number = self._last_number
        now = self._clock.monotonic()
        # The number is in the id, so that a Resume finds its session without another index over all of them.
        session_id = f"{self._ids.uuid7()[:24]}{number:012x}"
        session = Session(number, session_id, transport, now)
        transport.session = session
        self._greeting.append((now + self.limits.hello_timeout, session))
        self.connections += 1
        METRICS.gateway_accepted.labels(transport.name).inc()
        METRICS.gateway_connections.labels(transport.name).inc()
        return session

    def check_room(self) -> None:
        """Raise ResourceExhausted (OVERLOADED) when no more connections may open.

        Then the one that has been without its Hello for longest makes room for another one, unless it has just come.
        """
        if self.connections < self.limits.max_connections:
            return
        before = self._clock.monotonic() + self.limits.hello_timeout - _ALONE
        while self._greeting and self._greeting[0][0] <= before:
            _, session = self._greeting.popleft()
            if session.principal is None and not session.closed and not session.is_waiting:
                error = _no_room()
                again = error.retry_after or 0.0
                self.goodbye(session, Close.NO_ROOM, error.reason, error.message, after=again)
                return
        METRICS.gateway_refused.labels("NO_ROOM").inc()
        raise _no_room()

    def check_tenant(self, tenant: str) -> None:
        """Raise ResourceExhausted (RATE_LIMITED) when a tenant may have no more sessions."""
        limit = self.limits.max_tenant_connections
        if limit and self._of_tenant[tenant] >= limit:
            raise too_many("connections here", limit, retry_after=_come_back())

    def enter(self, session: Session, principal: Principal) -> None:
        """Take in the session of a user after its Hello."""
        session.principal = principal
        self._of_tenant[principal.tenant] += 1
        session.connected_at = self._clock.now().timestamp()
        self.by_number[session.number] = session
        self._wheel.add(session)

    def announce(self, session: Session) -> None:
        """Tell chat and the directory about a session that was taken in."""
        self.presence.attach(session)
        self._changed(session)

    def disconnected(self, transport: Transport) -> None:
        """Note that a connection is gone, whoever ended it. Its session waits for a Resume, unless it said Goodbye."""
        self.connections -= 1
        METRICS.gateway_connections.labels(transport.name).dec()
        # Otherwise session and transport would be a cycle, and work for the collector.
        session, transport.session = transport.session, None
        if session is None or session.transport is not transport or session.closed:
            return
        if session.principal is None or not self.limits.resume_window:
            self.end(session)
            return
        session.transport = PARKED
        session.parked = self._clock.monotonic()
        self._parked.append((session.parked, session))
        self.presence.park(session)
        if len(self._parked) > self.limits.max_connections:
            self._end_first_parked()

    def end(self, session: Session) -> None:
        """End a session for good."""
        if session.closed:
            return
        session.closed = True
        if session.ring is not None:
            session.ring.clear()
        self._wheel.discard(session)
        if self.by_number.pop(session.number, None) is not None and session.principal is not None:
            tenant = session.principal.tenant
            self._of_tenant[tenant] -= 1
            if not self._of_tenant[tenant]:
                del self._of_tenant[tenant]
            self.presence.detach(session)
            self._in_flight.end(session)
            self._changed(session)

    def goodbye(
        self,
        session: Session,
        code: Close,
        reason: int,
        text: str,
        *,
        after: float = 0.0,
        spread: float = 0.0,
    ) -> None:
        """Say Goodbye, close the connection and end the session.

        The client comes back `after` so many seconds at the earliest, plus a random part of `spread` seconds.
        """
        if session.closed:
            return
        frame = frame_pb2.Goodbye(
            code=code,
            reason=reasons.ErrorReason.ValueType(reason),
            message=text,
            reconnect=code.reconnect,
        )
        if after:
            # Rounded up: who comes back a millisecond too early is sent away again.
            frame.after.FromMilliseconds(math.ceil(after * 1000))
        if spread:
            frame.spread.FromMilliseconds(int(spread * 1000))
        METRICS.gateway_closed.labels(code.name.lower()).inc()
        session.transport.send(encoded(goodbye=frame))
        session.transport.close(code, text)
        self.end(session)

    def drain(self, spread: float = 5.0) -> None:
        """Close all connections; their clients come back elsewhere."""
        for session in list(self.by_number.values()):
            self.goodbye(
                session,
                Close.GOING_AWAY,
                reasons.ERROR_REASON_SHUTTING_DOWN,
                "this server stops; connect again",
                after=0.1,
                spread=spread,
            )

    def _end_first_parked(self) -> None:
        """End the session that has waited longest for its client, if it still waits."""
        parked, session = self._parked.popleft()
        if session.parked == parked:
            self.end(session)

    # --------------------------------------------------------------------------------------- pushes

    def push(self, session: Session, data: bytes) -> None:
        """Send encoded batches to a client, as one numbered message that a Resume repeats."""
        number = session.sent = session.sent + 1
        data += b"\x10" + varint(number)  # Batch.number = 2
        if self.limits.resume_window:
            ring = session.ring
            if ring is None:
                ring = session.ring = Ring(self._budget, number - 1)
            ring.add(number, data)
        session.transport.send(data)

    def resumable(self, resume: frame_pb2.Resume, principal: Principal) -> Session | None:
        """Return the session that a client may resume: its own, if it has sent what the client received."""
        try:
            session = self.by_number.get(int(resume.session_id[24:], 16))
        except ValueError:
            return None
        if session is None or session.session_id != resume.session_id:
            return None
        is_theirs = same_user(session.principal, principal)
        return session if is_theirs and resume.last_number <= session.sent else None

    # ----------------------------------------------------------------------------------------- time

    def ping_interval(self, session: Session) -> float:
        """Return seconds. Visitors are many, and their presence matters less than that of those who serve."""
        who = session.principal
        is_visitor = who is not None and who.role is Role.VISITOR
        return self.limits.visitor_ping_interval if is_visitor else self.limits.ping_interval

    def tick(self) -> None:
        """Once a second: end sessions that were silent for too long. A turn of the wheel looks at each session once."""
        now = self._clock.monotonic()
        while self._greeting and self._greeting[0][0] <= now:
            _, session = self._greeting.popleft()
            if session.principal is None and not session.is_waiting:
                self.goodbye(
                    session,
                    Close.HELLO_REQUIRED,
                    reasons.ERROR_REASON_HELLO_REQUIRED,
                    "no Hello came in time",
                )
        while self._parked and self._parked[0][0] + self.limits.resume_window <= now:
            self._end_first_parked()
        wall = self._clock.now().timestamp()
        for session in self._wheel.turn():
            # As long as Hello takes the token: else its client would come back with it, in a loop.
            if session.expires + EXPIRY_GRACE <= wall:
                self.goodbye(
                    session,
                    Close.TOKEN_EXPIRED,
                    reasons.ERROR_REASON_TOKEN_EXPIRED,
                    "the token has expired; come back with a new one",
                )
            elif (
                session.seen < now - _SILENT_AFTER * self.ping_interval(session)
                and not session.parked
            ):
                self.goodbye(
                    session,
                    Close.SILENT,
                    reasons.ERROR_REASON_UNSPECIFIED,
                    "nothing was heard of you",
                )


def _no_room() -> ResourceExhausted:
    return ResourceExhausted(
        "there is no room for more connections here; come back later", retry_after=_come_back()
    )


def _come_back() -> float:
    return _COME_BACK * (0.5 + random.random())  # noqa: S311 - a spread, no secret
