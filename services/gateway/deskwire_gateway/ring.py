"""The ring: what was sent to a connection lately and not acknowledged, for a client that comes back soon.

Bounded per session and for the whole worker. What doesn't fit is forgotten. A Resume then reports that it isn't
lossless, and the client Syncs the messages from history.
"""

from __future__ import annotations

from collections import deque

from deskwire_common.metrics import METRICS


class Budget:
    """The bytes that all rings of a worker hold, and may hold; `per_ring` is the limit of one."""

    __slots__ = ("limit", "per_ring", "used")

    def __init__(self, *, per_ring: int, limit: int) -> None:
        self.per_ring = per_ring
        self.limit = limit
        self.used = 0


class Ring:
    """The last messages of one session, by number; made with the first one."""

    __slots__ = ("_budget", "_bytes", "_items", "floor")

    def __init__(self, budget: Budget, floor: int) -> None:
        """`floor`: messages up to this number aren't here."""
        self._budget = budget
        self._items: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self.floor = floor

    def add(self, number: int, data: bytes) -> None:
        """Keep a message; the oldest ones go when there is no room."""
        budget = self._budget
        self._items.append((number, data))
        self._bytes += len(data)
        budget.used += len(data)
        while self._items and (self._bytes > budget.per_ring or budget.used > budget.limit):
            METRICS.gateway_dropped.labels("ring").inc()
            self._forget_first()

    def acked(self, number: int) -> None:
        """Forget everything up to a number: the client has it."""
        items = self._items
        while items and items[0][0] <= number:
            self._forget_first()

    def after(self, number: int) -> list[bytes] | None:
        """Return the messages after a number, or None when some of them are gone."""
        if number < self.floor:
            return None
        return [data for place, data in self._items if place > number]

    def clear(self) -> None:
        """Forget everything."""
        while self._items:
            self._forget_first()

    def _forget_first(self) -> None:
        self.floor, data = self._items.popleft()
        self._bytes -= len(data)
        self._budget.used -= len(data)
