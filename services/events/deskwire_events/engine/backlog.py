"""What one subscription has open: windows, lanes, parked rows, and what must be saved of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from deskwire_events.engine.item import Item, LaneKey
from deskwire_events.engine.lanes import Lanes, Wanted
from deskwire_events.engine.window import Window

Place: TypeAlias = tuple[str, int]
"""Topic and partition."""

#: Seconds that a parked key waits in memory before its events become rows.
PATIENCE: Final = 1.0


@dataclass(slots=True)
class Saves:
    """What one tick writes for one subscription, in one transaction.

    `places` are all watermarks of the topics where one moved; `park` are new rows, `update` rows whose next try
    changed, `delete` rows that are done.
    """

    places: dict[Place, int] = field(default_factory=dict)
    park: list[Item] = field(default_factory=list)
    update: list[Item] = field(default_factory=list)
    delete: list[Item] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.places or self.park or self.update or self.delete)


class Backlog:
    """Windows and lanes of one subscription, bounded in events and bytes.

    `known` are offsets at or above the places that were parked or set aside before a restart: they aren't taken again.
    """

    def __init__(
        self,
        places: Mapping[Place, int],
        *,
        max_count: int,
        max_bytes: int,
        known: Mapping[Place, Collection[int]] | None = None,
    ) -> None:
        self.lanes = Lanes()
        self._windows = {place: Window(offset) for place, offset in places.items()}
        self._told = dict(places)
        self._dirty: set[Place] = set()
        self._known = {place: set(offsets) for place, offsets in (known or {}).items()}
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._updated: dict[tuple[str, int, int], Item] = {}
        self._deleted: dict[tuple[str, int, int], Item] = {}
        self._saving: set[tuple[str, int, int]] = set()
        # Rows that are done, until they are known to be deleted; and keys that found only such rows.
        self._done: set[tuple[str, int, int]] = set()
        self._early: list[LaneKey] = []

    # -- taking ------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether one more event may be taken."""
        return self.lanes.count < self._max_count and self.lanes.bytes < self._max_bytes

    @property
    def has_much_room(self) -> bool:
        """Whether it is worth reading again after there was no room."""
        return self.lanes.count <= self._max_count // 2 and self.lanes.bytes <= self._max_bytes // 2

    def next_of(self, place: Place) -> int | None:
        """The offset to read next; None for a partition without a place."""
        window = self._windows.get(place)
        return None if window is None else window.next

    def begin(self, place: Place, offset: int) -> None:
        """Begin a new partition, or go on in one elsewhere: everything open there is given up as a window."""
        self._windows[place] = Window(offset)
        self._told.pop(place, None)
        self._dirty.add(place)

    def take(self, item: Item) -> bool:
        """Take an event; False when it was parked or set aside before, or its offset was taken."""
        window = self._windows[item.place]
        if item.offset < window.next:
            return False
        known = self._known.get(item.place)
        if known and item.offset in known:
            known.discard(item.offset)
            window.skip_to(item.offset + 1)
            return False
        window.take(item.offset)
        self.lanes.add(item)
        return True

    # -- sending -----------------------------------------------------------------------------------

    def send(self, count: int, size: int, wanted: Wanted | None = None) -> list[Item]:
        """Events to send now, in flight from here on: each ends with `finish`, `retry` or `put_back`."""
        items = self.lanes.take(count, size, wanted)
        for item in items:
            item.attempts += 1
        return items

    def finish(self, item: Item) -> None:
        """End an event's way."""
        self.lanes.finish(item)
        self._close(item)

    def put_back(self, item: Item) -> None:
        """It wasn't the event's fault, and nothing happened to it: later."""
        self.lanes.put_back(item)

    def retry(self, item: Item, *, due: float, now: float, detail: str) -> None:
        """Try an event again at `due`; its key waits."""
        item.refusals += 1
        item.since = item.since or now
        item.detail = detail
        item.due = due
        self.lanes.park(item, due)
        if item.saved:
            self._updated[_id(item)] = item

    # -- saving ------------------------------------------------------------------------------------

    def watermarks(self, heads: Mapping[Place, int] | None = None) -> dict[Place, int]:
        """The place per partition; `heads` are offsets below which nothing else is wanted."""
        for place, head in (heads or {}).items():
            window = self._windows.get(place)
            if window is not None:
                window.skip_to(head)
        return {place: window.watermark for place, window in self._windows.items()}

    def collect(self, now: float, heads: Mapping[Place, int], *, idle: bool) -> Saves:
        """What to save now; `saved` or `unsaved` must follow. With `idle` also places that moved over nothing."""
        marks = self.watermarks(heads)
        moved = {
            place[0]
            for place, offset in marks.items()
            if self._told.get(place) != offset and (idle or place in self._dirty)
        }
        # A row holds the places of a whole topic.
        places = {place: offset for place, offset in marks.items() if place[0] in moved}
        park = self.lanes.unsaved(now + PATIENCE)
        self._saving |= {_id(item) for item in park}
        saves = Saves(places, park, list(self._updated.values()), list(self._deleted.values()))
        self._updated.clear()
        self._deleted.clear()
        self._dirty -= set(places)
        return saves

    def saved(self, saves: Saves) -> None:
        """What was collected is committed."""
        self._told |= saves.places
        for item in saves.park:
            name = _id(item)
            item.saved = True
            self._saving.discard(name)
            self._windows[item.place].finish(item.offset)
            self._dirty.add(item.place)
        self.lanes.drop_saved(saves.park)
        self._done -= {_id(item) for item in saves.delete}
        early, self._early = self._early, []
        for key in early:
            self.lanes.unload(key)

    def unsaved(self, saves: Saves) -> None:
        """What was collected is not committed: it is collected again."""
        self._dirty |= set(saves.places)
        self._saving -= {_id(item) for item in saves.park}
        for item in saves.update:
            self._updated.setdefault(_id(item), item)
        for item in saves.delete:
            self._deleted.setdefault(_id(item), item)

    # -- parked rows -------------------------------------------------------------------------------

    def load(self, key: LaneKey, rows: Sequence[Item]) -> None:
        """Take up stored events of a key: its first rows, in order, but for those that are done meanwhile.

        When all of these are done, the key waits for the tick that deletes them.
        """
        lane = self.lanes.lane(key)
        before = lane.stored if lane is not None else 0
        items = [item for item in rows if _id(item) not in self._done]
        if rows and not items:
            self._early.append(key)
            return
        self.lanes.load(key, items, max(0, before - len(items)) if rows else 0)

    def set_stored(self, rows: Iterable[tuple[LaneKey, int, float]]) -> None:
        """Note how many rows each key has in the table when it begins, and when the key goes on."""
        for key, count, due in rows:
            self.lanes.set_stored(key, count, due)

    def _close(self, item: Item) -> None:
        name = _id(item)
        if item.saved or name in self._saving:
            self._deleted[name] = item
            self._done.add(name)
            self._updated.pop(name, None)
        if not item.saved:
            window = self._windows.get(item.place)
            if window is not None:
                window.finish(item.offset)
                self._dirty.add(item.place)


def _id(item: Item) -> tuple[str, int, int]:
    return item.topic, item.partition, item.offset
