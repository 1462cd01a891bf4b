"""Concurrent work, up to a number at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

AT_ONCE: Final = 16

ItemT = TypeVar("ItemT")


async def bounded(
    work: Callable[[ItemT], Awaitable[None]], items: Iterable[ItemT], at_once: int = AT_ONCE
) -> None:
    """Do `work` for every item; the next item is taken when there is room, so there are never many at once."""
    waiting = iter(items)

    async def worker() -> None:
        for each in waiting:
            await work(each)

    await asyncio.gather(*(worker() for _ in range(at_once)))
