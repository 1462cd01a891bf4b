"""What a client still takes."""

from __future__ import annotations


class Credit:
    """Events and bytes that may still be sent; 0 at the beginning: no limit of that kind."""

    __slots__ = ("_bytes", "_events")

    def __init__(self, events: int, size: int) -> None:
        self._events: int | None = events or None
        self._bytes: int | None = size or None

    @property
    def empty(self) -> bool:
        """Whether nothing may be sent."""
        return self._events == 0 or (self._bytes is not None and self._bytes <= 0)

    def give(self, events: int, size: int) -> None:
        """Allow more."""
        if self._events is not None:
            self._events += events
        if self._bytes is not None:
            self._bytes += size

    def take(self, size: int) -> bool:
        """Use one event's, if something is left; it may be larger than what is left."""
        if self.empty:
            return False
        if self._events is not None:
            self._events -= 1
        if self._bytes is not None:
            self._bytes -= size
        return True
