"""How sinks try again: with growing pauses, for as long as it takes, and so that it can be seen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from deskwire_common.loops import Backoff

#: Seconds between tries: doubled up to the longest.
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 15.0

Retrying = Callable[[str], Awaitable[None]]
"""Shows what failed; the sink goes on trying."""


def pauses() -> Backoff:
    """Return the pauses of one delivery."""
    return Backoff(FIRST_PAUSE, LONGEST_PAUSE)
