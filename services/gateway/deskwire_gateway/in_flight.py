"""The unary calls in flight, by session: bounded, and ended with their session."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from contextlib import suppress
from typing import Final

from deskwire_common.errors import ResourceExhausted
from deskwire_common.fair import Shares
from deskwire_gateway.session import Session

_MAX_IN_FLIGHT: Final = 1_000
"""Calls of all connections of this process: a unary call costs chat ~400 µs, so more calls would only wait."""


class InFlight:
    """The calls in flight on this worker's connections."""

    def __init__(self, max_calls: int) -> None:
        """`max_calls`: how many one session may have."""
        self._max_calls = max_calls
        self._tasks: dict[Session, dict[int, asyncio.Task[None]]] = {}
        self._room = Shares(_MAX_IN_FLIGHT)

    def of(self, session: Session) -> Collection[int]:
        """Return the numbers of a session's calls."""
        return self._tasks.get(session, {})

    def check_room(self, session: Session) -> None:
        """Raise ResourceExhausted when no other call may begin."""
        if len(self.of(session)) >= self._max_calls:
            raise ResourceExhausted(
                f"{self._max_calls} calls are without their result; wait for those",
                retry_after=0.5,
            )
        if self._room.is_full(_tenant(session)):
            raise ResourceExhausted("too many calls are under way", retry_after=1.0)

    def begin(self, session: Session, number: int, work: Coroutine[None, None, None]) -> None:
        """Run a call as a task until it ends, or its session does."""
        task = asyncio.create_task(work, name=f"call-{session.number}-{number}")
        self._tasks.setdefault(session, {})[number] = task
        tenant = _tenant(session)
        self._room.take(tenant)
        task.add_done_callback(lambda _done: self._ended(session, tenant, number))

    def end(self, session: Session) -> None:
        """End the calls of a session that is over."""
        for task in self._tasks.get(session, {}).values():
            task.cancel()

    async def drain(self, seconds: float = 5.0) -> None:
        """Wait a while for the results of the calls in flight."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._tasks:
                    await asyncio.sleep(0.01)

    async def close(self) -> None:
        """End what is still in flight."""
        tasks = [task for theirs in self._tasks.values() for task in theirs.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, session: Session, tenant: str, number: int) -> None:
        self._room.give_back(tenant)
        mine = self._tasks[session]
        del mine[number]
        if not mine:
            del self._tasks[session]


def _tenant(session: Session) -> str:
    assert session.principal is not None  # noqa: S101 - callers have said Hello
    return session.principal.tenant
