"""What becomes of one event at a sink, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Outcome(IntEnum):
    """What became of one event; the numbers are the contract's."""

    DELIVERED = 1
    DUPLICATE = 2
    SKIPPED = 3
    RETRY = 4
    AUTH_EXPIRED = 5
    REJECTED = 6
    RATE_LIMITED = 7
    CONFLICT = 8
    UNKNOWN = 9

    @property
    def good(self) -> bool:
        """Whether the system has the event or doesn't care for it."""
        return self in _GOOD

    @property
    def dead(self) -> bool:
        """Whether the event is set aside as a dead letter."""
        return self in _DEAD

    @property
    def final(self) -> bool:
        """Whether the event's way ends with it."""
        return self in _GOOD or self in _DEAD


_GOOD: Final = frozenset({Outcome.DELIVERED, Outcome.DUPLICATE, Outcome.SKIPPED})
_DEAD: Final = frozenset({Outcome.REJECTED, Outcome.CONFLICT})


def outcome_of(number: int) -> Outcome:
    """The outcome of a number of the contract; unset and unknown ones mean: try again."""
    try:
        return Outcome(number)
    except ValueError:
        return Outcome.RETRY


@dataclass(frozen=True, slots=True)
class Result:
    """What a sink says of one event; `retry_after` in seconds, None: the hub decides.

    `gone`: the target wants nothing any more. The subscription stops, and keeps the event.
    """

    outcome: Outcome
    detail: str = ""
    retry_after: float | None = None
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """When trying ends: after so many refusals of the event itself, or so long after the first (seconds).

    `first` and `longest` are the pauses between tries, `asked` the longest that a sink may ask for.
    """

    refusals: int = 20
    age: float = 86_400.0
    first: float = 0.2
    longest: float = 300.0
    asked: float = 3600.0

    def is_over(self, refusals: int, since: float, now: float) -> bool:
        """Whether an event that was refused so often, the first time at `since`, is a dead letter."""
        return refusals >= self.refusals or (since > 0 and now - since >= self.age)
