"""Readers for feeds that are behind the ring: a few, shared by all of them in turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from deskwire_common import loops
from deskwire_common.clock import Clock
from deskwire_common.errors import Unavailable
from deskwire_common.logging import get_logger
from deskwire_common.loops import Backoff
from deskwire_events.spine.broker import Place, Tap
from deskwire_events.spine.carried import Carried
from deskwire_events.spine.feed import Feed

READERS: Final = 4
#: Seconds that a feed has a reader for itself while others wait.
TURN: Final = 0.5
_READ: Final = 1_000
_WAIT: Final = 0.2
#: Empty reads after which a feed's places are looked at again.
_EMPTY: Final = 5


class Host(Protocol):
    """The spine, as its catch-up readers need it."""

    def behind(self, feed: Feed) -> dict[Place, int]:
        """Join what can be joined; return the places of the rest, from which to read."""
        ...

    async def tell_lost(self, feed: Feed, places: list[Place]) -> None:
        """Go on where something is kept. Raises Unavailable."""
        ...


class CatchUp:
    """The pool. A feed is in it once at a time; a feed without room leaves it until it has some."""

    def __init__(self, host: Host, make: Callable[[str], Tap], clock: Clock) -> None:
        self._host = host
        self._make = make
        self._clock = clock
        self._queue: asyncio.Queue[Feed] = asyncio.Queue()
        self._busy = 0
        self.tasks: list[asyncio.Task[None]] = []

    def want(self, feed: Feed) -> None:
        """Have a feed served, in its turn."""
        if feed.queued:
            feed.again = True
            feed.room.set()
            return
        feed.queued = True
        self._queue.put_nowait(feed)
        if self._busy == len(self.tasks) < READERS:
            name = f"hub-catch-up-{len(self.tasks)}"
            self.tasks.append(asyncio.create_task(self._serve(name), name=name))

    async def close(self) -> None:
        """Stop."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _serve(self, name: str) -> None:
        tap = self._make(name)
        pauses = Backoff(0.2, 5.0)
        try:
            while True:
                feed = await self._queue.get()
                self._busy += 1
                feed.again = False
                try:
                    again = await self._turn(tap, feed)
                    pauses.reset()
                except Unavailable as error:
                    get_logger().warning("catch_up_failed", error=error.message)
                    await pauses.pause()
                    again = True
                finally:
                    self._busy -= 1
                    feed.queued = False
                if (again or feed.again) and feed.attached:
                    self.want(feed)
        finally:
            await tap.close()

    async def _turn(self, tap: Tap, feed: Feed) -> bool:
        """Read for one feed until it has caught up (False), has no room (False), or its turn is over."""
        places = self._host.behind(feed)
        if not places or not feed.attached:
            return False
        await tap.assign(places)
        began = self._clock.monotonic()
        empty = 0
        try:
            while True:
                records, gone = await tap.poll(_READ, _WAIT)
                if not feed.attached:
                    return False
                if gone:
                    await self._host.tell_lost(feed, gone)
                    return True
                if not await self._hand_out(records, feed):
                    return False
                empty = 0 if records else empty + 1
                left = self._host.behind(feed)
                if not left:
                    return False
                over = self._clock.monotonic() - began > TURN and not self._queue.empty()
                if over or empty >= _EMPTY:
                    return True
                done = [place for place in places if place not in left]
                if done:
                    await tap.drop(done)
                    places = left
        finally:
            await tap.assign({})

    async def _hand_out(self, records: Sequence[Carried], feed: Feed) -> bool:
        """Give a feed what it wants; False when it has had no room for a while.

        It keeps the reader meanwhile: to begin anew costs a fetch, and what was fetched before.
        """
        while (refused := _give(records, feed)) is not None:
            feed.room.clear()
            if not await loops.wait(feed.room, TURN) or not feed.attached:
                return False
            records = records[refused:]
        return True


def _give(records: Sequence[Carried], feed: Feed) -> int | None:
    """Give a feed what it wants, up to the first that it has no room for: that one's index."""
    for index, carried in enumerate(records):
        cursor = feed.cursors.get(carried.place)
        if cursor is None or cursor.joined or carried.offset < cursor.next:
            continue
        if feed.filter.wants(carried) and not feed.give(carried):
            return index
        cursor.next = carried.offset + 1
    return None
