"""The work items that wait for the agents of one tenant, oldest first."""

from __future__ import annotations

import heapq
from collections.abc import Collection

from deskwire_chat.domain.conversations import partition_of
from deskwire_chat.domain.work import WorkItem

_Heap = list[tuple[int, str]]


class WorkQueue:
    """The work items of a tenant that nobody has and that are offered to nobody."""

    __slots__ = ("_for_all", "_for_people", "_items")

    def __init__(self) -> None:
        self._items: dict[str, WorkItem] = {}
        # An item that leaves the queue stays in its heap until it comes to the top.
        self._for_all: _Heap = []
        self._for_people: _Heap = []

    def __len__(self) -> int:
        """Return how many items wait."""
        return len(self._items)

    def put(self, item: WorkItem) -> None:
        """Add an item, once."""
        if item.id not in self._items:
            self._items[item.id] = item
            heap = self._for_people if item.human_wanted else self._for_all
            heapq.heappush(heap, (item.since, item.id))

    def remove(self, item_id: str) -> None:
        """Remove an item, if it is here."""
        self._items.pop(item_id, None)

    def remove_partitions(self, numbers: Collection[int]) -> None:
        """Remove the items of these partitions, which another process queues now."""
        self._items = {
            item_id: item
            for item_id, item in self._items.items()
            if partition_of(item_id) not in numbers
        }

    def take(self, *, for_people: bool) -> WorkItem | None:
        """Take out the item that has waited longest; without `for_people`, only one that a bot may have."""
        heaps = (self._for_all, self._for_people) if for_people else (self._for_all,)
        found = [heap for heap in heaps if self._has_first(heap)]
        if not found:
            return None
        return self._items.pop(heapq.heappop(min(found, key=lambda heap: heap[0]))[1])

    def _has_first(self, heap: _Heap) -> bool:
        """Whether an item of the heap waits; drop the items on top that left the queue."""
        wants_human = heap is self._for_people
        while heap:
            item = self._items.get(heap[0][1])
            if item is not None and item.human_wanted == wants_human:
                return True
            heapq.heappop(heap)
        return False
