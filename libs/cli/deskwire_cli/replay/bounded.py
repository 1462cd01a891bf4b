"""Concurrent work, up to a number at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

AT_ONCE: Final = 16


async def bounded(work: Iterable[Any], at_once: int = AT_ONCE) -> None:
    """Await all of it."""
    gate = asyncio.Semaphore(at_once)

    async def one(each: Any) -> None:
        async with gate:
            await each

    await asyncio.gather(*(one(each) for each in work))
