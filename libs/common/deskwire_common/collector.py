"""Python's collector of cycles, in servers with hundreds of thousands of objects that live on.

A full collection walks everything that is alive while nothing else runs: 300 ms over 16,000 connections, more than a
message may take. So what has outlived a young collection is put out of its sight every few seconds, which costs
nothing, and looked through about once in an hour. What ends frees itself by its reference count: tests see to it that
groups and connections are no cycles.
"""

from __future__ import annotations

import asyncio
import gc
import random
from typing import Final

_SETTLE_SECONDS: Final = 10.0
_SEARCH_SECONDS: Final = 3600.0


def look_seldom() -> None:
    """Collect after many more new objects than is usual: messages and connections live on, or die by themselves."""
    gc.set_threshold(20_000, 20, 100)


def settle() -> None:
    """What is alive now stays: collect once, and don't walk it again."""
    gc.collect()
    gc.freeze()


async def keep_settled() -> None:
    """Do so with what comes later, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        # Workers that began together shouldn't pause together.
        search = loop.time() + _SEARCH_SECONDS * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        while loop.time() < search:
            await asyncio.sleep(_SETTLE_SECONDS)
            gc.collect(1)
            gc.freeze()
        gc.unfreeze()
        settle()
