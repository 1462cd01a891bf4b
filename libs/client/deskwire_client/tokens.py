"""The token of a connection: where it comes from, and when a new one is due."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Final

_REFRESH_SECONDS: Final = 60.0
"""Seconds before a token's end at which a new one is requested; less when the token doesn't live five times that."""

TokenSource = str | Callable[[], str | Awaitable[str]]
"""A token, or a function that returns a new one and is called at every connect."""


class Tokens:
    """The tokens of one client. `used` is the last one that was sent to the server."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source
        self._refresh_at = 0.0
        self.used = ""

    @property
    def renewable(self) -> bool:
        """Whether there can be another token than the one that was given."""
        return callable(self._source)

    async def new(self) -> str:
        """Return a token to connect with: the only one there is, or a new one from the source."""
        token = self._source() if callable(self._source) else self._source
        self.used = await token if inspect.isawaitable(token) else token
        return self.used

    def lives_until(self, expires: float) -> None:
        """Note when the server will end the present token, in seconds since 1970."""
        now = time.time()
        self._refresh_at = expires - min(_REFRESH_SECONDS, (expires - now) / 5)

    def due(self) -> bool:
        """Return whether it is time for a new token: True once, then again after a minute."""
        if not callable(self._source) or self._refresh_at > time.time():
            return False
        # The answer to the new token may set a later time.
        self._refresh_at = time.time() + _REFRESH_SECONDS
        return True

    def seconds_until_due(self) -> float:
        """Return for how many seconds the present token suffices; for ever when there is no other."""
        return max(0.0, self._refresh_at - time.time()) if callable(self._source) else float("inf")
