"""Work that waits for its turn: joined per key, done in chunks, and done again when it failed for now."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Final, Generic, NoReturn, TypeVar

from deskwire_common.loops import every

_RETRY_SECONDS: Final = 1.0

KeyT = TypeVar("KeyT")
WhatT = TypeVar("WhatT")


class Backlog(Generic[KeyT, WhatT]):
    """What waits, by key. It is for work that does no harm when it is done once too often."""

    def __init__(
        self,
        work: Callable[[dict[KeyT, WhatT]], Awaitable[None]],
        *,
        join: Callable[[WhatT, WhatT], WhatT],
        failed: str,
        outlast: tuple[type[Exception], ...],
        chunk: int = 100,
    ) -> None:
        """`work` gets at most `chunk` keys; `join` makes one of what waits twice for a key.

        When it raises an error of `outlast` this is logged as `failed`, and the keys wait again.
        """
        self._work = work
        self._join = join
        self._failed = failed
        self._outlast = outlast
        self._chunk = chunk
        self._waiting: dict[KeyT, WhatT] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """Return how many keys wait."""
        return len(self._waiting)

    def add(self, key: KeyT, what: WhatT) -> None:
        """Have something done."""
        if key in self._waiting:
            what = self._join(self._waiting[key], what)
        self._waiting[key] = what
        self._wake.set()

    async def run(self) -> NoReturn:
        """Do what waits, until cancelled."""
        await every(
            _RETRY_SECONDS,
            self._round,
            failed=self._failed,
            outlast=self._outlast,
            wake=self._wake,
        )

    async def _round(self) -> None:
        while self._waiting:
            keys = list(itertools.islice(self._waiting, self._chunk))
            some = {key: self._waiting.pop(key) for key in keys}
            try:
                await self._work(some)
            except self._outlast:
                for key, what in some.items():
                    now = self._waiting.get(key)
                    self._waiting[key] = what if now is None else self._join(what, now)
                raise
