"""Pacing: when there is much to do, do it in larger portions.

A write, a commit or a wake-up has a price of its own, whatever it carries, and who takes every portion at once pays it
most often exactly when there is no time for it. So a round that carried much is followed by a pause until `spacing`
after its start; after one that carried little there is only `linger`.
"""

from __future__ import annotations


class Pace:
    """The pauses of one loop; times are seconds of a monotonic clock."""

    __slots__ = ("_due", "_linger", "_many", "_spacing")

    def __init__(self, *, linger: float, spacing: float, many: int) -> None:
        """`linger` before every round; rounds of `many` and more are `spacing` apart."""
        self._linger = linger
        self._spacing = spacing
        self._many = many
        self._due = 0.0

    def pause(self, now: float) -> float:
        """Return how long to wait before the round that is to begin."""
        return max(self._linger, self._due - now)

    def began(self, now: float, count: int) -> None:
        """A round began that carries so much."""
        self._due = now + self._spacing if count >= self._many else 0.0


def link_pace(links: int = 1, *, longest: float = 0.04) -> Pace:
    """Return the pace of either side of a batched stream that is one of so many.

    No linger at all was the slowest setting; a batch costs some 180 µs of both sides, whatever it carries. So the more
    links share what there is to say, the longer each waits; `longest` seconds at the most.
    """
    return Pace(linger=0.002, spacing=min(0.006 + 0.006 * links, longest), many=3)
