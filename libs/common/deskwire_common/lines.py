"""Held lines: an item that was refused for now must come again before any later item of its line.

The items of a line keep their order, for example the Sends of one connection in one conversation. Without this, a
message behind a refused one would overtake it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_common.errors import ResourceExhausted

RETRY_AFTER: Final = 1.0
"""Seconds after which a held line is worth another try."""

MOST: Final = 256
"""Lines that a visitor's connection or stream may hold: beyond that the line that was held first is forgotten.

A visitor has a few conversations, and may name as many new ones as they like. Of the desk each line is a conversation
that the sender has: no number is too many.
"""

LineT = TypeVar("LineT", bound=Hashable)


class HeldLines(Generic[LineT]):
    """Line → the id that must come again first. False while no line is held."""

    __slots__ = ("_first", "_most")

    def __init__(self, most: int | None = None) -> None:
        """`most`: how many lines are held at once, the newest; None: any number."""
        self._first: dict[LineT, str] = {}
        self._most = most

    def __bool__(self) -> bool:
        return bool(self._first)

    def __iter__(self) -> Iterator[LineT]:
        return iter(self._first)

    def hold(self, line: LineT, item_id: str) -> None:
        """Note that `item_id` was refused for now. A line that is held already still waits for its first one."""
        self._first.setdefault(line, item_id)
        if self._most is not None and len(self._first) > self._most:
            del self._first[next(iter(self._first))]

    def first(self, line: LineT) -> str | None:
        """Return the id that the line waits for; None when it isn't held."""
        return self._first.get(line)

    def check(self, line: LineT, item_id: str) -> None:
        """Raise ResourceExhausted (LINE_HELD) when the line waits for another id. It stays held either way."""
        first = self._first.get(line)
        if first is not None and first != item_id:
            raise line_held(first)

    def release(self, line: LineT) -> None:
        """Let the line go on, held or not."""
        self._first.pop(line, None)


class OwnLines(Generic[LineT]):
    """The lines that one connection or stream holds elsewhere, so that they can be released when it goes."""

    __slots__ = ("_lines", "_most")

    def __init__(self, most: int | None = None) -> None:
        """`most`: how many lines are held at once, the newest; None: any number."""
        self._lines: dict[LineT, None] = {}
        self._most = most

    def __iter__(self) -> Iterator[LineT]:
        return iter(self._lines)

    def add(self, line: LineT) -> list[LineT]:
        """Note a line; return those to release in its place, as there are too many."""
        self._lines[line] = None
        if self._most is None or len(self._lines) <= self._most:
            return []
        first = next(iter(self._lines))
        del self._lines[first]
        return [first]

    def discard(self, line: LineT) -> None:
        """Forget a line that goes on."""
        self._lines.pop(line, None)


def line_held(first: str) -> ResourceExhausted:
    """Return the error for an item that comes before the id that its line waits for."""
    return ResourceExhausted(
        f"send {first!r} again first: it was refused for now, and order is kept",
        reason=reasons.ERROR_REASON_LINE_HELD,
        retry_after=RETRY_AFTER,
    )
