"""Loops: how work is repeated, and how long it pauses after a failure. All loops and pauses come from here."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

from deskwire_common.errors import DeskwireError
from deskwire_common.logging import get_logger

Sleep = Callable[[float], Awaitable[None]]
Uniform = Callable[[float, float], float]

OUTLAST: Final[tuple[type[Exception], ...]] = (DeskwireError, OSError)
"""The errors that a loop outlasts unless it names others (`db.AWAY` where it uses a database)."""


class Backoff:
    """The pause between tries: it doubles up to the longest, with jitter so that many don't come at once."""

    def __init__(
        self,
        first: float,
        longest: float,
        *,
        sleep: Sleep = asyncio.sleep,
        uniform: Uniform = random.uniform,
    ) -> None:
        """`first` and `longest` are seconds; each pause is between half of that and all of it."""
        self.first = first
        self.longest = longest
        self.failures = 0
        self._sleep = sleep
        self._uniform = uniform

    def reset(self) -> None:
        """Note a success: the next failure counts as the first."""
        self.failures = 0

    def next(self) -> float:
        """Count a failure; return the seconds to pause after it."""
        # 2**30 is more than any longest/first, and never overflows a float.
        top = min(self.first * 2.0 ** min(self.failures, 30), self.longest)
        self.failures += 1
        return self._uniform(top / 2, top)

    async def pause(self, *, at_least: float = 0.0) -> None:
        """Count a failure and sleep."""
        await self._sleep(max(self.next(), at_least))


async def wait(event: asyncio.Event, seconds: float) -> bool:
    """Sleep until `event` is set, `seconds` at the most; return whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return event.is_set()


async def every(
    seconds: float,
    work: Callable[[], Awaitable[object]],
    *,
    failed: str,
    outlast: tuple[type[Exception], ...] = OUTLAST,
    wake: asyncio.Event | None = None,
    at_once: bool = True,
    sleep: Sleep = asyncio.sleep,
) -> NoReturn:
    """Do `work` and sleep `seconds`, again and again, until cancelled.

    An error of `outlast` is logged as the event `failed`, and the work is done again after the sleep; any other error
    ends the loop. `wake` ends a sleep early. Without `at_once` it sleeps first.
    """

    async def pause() -> None:
        if wake is None:
            await sleep(seconds)
        else:
            await wait(wake, seconds)

    if not at_once:
        await pause()
    while True:
        if wake is not None:
            # Clear it before the work: a `wake` during the work stands for something that the work may have missed.
            wake.clear()
        try:
            await work()
        except outlast as error:
            get_logger().warning(failed, error=str(error) or type(error).__name__)
        await pause()
