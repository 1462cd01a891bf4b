"""The window of one subscription on one partition: what was taken and hasn't finished."""

from __future__ import annotations

from collections import deque


class Window:
    """Offsets that were taken, in order, and those of them that have finished.

    `next` is the offset to read next. Everything below `watermark` has finished: reading can begin there again, and
    nothing is lost. What finished above it may come a second time.
    """

    __slots__ = ("_finished", "_open", "next")

    def __init__(self, start: int) -> None:
        self.next = start
        self._open: deque[int] = deque()
        self._finished: set[int] = set()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def watermark(self) -> int:
        """The lowest offset that hasn't finished; `next` when all have."""
        return self._open[0] if self._open else self.next

    def take(self, offset: int) -> None:
        """Note that an offset was taken. Raises ValueError for one below `next`: it was taken before."""
        if offset < self.next:
            raise ValueError(f"offset {offset} is below {self.next}")
        self._open.append(offset)
        self.next = offset + 1

    def skip_to(self, offset: int) -> None:
        """Note that nothing below `offset` is wanted but what was taken."""
        self.next = max(self.next, offset)

    def finish(self, offset: int) -> None:
        """Note that an offset has finished. One that isn't open any more is ignored."""
        if not self._open or offset < self._open[0]:
            return
        self._finished.add(offset)
        while self._open and self._open[0] in self._finished:
            self._finished.discard(self._open.popleft())
