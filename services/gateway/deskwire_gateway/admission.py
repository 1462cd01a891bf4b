"""Admission: the limits of a connection, a tenant and the port, and which lines are held until a Send comes again."""

from __future__ import annotations

import random
from typing import Final

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire_common.errors import ResourceExhausted
from deskwire_common.fair import Shares
from deskwire_gateway.limits import Limits
from deskwire_gateway.session import Session

SEND_COST: Final = 1.0
"""Tokens of a connection's bucket that a Send takes."""
OTHER_COST: Final = 0.25
"""Tokens that any other frame takes."""
CALL_COST: Final = 4.0
"""Tokens that an Rpc takes: a unary call is some ten times a Send's work."""
SYNC_COST: Final = 2.0
"""Tokens that a Sync takes, which reads from the database."""
TYPING_RATE: Final = 5.0
"""Typings a second that go on: everybody in the conversation gets each of them."""
_TYPING_BURST: Final = 10
_DEBT_SECONDS: Final = 1.0
"""For how many seconds of its rate a bucket may be in debt."""
_MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
"""Bytes of a worker's Sends that wait for their answers: long Sends fill the memory before their number is too high."""
_BURST_SECONDS: Final = 2.0
_KEPT: Final = 1_000
_SLACK: Final = 0.01


class Bucket:
    """A token bucket: it fills at a rate and holds the tokens of two seconds, at least one."""

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, rate: float, now: float) -> None:
        """`rate` per second; `now` in seconds of any clock that only goes forward."""
        self.rate = rate
        self.burst = max(1.0, rate * _BURST_SECONDS)
        self._left = self.burst
        self._at = now

    def take(self, now: float) -> float:
        """Take one; return the seconds to wait when there is none, else 0."""
        if now > self._at:
            self._left = min(self.burst, self._left + (now - self._at) * self.rate)
            self._at = now
        if self._left >= 1.0:
            self._left -= 1.0
            return 0.0
        return (1.0 - self._left) / self.rate + _SLACK

    def is_full(self, now: float) -> bool:
        """Return whether it is full, like a new one."""
        return self._left + (now - self._at) * self.rate >= self.burst


class TenantRates:
    """A bucket per tenant, of this worker. Rate 0: no limit."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._buckets: dict[str, Bucket] = {}

    def take(self, tenant: str, now: float) -> float:
        """Take one of a tenant's tokens; return the seconds to wait when there is none, else 0."""
        if not self.rate:
            return 0.0
        bucket = self._buckets.get(tenant)
        if bucket is None:
            if len(self._buckets) >= _KEPT:
                self._forget(now)
            bucket = self._buckets[tenant] = Bucket(self.rate, now)
        return bucket.take(now)

    def _forget(self, now: float) -> None:
        """Forget full buckets, which are as new ones."""
        for tenant in [name for name, bucket in self._buckets.items() if bucket.is_full(now)]:
            del self._buckets[tenant]


class Admission:
    """Decides what may go on to chat."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._tenants = TenantRates(limits.tenant_send_rate)
        self.room = Shares(_MAX_WAITING_BYTES)
        """Bytes of this worker's Sends without an answer; none counts for fewer than `least_bytes`."""
        self.least_bytes = max(1, _MAX_WAITING_BYTES // limits.max_pending_sends)

    def admit(self, session: Session, tenant: str, send: frame_pb2.Send) -> None:
        """Raise ResourceExhausted unless a Send may go on.

        A Send that is refused here holds the line of its conversation.
        """
        limits = self._limits
        if session.held is not None:
            session.held.check(send.conversation_id, send.client_msg_id)
        if session.unacked >= limits.max_unacked_sends:
            raise ResourceExhausted(
                f"{limits.max_unacked_sends} Sends are without their SendAck; wait for those",
                retry_after=0.5,
            )
        if self.room.is_full(tenant):
            raise ResourceExhausted(
                "too many messages wait to be stored",
                retry_after=1 + random.random(),  # noqa: S311 - a spread, no secret
            )
        pause = self.take(session, SEND_COST)
        if pause:
            raise self.too_fast(pause)
        if limits.tenant_send_rate:
            pause = self._tenants.take(tenant, session.seen)
            if pause:
                raise ResourceExhausted(
                    f"more than {limits.tenant_send_rate:g} messages a second of your tenant",
                    reason=reasons.ERROR_REASON_RATE_LIMITED,
                    retry_after=pause,
                )
        if session.held is not None:
            session.release(send.conversation_id)

    def take(self, session: Session, cost: float) -> float:
        """Take tokens from a session's bucket; return the seconds to wait when there aren't enough, else 0.

        What is refused was read, too, and takes a little: the bucket is in debt then.
        """
        limits = self._limits
        budget = min(
            float(limits.send_burst),
            session.budget + (session.seen - session.budget_at) * limits.send_rate,
        )
        session.budget_at = session.seen
        if budget >= cost:
            session.budget = budget - cost
            return 0.0
        session.budget = max(budget - OTHER_COST, -_DEBT_SECONDS * limits.send_rate)
        return (cost - session.budget) / limits.send_rate + 0.05

    def rest(self, session: Session) -> float:
        """Return for how many seconds nothing more should be read of a client: while much of its bucket is debt."""
        if session.budget > -_DEBT_SECONDS * self._limits.send_rate / 2:
            return 0.0
        return -session.budget / self._limits.send_rate

    def may_type(self, session: Session) -> bool:
        """Return whether a Typing may go on; otherwise it is dropped, as it is worth nothing later."""
        if self.take(session, OTHER_COST):
            return False
        # A bucket in one number, the time at which it is full (the generic cell rate algorithm, ITU-T I.371).
        full_at = max(session.typing_full_at, session.seen) + 1 / TYPING_RATE
        if full_at - session.seen > _TYPING_BURST / TYPING_RATE:
            return False
        session.typing_full_at = full_at
        return True

    def cost(self, tokens: float) -> float:
        """Return the tokens that a frame takes: at most what a bucket can hold."""
        return min(tokens, self._limits.send_burst)

    def too_fast(self, pause: float) -> ResourceExhausted:
        """Return the error for what comes some seconds too early."""
        return ResourceExhausted(
            f"more than {self._limits.send_rate:g} messages a second",
            reason=reasons.ERROR_REASON_RATE_LIMITED,
            retry_after=pause,
        )
