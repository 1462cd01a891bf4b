"""Python's collector of cycles, in servers with hundreds of thousands of objects that live on.

A full collection walks everything that is alive while nothing else runs: 300 ms over 16,000 connections, more than a
message may take. So every few seconds, objects that have outlived a young collection are frozen, which hides them from
the collector and costs nothing; about once an hour they are looked through. Objects that end are freed by their
reference count: tests check that groups and connections are no cycles.
"""

from __future__ import annotations

import asyncio
import gc
import random
from typing import Final

_SETTLE_SECONDS: Final = 10.0
_SEARCH_SECONDS: Final = 3600.0


def look_seldom() -> None:
    """Collect after many more new objects than the default: messages and connections live on, or free themselves."""
    gc.set_threshold(20_000, 20, 100)


def settle() -> None:
    """Collect once, then hide everything that is alive from later collections."""
    gc.collect()
    gc.freeze()


async def keep_settled() -> None:
    """Do the same for later objects, again and again, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        # Workers that started together shouldn't pause together.
        search = loop.time() + _SEARCH_SECONDS * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        while loop.time() < search:
            await asyncio.sleep(_SETTLE_SECONDS)
            gc.collect(1)
            gc.freeze()
        gc.unfreeze()
        settle()
