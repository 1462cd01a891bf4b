"""Unnamed streams: their place is the client's, in a cursor. They read from the spine of whichever hub they meet."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final

from deskwire.events.v1 import event_hub_service_pb2 as pb
from deskwire_common.errors import InvalidArgument, OutOfRange
from deskwire_common.pagination import ANSWER_BYTES
from deskwire_events.domain import Cursors, Filter, Selection
from deskwire_events.spine import Carried, Feed, Lost, Spine
from deskwire_events.spine.spine import Start
from deskwire_events.streams.credit import Credit
from deskwire_wire.protobytes import nested

#: Most events in one answer.
MAX_EVENTS: Final = 1_000
#: Events and bytes that wait in memory for one stream; one that doesn't read costs no more.
_BUFFER: Final = 2_000
_BUFFER_BYTES: Final = ANSWER_BYTES
_MAX_STATUS_CURSOR: Final = 4_096
_CURSOR: Final = b"\x0a"


class Unnamed:
    """One stream: what waits to be sent, and its place (spine.feed.Taker)."""

    def __init__(
        self,
        tenant: str,
        selection: Selection,
        filter_: Filter,
        *,
        json: bool,
        credit: Credit,
        spine: Spine,
        cursors: Cursors,
        wake: asyncio.Event,
    ) -> None:
        self._tenant = tenant
        self._selection = selection
        self._filter = filter_
        self._json = json
        self._credit = credit
        self._spine = spine
        self._cursors = cursors
        self._wake = wake
        self._waiting: deque[tuple[Carried, bytes]] = deque()
        self._bytes = 0
        self._full = False
        self._lost: Lost | None = None
        self._feed: Feed | None = None

    async def open(self, start: pb.SubscribeStart) -> None:
        """Find the place and begin to read. Raises InvalidArgument, OutOfRange, Unavailable."""
        places = await self._spine.begin(self._selection, self._tenant, await self._start(start))
        self._feed = Feed(self._selection, self._filter, places, self)
        await self._spine.attach([self._feed])
        self.check()

    def check(self) -> None:
        """Raises OutOfRange when records are gone that the stream should have had."""
        if self._lost is not None:
            # The places are those at which it could go on.
            raise self._out_of_range(self._places())

    def close(self) -> None:
        """Stop reading."""
        if self._feed is not None:
            self._spine.detach(self._feed)

    @property
    def waiting(self) -> bool:
        """Whether an event could be sent now."""
        return bool(self._waiting) and not self._credit.empty

    def answer(self) -> tuple[bytes, int]:
        """A SubscribeResponse of what waits, as far as credit and an answer reach; and how many events it has."""
        parts = [b""]
        room = ANSWER_BYTES
        while self._waiting and len(parts) <= MAX_EVENTS:
            carried, encoded = self._waiting[0]
            size = len(encoded)
            if (len(parts) > 1 and size > room) or not self._credit.take(size):
                break
            self._waiting.popleft()
            self._bytes -= carried.size
            room -= size
            parts.append(encoded)
        if self._full and self._bytes <= _BUFFER_BYTES // 2 and len(self._waiting) <= _BUFFER // 2:
            self._full = False
            if self._feed is not None:
                self._spine.resume(self._feed)
        parts[0] = nested(_CURSOR, self._cursors.encode(self._tenant, self._places()).encode())
        return b"".join(parts), len(parts) - 1

    # -- Taker -------------------------------------------------------------------------------------

    def take(self, carried: Carried) -> bool:
        """Have an event wait; False when enough do."""
        if self._bytes >= _BUFFER_BYTES or len(self._waiting) >= _BUFFER:
            self._full = True
            return False
        encoded = carried.delivered(json=self._json)
        if encoded:
            self._waiting.append((carried, encoded))
            self._bytes += carried.size
            self._wake.set()
        return True

    def began(self, place: tuple[str, int], offset: int) -> None:
        """Nothing to do: the feed has the place."""

    def lost(self, lost: Lost) -> None:
        """The stream ends: its client decides where to go on."""
        self._lost = lost
        self._wake.set()

    # -- places ------------------------------------------------------------------------------------

    def _places(self) -> dict[tuple[str, int], int]:
        """The next offset of each partition that was not sent."""
        if self._feed is None:
            return {}
        places = self._spine.heads(self._feed)
        for carried, _ in reversed(self._waiting):
            places[carried.topic, carried.partition] = carried.offset
        return places

    async def _start(self, start: pb.SubscribeStart) -> Start:
        match start.WhichOneof("position"):
            case "cursor":
                names = await self._spine.topics_of(self._selection, self._tenant)
                cursor = self._cursors.decode(start.cursor, self._tenant, names)
                if not cursor.ours:
                    raise await self._expired()
                return cursor.places
            case "earliest":
                return "earliest"
            case "time":
                try:
                    return max(0, start.time.ToMilliseconds())
                except (ValueError, OverflowError) as error:
                    raise InvalidArgument("not a time", field="start.time") from error
            case _:
                return "latest"

    async def _expired(self) -> OutOfRange:
        places = await self._spine.begin(self._selection, self._tenant, "earliest")
        return self._out_of_range(places)

    def _out_of_range(self, places: Mapping[tuple[str, int], int]) -> OutOfRange:
        oldest = self._cursors.encode(self._tenant, places)
        return OutOfRange(
            "the cursor is older than what is kept, or of another cluster",
            # A status is a header, whose size is limited: `earliest` says the same.
            metadata={"oldest_cursor": oldest} if len(oldest) <= _MAX_STATUS_CURSOR else {},
        )
