"""How a target is spared: the size of batches, the rate, and the pause after failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

Uniform = Callable[[float, float], float]

#: Failures in a row of single events after which it is the target that fails, and not the events.
PATIENCE: Final = 5


class Throttle:
    """One target. `limit` is the size of the next batch, `until` when it may be sent (seconds).

    A batch that fails as a whole is halved, so that the event that makes it fail is found; a success doubles the limit
    again. When single events fail one after the other, it is the target: then pauses grow and nothing is parked.
    """

    def __init__(self, limit: int, *, first: float, longest: float, uniform: Uniform) -> None:
        """`limit` events at the most; pauses from `first` to `longest` seconds, with jitter from `uniform`."""
        self.most = limit
        self.limit = limit
        self.until = 0.0
        self.failures = 0
        self._singles = 0
        self._first = first
        self._longest = longest
        self._uniform = uniform

    @property
    def open(self) -> bool:
        """Whether the target counts as failing: one event at a time is tried."""
        return self.failures > 0

    def worked(self) -> None:
        """A batch was answered."""
        self.failures = self._singles = 0
        self.limit = min(self.most, self.limit * 2)

    def too_large(self, count: int) -> None:
        """A batch of `count` was refused for its size."""
        self.limit = max(1, min(self.limit, count) // 2)

    def failed(self, now: float, count: int) -> bool:
        """A batch of `count` failed at a target that lives; True when its one event is to blame."""
        if count > 1:
            self.limit = max(1, min(self.limit, count) // 2)
            return False
        self._singles += 1
        if self._singles < PATIENCE:
            return True
        self.away(now)
        return False

    def away(self, now: float, asked: float | None = None) -> float:
        """The target doesn't answer; return the seconds to pause, `asked` if it asked for them."""
        pause = asked if asked is not None else self.pause(self.failures)
        self.failures += 1
        self.until = now + pause
        return pause

    def pause(self, failures: int) -> float:
        """The pause after so many failures before."""
        top = min(self._first * 2.0 ** min(failures, 30), self._longest)
        return self._uniform(top / 2, top)


class Bucket:
    """A token bucket: `rate` events a second on average, `burst` at once; rate 0: no limit.

    Source: the generic cell rate algorithm, ITU-T I.371.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = max(burst, 1.0)
        self._tokens = self._burst
        self._at = 0.0

    def room(self, now: float) -> int | None:
        """How many may go now; None: no limit."""
        if not self._rate:
            return None
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now
        return int(self._tokens)

    def spend(self, count: int) -> None:
        """Note that so many went."""
        self._tokens -= count

    def wait(self) -> float:
        """Seconds until one more may go."""
        return max(0.0, (1.0 - self._tokens) / self._rate) if self._rate else 0.0
