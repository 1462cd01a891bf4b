"""One subscription at work: what it takes from the spine, what has ended, and what must be saved."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from deskwire_common import ids as id_forms
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database
from deskwire_common.errors import InvalidArgument
from deskwire_common.logging import get_logger
from deskwire_events import domain, store
from deskwire_events.domain import Filter, Progress, Result, Subscription
from deskwire_events.engine import Backlog, Item, LaneKey, Saves
from deskwire_events.sinks import clean
from deskwire_events.spine import Carried, Feed, Lost, Spine
from deskwire_events.store.kept import Kept, Parked

Place: TypeAlias = tuple[str, int]

#: Events and bytes that one subscription holds in memory.
MAX_COUNT: Final = 1_000
MAX_BYTES: Final = 2 << 20
#: Parked events of one subscription, beyond which it takes no more.
MAX_PARKED: Final = 10_000
#: Keys that are loaded at a time, and rows of each.
_LOAD_KEYS: Final = 50
_LOAD_ROWS: Final = 5
#: Ends of one tick that are kept for people; dead letters are kept all.
_TOLD_ENDS: Final = 100
_MAX_NAME: Final = 64


@dataclass(frozen=True, slots=True)
class End:
    """The end of one event's way; `time` in microseconds."""

    item: Item
    result: Result
    time: int
    traceparent: str = ""

    @property
    def carried(self) -> Carried:
        """The event."""
        body: Carried = self.item.body
        return body


@dataclass(slots=True)
class Unit:
    """What one tick saves of one subscription.

    `tells`: whether its ends are kept for people. `stopped`: why it must stop.
    """

    subscription: Subscription
    saves: Saves
    progress: Progress | None
    ends: list[End] = field(default_factory=list)
    losses: list[Lost] = field(default_factory=list)
    tells: bool = True
    stopped: str = ""

    def __bool__(self) -> bool:
        return bool(
            self.saves or self.ends or self.losses or self.stopped or self.progress is not None
        )

    @property
    def dead(self) -> list[End]:
        """The dead letters."""
        return [end for end in self.ends if end.result.outcome.dead]

    @property
    def told(self) -> list[End]:
        """The ends that are kept for people."""
        return self.ends[-_TOLD_ENDS:] if self.tells else []


@dataclass(frozen=True, slots=True)
class Begin:
    """What is known of a subscription when it begins to work."""

    subscription: Subscription
    places: Mapping[Place, int]
    known: Mapping[Place, Collection[int]]
    lanes: Sequence[tuple[LaneKey, int, int]]
    progress: Progress


class Subscriber(ABC):
    """A subscription in the process that owns its slot (spine.feed.Taker).

    `work` is set when there may be something to do; `halted` when nothing may go out any more, `unsavable` when what it
    did can't be written either.
    """

    tells = True
    """Whether its ends are kept for people."""

    def __init__(
        self, begin: Begin, filter_: Filter, db: Database, spine: Spine, clock: Clock
    ) -> None:
        self.subscription = begin.subscription
        self.progress = begin.progress
        self.work = asyncio.Event()
        self.halted = False
        self.unsavable = False
        self.stopped = ""
        """Why it must stop, until that is saved."""
        self.backlog = Backlog(
            begin.places, max_count=MAX_COUNT, max_bytes=MAX_BYTES, known=begin.known
        )
        self.backlog.set_stored([(key, count, due / 1e6) for key, count, due in begin.lanes])
        self.feed = Feed(begin.subscription.selection, filter_, begin.places, self)
        self._db = db
        self._spine = spine
        self._clock = clock
        self._full = False
        self._ends: list[End] = []
        self._losses: list[Lost] = []
        self._told = begin.progress

    # -- taking (Taker) ----------------------------------------------------------------------------

    def take(self, carried: Carried) -> bool:
        """Take an event into the backlog; False when there is no room."""
        if not self.backlog.has_room or self.backlog.lanes.stored > MAX_PARKED:
            self._full = True
            return False
        try:
            size = self.measure(carried)
            _check(carried)
        except InvalidArgument:
            # Nobody can get it: `event` has told.
            return True
        item = Item(
            carried.topic, carried.partition, carried.offset, carried.key,
            size=size, body=carried, taken=self.now,
        )  # fmt: skip
        if self.backlog.take(item):
            self.work.set()
        return True

    def began(self, place: Place, offset: int) -> None:
        """It has one more partition."""
        self.backlog.begin(place, offset)

    def lost(self, lost: Lost) -> None:
        """Records are gone: it goes on, and tells."""
        self.backlog.begin((lost.topic, lost.partition), lost.kept)
        self._losses.append(lost)
        self.progress = replace(
            self.progress,
            last_error=f"lost: {lost.topic}[{lost.partition}] from {lost.wanted} to {lost.kept}",
        )
        get_logger().error(
            "deliveries_lost",
            tenant=self.subscription.tenant,
            subscription_id=self.subscription.subscription_id,
            topic=lost.topic,
            partition=lost.partition,
            wanted=lost.wanted,
            kept=lost.kept,
        )

    @abstractmethod
    def measure(self, carried: Carried) -> int:
        """Bytes of an event as it is sent. Raises InvalidArgument for a record that is none."""

    # -- working -----------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Seconds since 1970: due times outlive this process."""
        return to_micros(self._clock.now()) / 1e6

    def end(self, item: Item, result: Result, traceparent: str = "") -> None:
        """End an event's way."""
        # A database doesn't take every text of others.
        result = replace(result, detail=clean(result.detail))
        self.backlog.finish(item)
        self._ends.append(End(item, result, to_micros(self._clock.now()), traceparent))
        self.progress = domain.after(self.progress, [result.outcome], result.detail)

    def make_room(self) -> None:
        """Read on when it is worth it."""
        if (
            self._full
            and self.backlog.has_much_room
            and self.backlog.lanes.stored <= MAX_PARKED // 2
        ):
            self._full = False
            self._spine.resume(self.feed)

    async def load_parked(self) -> None:
        """Bring rows into memory whose turn it is."""
        if not self.backlog.has_room:
            return
        for key in self.backlog.lanes.lacking(_LOAD_KEYS):
            try:
                async with self._db.read() as connection:
                    rows = await store.kept.of_lane(
                        connection, self.subscription.incarnation, key, _LOAD_ROWS
                    )
            except BaseException:
                self.backlog.lanes.unload(key)
                raise
            self.backlog.load(key, [self._item(row) for row in rows])

    def _item(self, row: Parked) -> Item:
        record = row.record
        carried = Carried(
            record.topic, record.partition, record.offset, record.key, record.value, record.headers,
            record.timestamp,
        )  # fmt: skip
        item = Item(
            record.topic, record.partition, record.offset, record.key,
            size=self.measure(carried), body=carried, taken=self.now, saved=True,
        )  # fmt: skip
        item.attempts, item.refusals = row.attempts, row.refusals
        item.since, item.detail = row.since / 1e6, row.detail
        return item

    # -- saving ------------------------------------------------------------------------------------

    def collect(self, *, idle: bool) -> Unit:
        """What to save; `saved` or `unsaved` must follow."""
        # Of heads only what has no room is behind: what was taken is in the window.
        saves = self.backlog.collect(self.now, self._spine.heads(self.feed), idle=idle)
        changed = self.progress if self.progress != self._told else None
        unit = Unit(
            self.subscription,
            saves,
            changed,
            self._ends,
            self._losses,
            tells=self.tells,
            stopped=self.stopped,
        )
        self._ends, self._losses = [], []
        return unit

    def saved(self, unit: Unit) -> None:
        """What was collected is committed."""
        self.backlog.saved(unit.saves)
        if unit.progress is not None:
            self._told = unit.progress
        if unit.stopped:
            self.stopped = ""
        self.make_room()

    def unsaved(self, unit: Unit) -> None:
        """What was collected is not committed."""
        self.backlog.unsaved(unit.saves)
        self._ends = unit.ends + self._ends
        self._losses = unit.losses + self._losses

    @property
    def unused(self) -> bool:
        """Whether nobody has needed it for a while."""
        return False

    # -- life --------------------------------------------------------------------------------------

    @abstractmethod
    async def run(self) -> None:
        """Work until told to stop."""

    @abstractmethod
    async def stop(self) -> None:
        """Take nothing new, let what is under way end, and return when nothing is."""

    def halt(self) -> None:
        """Nothing may go out any more: the slot is lost, or too much failed."""
        self.halted = True
        self.work.set()


def kept(item: Item) -> Kept:
    """An item's record as it is kept in the database."""
    carried: Carried = item.body
    return Kept(
        topic=carried.topic,
        partition=carried.partition,
        offset=carried.offset,
        key=carried.key,
        value=carried.value,
        headers=carried.headers,
        timestamp=carried.timestamp,
        event_id=carried.event_id.decode(),
        event_type=carried.kind.decode(),
    )


def _check(carried: Carried) -> None:
    """Raises InvalidArgument unless id and type have the contract's own form: then they can be stored."""
    if not id_forms.is_uuid(carried.event_id.decode("ascii", "replace")):
        raise InvalidArgument("the event_id is no UUID", field="event_id")
    if len(carried.kind) > _MAX_NAME or not carried.kind.isascii():
        raise InvalidArgument("event_type has a wrong form", field="event_type")
