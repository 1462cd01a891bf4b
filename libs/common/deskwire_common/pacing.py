"""Pacing: when there is much to do, do it in larger portions.

A write, a commit or a wake-up has a fixed price, whatever it carries. A loop that takes every portion at once pays this
price most often exactly when it has no time for it. So a round that carried much is followed by a pause until `spacing`
after its start; after a round that carried little there is only `linger`.
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
        """Return how long to wait before the next round begins."""
        return max(self._linger, self._due - now)

    def began(self, now: float, count: int) -> None:
        """Note that a round began, and how much it carries."""
        self._due = now + self._spacing if count >= self._many else 0.0


def link_pace(links: int = 1, *, longest: float = 0.04) -> Pace:
    """Return the pace for either side of a batched stream, of which there are `links`.

    No linger at all was the slowest setting; a batch costs some 180 µs of both sides, whatever it carries. So the more
    links share the traffic, the longer each of them waits; `longest` seconds at the most.
    """
    return Pace(linger=0.002, spacing=min(0.006 + 0.006 * links, longest), many=3)
