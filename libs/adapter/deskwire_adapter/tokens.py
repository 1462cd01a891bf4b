"""Tokens of systems: fetched once for all who wait, and before they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

_MOST_EARLY: Final = 60.0


@dataclass(frozen=True, slots=True)
class Token:
    """A token and for how many seconds it is good; None: until it is refused."""

    value: str
    seconds: float | None = None


class Refreshed:
    """One token that many use. However many ask at once, `fetch` runs once; it runs before the token ends."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[Token]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`fetch` may raise what it likes: each who asked gets it, and the next who asks fetches again."""
        self._fetch = fetch
        self._monotonic = monotonic
        self._lock = asyncio.Lock()
        self._token: Token | None = None
        self._until = 0.0

    async def get(self) -> str:
        """The token, a fresh one where the last is about to end."""
        async with self._lock:
            if self._token is None or self._monotonic() >= self._until:
                self._token = None
                token = await self._fetch()
                seconds = token.seconds
                # A tenth of its life early, a minute at the most: a call under way must not outlive it.
                early = 0.0 if seconds is None else min(_MOST_EARLY, seconds / 10)
                self._until = (
                    float("inf") if seconds is None else self._monotonic() + seconds - early
                )
                self._token = token
            return self._token.value

    def refused(self, value: str) -> None:
        """The system refused this token. When others have it fresh already, nothing happens."""
        if self._token is not None and self._token.value == value:
            self._token = None
