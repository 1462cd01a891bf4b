"""The spine of a process: its head reader, the rings, and who has joined which."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal

from deskwire_common.clock import Clock
from deskwire_common.errors import Unavailable
from deskwire_common.logging import get_logger
from deskwire_common.loops import Backoff, every
from deskwire_events.domain.readers import Selection
from deskwire_events.spine.broker import Bounds, Broker, Place, Tap
from deskwire_events.spine.carried import Carried
from deskwire_events.spine.catchup import CatchUp
from deskwire_events.spine.feed import Cursor, Feed, Lost
from deskwire_events.spine.match import Index
from deskwire_events.spine.ring import Ring
from deskwire_events.spine.tables import Tables

#: Bytes of all rings together, and of one at the least.
RINGS: Final = 64 << 20
SMALLEST_RING: Final = 256 << 10
#: Records before the end at which a place still counts as near: the head reader begins there, not at the end.
NEAR: Final = 20_000
#: Seconds between looks for captured tables and partitions that are new.
LOOK: Final = 2.0
_READ: Final = 1_000
_WAIT: Final = 0.1

Start = Literal["earliest", "latest"] | int | Mapping[Place, int]
"""Where to begin: a time is milliseconds since 1970 UTC; partitions without a place begin at their first record."""


class _Partition:
    """What the head reader has of one partition; `head` is the offset that it reads next."""

    __slots__ = ("feeds", "head", "place", "ring")

    def __init__(self, place: Place, start: int) -> None:
        self.place = place
        self.head = start
        self.ring = Ring(start)
        self.feeds = 0


class Spine:
    """Reads what the attached feeds want, once, and hands it to each of them."""

    def __init__(self, bootstrap: str, clock: Clock, *, rings: int = RINGS) -> None:
        self.broker = Broker(bootstrap)
        self._bootstrap = bootstrap
        self._rings = rings
        self._tap = Tap(bootstrap, "hub-head", prefetch_kb=32_768)
        self._catch_up = CatchUp(self, lambda name: Tap(bootstrap, name), clock)
        self._index = Index()
        self._feeds: dict[Feed, None] = {}
        self._parts: dict[Place, _Partition] = {}
        self._tables = Tables(self.broker)
        self._some = asyncio.Event()
        self._changing = asyncio.Lock()
        self.listeners: list[asyncio.Event] = []

    # -- where to begin ----------------------------------------------------------------------------

    async def topics_of(self, selection: Selection, tenant: str) -> list[str]:
        """The topics of a selection as they are now; of captured tables only the tenant's. Raises Unavailable."""
        if selection.changes:
            await self._tables.find()
        return self._named(selection, tenant)

    def _named(self, selection: Selection, tenant: str) -> list[str]:
        names = list(selection.names)
        if selection.changes:
            names += self._tables.of(tenant.encode())
        return names

    async def begin(self, selection: Selection, tenant: str, start: Start) -> dict[Place, int]:
        """The place per partition for a start. Raises Unavailable."""
        places = await self.broker.partitions(await self.topics_of(selection, tenant))
        if isinstance(start, int):
            return await self.broker.at(places, start)
        bounds = await self.broker.bounds(places)
        if start == "latest":
            return {place: kept.high for place, kept in bounds.items()}
        given: Mapping[Place, int] = {} if isinstance(start, str) else start
        return {place: given.get(place, kept.low) for place, kept in bounds.items()}

    async def complete(
        self, wanted: Sequence[tuple[Selection, str, Mapping[Place, int]]]
    ) -> list[dict[Place, int]]:
        """The places of many that begin again: as given, and the first record of partitions that are new.

        Raises Unavailable.
        """
        tables = any(selection.changes for selection, _, _ in wanted)
        if tables:
            await self._tables.find()
        topics_by = [self._named(selection, tenant) for selection, tenant, _ in wanted]
        everything = await self.broker.partitions(sorted({t for names in topics_by for t in names}))
        partitions: dict[str, list[Place]] = {}
        for place in everything:
            partitions.setdefault(place[0], []).append(place)
        found = [
            {place: given.get(place) for name in names for place in partitions[name]}
            for names, (_, _, given) in zip(topics_by, wanted, strict=True)
        ]
        new = {place for places in found for place, offset in places.items() if offset is None}
        bounds = await self.broker.bounds(new)
        return [
            {
                place: bounds[place].low if offset is None else offset
                for place, offset in each.items()
            }
            for each in found
        ]

    # -- feeds -------------------------------------------------------------------------------------

    async def attach(self, feeds: Sequence[Feed]) -> None:
        """Begin to feed these. What isn't kept any more is told to the feed, which goes on. Raises Unavailable."""
        if not feeds:
            return
        async with self._changing:
            wanted = {place for feed in feeds for place in feed.cursors}
            bounds = await self.broker.bounds(wanted)
            for feed in feeds:
                feed.attached = True
                self._feeds[feed] = None
                self._index.add(feed)
                _check(feed, bounds)
            await self._read_too(
                {place: bounds[place] for place in wanted if place not in self._parts}
            )
            for feed in feeds:
                for place in feed.cursors:
                    self._parts[place].feeds += 1
                self.resume(feed)

    def detach(self, feed: Feed) -> None:
        """Feed this one no more."""
        if not feed.attached:
            return
        feed.attached = False
        self._feeds.pop(feed, None)
        self._index.remove(feed)
        # What the head reader reads from now on isn't this feed's.
        for place, head in self.heads(feed).items():
            cursor = feed.cursors[place]
            cursor.next, cursor.joined = head, False
            part = self._parts.get(place)
            if part is not None:
                part.feeds -= 1

    def resume(self, feed: Feed) -> None:
        """Go on with a feed that had no room: from the ring, or by a catch-up reader."""
        if feed.attached and self.behind(feed):
            self._catch_up.want(feed)

    def heads(self, feed: Feed) -> dict[Place, int]:
        """The offset per partition below which the feed has everything."""
        found = {}
        for place, cursor in feed.cursors.items():
            part = self._parts.get(place)
            joined = cursor.joined and part is not None and part.head > cursor.next
            found[place] = part.head if joined and part is not None else cursor.next
        return found

    def behind(self, feed: Feed) -> dict[Place, int]:
        """Join what the rings reach; return the places of the rest. Nothing while the feed has no room."""
        left: dict[Place, int] = {}
        for place, cursor in feed.cursors.items():
            part = self._parts.get(place)
            if cursor.joined or part is None:
                continue
            if cursor.next < part.ring.base:
                left[place] = cursor.next
            elif not self._join(feed, cursor, part):
                return {}
        return left

    def _join(self, feed: Feed, cursor: Cursor, part: _Partition) -> bool:
        for carried in part.ring.since(cursor.next):
            if feed.filter.wants(carried) and not feed.give(carried):
                return False
            cursor.next = carried.offset + 1
        cursor.joined = True
        return True

    async def tell_lost(self, feed: Feed, places: list[Place]) -> None:
        """Go on where something is kept. Raises Unavailable."""
        mine = [place for place in places if place in feed.cursors]
        _check(feed, await self.broker.bounds(mine))

    # -- the head ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read until cancelled; outlasts a Kafka that is away."""
        looking = asyncio.create_task(
            every(LOOK, self._look, failed="tables_not_found", at_once=False), name="hub-tables"
        )
        pauses = Backoff(0.2, 5.0)
        try:
            while True:
                await self._some.wait()
                try:
                    records, gone = await self._tap.poll(_READ, _WAIT)
                    if gone:
                        await self._go_on(gone)
                    pauses.reset()
                except Unavailable as error:
                    get_logger().warning("head_not_read", error=error.message)
                    await pauses.pause()
                    continue
                for carried in records:
                    self._hand_out(carried)
                if records:
                    for event in self.listeners:
                        event.set()
        finally:
            looking.cancel()
            await self._catch_up.close()
            await self._tap.close()
            await self.broker.close()

    def _hand_out(self, carried: Carried) -> None:
        place = carried.place
        part = self._parts.get(place)
        if part is None or carried.offset < part.head:
            return
        part.head = carried.offset + 1
        part.ring.append(carried, max(SMALLEST_RING, self._rings // (2 * len(self._parts))))
        owners = self._tables.owners(carried.topic)
        if owners is not None and carried.tenant not in owners:
            self._meet(carried, owners)
        for feed in self._index.find(carried):
            cursor = feed.cursors.get(place)
            if cursor is None or not cursor.joined or carried.offset < cursor.next:
                continue
            if feed.filter.passes(carried) and not feed.give(carried):
                cursor.joined = False
                cursor.next = carried.offset

    def _meet(self, carried: Carried, owners: set[bytes]) -> None:
        """The first record of a tenant in a captured table: from here on its feeds read that table."""
        if not carried.tenant:
            return
        owners.add(carried.tenant)
        for feed in self._feeds:
            if feed.selection.changes and feed.filter.tenant == carried.tenant:
                self._begin_place(feed, carried.place, carried.offset)

    def _begin_place(self, feed: Feed, place: Place, offset: int) -> None:
        part = self._parts.get(place)
        if place in feed.cursors or part is None:
            return
        feed.cursors[place] = Cursor(offset)
        part.feeds += 1
        feed.taker.began(place, offset)
        self.resume(feed)

    async def _go_on(self, places: Collection[Place]) -> None:
        """The head reader's own offset isn't kept: begin with what is."""
        bounds = await self.broker.bounds(places)
        for place, kept in bounds.items():
            part = self._parts.get(place)
            if part is None:
                continue
            for feed in self._feeds:
                cursor = feed.cursors.get(place)
                if cursor is not None and cursor.joined:
                    cursor.next = kept.low
                    feed.taker.lost(Lost(*place, wanted=part.head, kept=kept.low))
            part.head = kept.low
            part.ring = Ring(kept.low)
        await self._tap.drop(places)
        await self._tap.add({place: kept.low for place, kept in bounds.items()})

    async def _read_too(self, bounds: Mapping[Place, Bounds]) -> None:
        """Have the head reader read more partitions: from the lowest place of a feed that is near the end."""
        if not bounds:
            return
        starts = {place: kept.high for place, kept in bounds.items()}
        for feed in self._feeds:
            for place, cursor in feed.cursors.items():
                if place in bounds and bounds[place].high - NEAR <= cursor.next < starts[place]:
                    starts[place] = cursor.next
        await self._tap.add(starts)
        self._parts |= {place: _Partition(place, start) for place, start in starts.items()}
        self._some.set()

    # -- captured tables ---------------------------------------------------------------------------

    async def _look(self) -> None:
        """Find topics and partitions that are new, and read no more what nobody wants."""
        if any(feed.selection.changes for feed in self._feeds):
            async with self._changing:
                await self._tables.find()
                await self._read_tables()
        await self._read_less()

    async def _read_tables(self) -> None:
        feeds = [feed for feed in self._feeds if feed.selection.changes]
        wanted = self._tables.wanted_by(feed.filter.tenant for feed in feeds)
        places = await self.broker.partitions(wanted)
        new = [place for place in places if place not in self._parts]
        bounds = await self.broker.bounds(new)
        starts = {place: kept.low for place, kept in bounds.items()}
        if starts:
            await self._tap.add(starts)
            self._parts |= {place: _Partition(place, low) for place, low in starts.items()}
            self._some.set()
        for feed in feeds:
            for place in places:
                owners = self._tables.owners(place[0]) or ()
                if feed.filter.tenant in owners and place not in feed.cursors:
                    low = starts.get(place)
                    if low is None:
                        low = (await self.broker.bounds([place]))[place].low
                    self._begin_place(feed, place, low)

    async def _read_less(self) -> None:
        async with self._changing:
            unknown = any(feed.selection.changes for feed in self._feeds)
            idle = [
                place
                for place, part in self._parts.items()
                if part.feeds <= 0 and not (unknown and self._tables.owners(place[0]) == set())
            ]
            if idle:
                for place in idle:
                    del self._parts[place]
                await self._tap.drop(idle)
            if not self._parts:
                self._some.clear()


def _check(feed: Feed, bounds: Mapping[Place, Bounds]) -> None:
    """Tell a feed of the places that aren't kept, and have it go on with what is."""
    for place, cursor in feed.cursors.items():
        kept = bounds.get(place)
        # An offset beyond the end is of another history: the topic was made anew.
        if kept is None or cursor.joined or kept.low <= cursor.next <= kept.high:
            continue
        lost = Lost(*place, wanted=cursor.next, kept=kept.low)
        cursor.next = kept.low
        feed.taker.lost(lost)
