"""Lanes: which events may be sent now. One of a key at a time; a key that must wait holds back no other."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from deskwire_events.engine.item import OVERHEAD, Item, Lane, LaneKey

Wanted = Callable[[LaneKey], bool]


class Lanes:
    """All lanes of one subscription. `bytes` and `count` are what is held in memory."""

    def __init__(self) -> None:
        self._lanes: dict[LaneKey, Lane] = {}
        # Lanes whose first event may go, in the order in which they became so. A dict: a queue without doubles.
        self._ready: dict[LaneKey, None] = {}
        self._lacking: dict[LaneKey, None] = {}
        self._parked: list[tuple[float, int, LaneKey]] = []
        self._ticket: Final = itertools.count()
        self.bytes = 0
        self.count = 0
        self.stored = 0
        """Rows of parked events that aren't in memory."""

    def __len__(self) -> int:
        return len(self._lanes)

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    @property
    def ready(self) -> bool:
        """Whether something may be sent."""
        return bool(self._ready)

    @property
    def next_due(self) -> float | None:
        """When the next parked lane goes on; None: none is parked."""
        while self._parked:
            due, _, key = self._parked[0]
            lane = self._lanes.get(key)
            if lane is not None and lane.due == due:
                return due
            heapq.heappop(self._parked)
        return None

    def lane(self, key: LaneKey) -> Lane | None:
        """The lane of a key, if it has anything."""
        return self._lanes.get(key)

    def add(self, item: Item) -> None:
        """Put a new event behind all earlier ones of its key."""
        lane = self._lanes.get(item.key)
        if lane is None:
            lane = self._lanes[item.key] = Lane(item.key)
        lane.queue.append(item)
        self._hold(item)
        self._look(lane)

    def take(self, count: int, size: int, wanted: Wanted | None = None) -> list[Item]:
        """Take up to `count` events with up to `size` bytes, at least one, of as many keys; they are in flight now.

        `wanted` chooses among the keys.
        """
        taken: list[Item] = []
        keys: Iterable[LaneKey] = self._ready if wanted is None else filter(wanted, self._ready)
        for key in list(itertools.islice(keys, count)):
            lane = self._lanes[key]
            size -= lane.queue[0].size
            if taken and size < 0:
                break
            del self._ready[key]
            item = lane.flight = lane.queue.popleft()
            taken.append(item)
        return taken

    def finish(self, item: Item) -> None:
        """End the way of an event that is in flight; the next one of its key may go."""
        lane = self._landed(item)
        self._release(item)
        self._look(lane)

    def put_back(self, item: Item) -> None:
        """Return an event that is in flight: it goes again when its turn comes, behind all other keys."""
        lane = self._landed(item)
        lane.queue.appendleft(item)
        self._look(lane)

    def park(self, item: Item, due: float) -> None:
        """Return an event that is in flight; its key waits until `due`."""
        lane = self._landed(item)
        lane.queue.appendleft(item)
        self._park(lane, due)

    def wake(self, now: float) -> None:
        """Let the keys go on whose time has come."""
        while (due := self.next_due) is not None and due <= now:
            _, _, key = heapq.heappop(self._parked)
            lane = self._lanes[key]
            lane.due = None
            self._look(lane)

    # -- what is stored ----------------------------------------------------------------------------

    def unsaved(self, before: float) -> list[Item]:
        """Events to save: all of the keys that stay parked beyond `before`, or that have stored ones in front."""
        return [
            item
            for lane in self._lanes.values()
            if lane.stored or (lane.due is not None and lane.due > before)
            for item in lane.queue
            if not item.saved
        ]

    def drop_saved(self, items: Iterable[Item]) -> None:
        """Forget the bodies of events that are rows now, unless they are being sent or are next."""
        for key in {item.key for item in items}:
            lane = self._lanes.get(key)
            if lane is None or (lane.due is None and not lane.stored):
                continue
            while (
                lane.queue
                and lane.queue[-1].saved
                and (len(lane.queue) > 1 or lane.due is not None)
            ):
                self._release(lane.queue.pop())
                lane.stored += 1
                self.stored += 1
            self._look(lane)

    def set_stored(self, key: LaneKey, count: int, due: float) -> None:
        """Begin a lane that has `count` rows, none of them in memory, and waits until `due`."""
        lane = self._lanes[key] = Lane(key)
        lane.stored = count
        self.stored += count
        self._park(lane, due)

    def lacking(self, count: int) -> list[LaneKey]:
        """Up to `count` keys whose next event must be loaded; each is named once until `load` or `unload`."""
        found: list[LaneKey] = []
        while self._lacking and len(found) < count:
            key = next(iter(self._lacking))
            del self._lacking[key]
            lane = self._lanes.get(key)
            if lane is not None and lane.lacks:
                lane.loading = True
                found.append(key)
        return found

    def load(self, key: LaneKey, items: Sequence[Item], stored: int) -> None:
        """Take up stored events of a key, its first ones; `stored` are left behind them."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key)
        lane.loading = False
        for item in reversed(items):
            item.saved = True
            lane.queue.appendleft(item)
            self._hold(item)
        self.stored += stored - lane.stored
        lane.stored = stored
        self._look(lane)

    def unload(self, key: LaneKey) -> None:
        """Loading failed: it is lacking again."""
        lane = self._lanes.get(key)
        if lane is not None:
            lane.loading = False
            self._look(lane)

    # -- inside ------------------------------------------------------------------------------------

    def _landed(self, item: Item) -> Lane:
        lane = self._lanes[item.key]
        if lane.flight is not item:
            raise ValueError(f"{item} isn't in flight")
        lane.flight = None
        return lane

    def _park(self, lane: Lane, due: float) -> None:
        lane.due = due
        self._ready.pop(lane.key, None)
        heapq.heappush(self._parked, (due, next(self._ticket), lane.key))

    def _look(self, lane: Lane) -> None:
        if lane.empty:
            self._lanes.pop(lane.key, None)
            self._ready.pop(lane.key, None)
        elif lane.ready:
            self._ready.setdefault(lane.key)
        else:
            self._ready.pop(lane.key, None)
            if lane.lacks:
                self._lacking[lane.key] = None

    def _hold(self, item: Item) -> None:
        self.count += 1
        self.bytes += item.size + OVERHEAD

    def _release(self, item: Item) -> None:
        self.count -= 1
        self.bytes -= item.size + OVERHEAD
