"""How many conversations a visitor may open, and how fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_common.errors import ResourceExhausted

MINUTE: Final = 60_000_000
"""Microseconds for which an opening counts."""
_LOOK_AGAIN: Final = 30.0
"""Seconds after which somebody with too many open conversations may look whether one was closed."""


@dataclass(frozen=True, slots=True)
class OpeningLimits:
    """What one visitor (a token's subject) may open; 0: any number."""

    open: int = 0
    per_minute: int = 0


@dataclass(slots=True)
class Opened:
    """What a visitor has open, and when they opened their last ones (microseconds), in any order."""

    open: int
    times: list[int]


def check_may_open(has: Opened, limits: OpeningLimits, now: int) -> None:
    """Raise ResourceExhausted (TOO_MANY_CONVERSATIONS, TOO_MANY_OPENINGS) when a visitor may open no more."""
    if limits.open and has.open >= limits.open:
        raise ResourceExhausted(
            f"you have {has.open} open conversations, and may have {limits.open}: go on in one of them",
            reason=reasons.ERROR_REASON_TOO_MANY_CONVERSATIONS,
            metadata={"limit": str(limits.open)},
            retry_after=_LOOK_AGAIN,
        )
    last = _latest(has.times, limits.per_minute, now)
    if limits.per_minute and len(last) >= limits.per_minute:
        raise ResourceExhausted(
            f"you may open {limits.per_minute} conversations within a minute: wait, or go on in one of them",
            reason=reasons.ERROR_REASON_TOO_MANY_OPENINGS,
            metadata={"limit": str(limits.per_minute)},
            retry_after=(last[0] + MINUTE - now) / 1_000_000,
        )


def _latest(times: Sequence[int], count: int, now: int) -> list[int]:
    """Return the last `count` times of the minute before `now`, oldest first."""
    return sorted(each for each in times if each > now - MINUTE)[-count:]
