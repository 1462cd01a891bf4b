"""The last records of a partition, bounded in bytes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice

from deskwire_events.spine.carried import Carried


class Ring:
    """Records in order. `base`: everything from this offset on, up to the newest, is in it."""

    __slots__ = ("_offsets", "_records", "base", "bytes")

    def __init__(self, base: int) -> None:
        self.base = base
        self.bytes = 0
        # A list with a moving start: walks need an index, which a deque finds in O(n).
        self._records: list[Carried] = []
        self._offsets: list[int] = []

    def __len__(self) -> int:
        return len(self._offsets)

    def append(self, carried: Carried, limit: int) -> None:
        """Add the newest, and forget the oldest ones beyond `limit` bytes; one is always kept."""
        self._records.append(carried)
        self._offsets.append(carried.offset)
        self.bytes += carried.size
        if self.bytes > limit and len(self._offsets) > 1:
            self._forget(limit)

    def since(self, offset: int) -> Iterator[Carried]:
        """Those from an offset on."""
        start = bisect_left(self._offsets, offset)
        return islice(self._records, start, None)

    def _forget(self, limit: int) -> None:
        # Half of it at once, so that moving the rest costs little per record.
        gone, kept = 0, self.bytes
        while gone < len(self._offsets) - 1 and kept > limit // 2:
            kept -= self._records[gone].size
            gone += 1
        self.base = self._offsets[gone]
        self.bytes = kept
        del self._records[:gone]
        del self._offsets[:gone]
