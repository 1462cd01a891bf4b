"""How much a worker takes of what several connections do together: a tenant's messages, and new connections."""

from __future__ import annotations

from typing import Final

_BURST_SECONDS: Final = 2.0
_KEPT: Final = 1_000
_SLACK: Final = 0.01


class Bucket:
    """Tokens that come at a rate, up to two seconds' worth of them (and at least one)."""

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, rate: float, now: float) -> None:
        """`rate` per second; `now` in seconds of any clock that only goes forward."""
        self.rate = rate
        self.burst = max(1.0, rate * _BURST_SECONDS)
        self._left = self.burst
        self._at = now

    def take(self, now: float) -> float:
        """Take one; the seconds to wait when there is none, else 0."""
        if now > self._at:
            self._left = min(self.burst, self._left + (now - self._at) * self.rate)
            self._at = now
        if self._left >= 1.0:
            self._left -= 1.0
            return 0.0
        return (1.0 - self._left) / self.rate + _SLACK

    def is_full(self, now: float) -> bool:
        """Whether it is as if it were new."""
        return self._left + (now - self._at) * self.rate >= self.burst


class TenantRates:
    """A bucket per tenant, of this worker. Rate 0: everything is taken."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._buckets: dict[str, Bucket] = {}

    def take(self, tenant: str, now: float) -> float:
        """Take one of a tenant's tokens; the seconds to wait when there is none, else 0."""
        if not self.rate:
            return 0.0
        bucket = self._buckets.get(tenant)
        if bucket is None:
            if len(self._buckets) >= _KEPT:
                self._forget(now)
            bucket = self._buckets[tenant] = Bucket(self.rate, now)
        return bucket.take(now)

    def _forget(self, now: float) -> None:
        """Full buckets needn't be kept."""
        for tenant in [each for each, bucket in self._buckets.items() if bucket.is_full(now)]:
            del self._buckets[tenant]
