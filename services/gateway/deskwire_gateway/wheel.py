"""The timing wheel: looks at each session once a turn, without a timer per connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from deskwire_gateway.session import Session


class Wheel:
    """Sessions in one bucket per second of a turn, by their number."""

    def __init__(self, seconds: float) -> None:
        """A turn takes this long, at least a second."""
        self._buckets: list[set[Session]] = [set() for _ in range(max(1, int(seconds)))]
        self._at = 0

    def add(self, session: Session) -> None:
        """Look at a session from now on."""
        self._buckets[session.number % len(self._buckets)].add(session)

    def discard(self, session: Session) -> None:
        """Stop looking at a session, if it is here."""
        self._buckets[session.number % len(self._buckets)].discard(session)

    def turn(self) -> Iterable[Session]:
        """Advance by a second; return the sessions whose turn it is."""
        self._at = (self._at + 1) % len(self._buckets)
        return list(self._buckets[self._at])


async def every_second(tick: Callable[[], None]) -> None:
    """Call `tick` once a second until cancelled, without drifting."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due += 1.0
        await asyncio.sleep(max(0.0, due - loop.time()))
        tick()
