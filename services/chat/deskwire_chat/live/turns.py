"""Turns: the work of a link that needs the database, a few at a time.

Tenants take turns, and so do the users of each; of a user one thing runs at a time, in the order in which they came. So
who asks for much waits behind themselves, and who asks in vain rests for a while.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Final

from deskwire_common.fair import Shares
from deskwire_common.logging import get_logger

AT_ONCE: Final = 4
"""How much work of one link runs at once."""
PER_TENANT: Final = 3
"""How much of it one tenant's may be."""
PER_LINE: Final = 256
"""How much work of one user waits; more is refused."""
WHILE_RESTING: Final = 8
"""How much work of one user waits while they rest."""
TOGETHER: Final = 10_000
"""How much work of a link waits before tenants that have more than an equal share of it are refused."""

Work = Callable[[], Awaitable[float]]
"""What is to be done; it returns for how many seconds its user then rests."""


class _Tenant:
    """The work of a tenant by line. `ready` are the lines with work that don't work or rest now."""

    __slots__ = ("is_next", "lines", "name", "ready", "resting", "running")

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Hashable, deque[Work]] = {}
        self.ready: deque[Hashable] = deque()
        self.resting: set[Hashable] = set()
        self.running = 0
        self.is_next = False
        """Whether the tenant is among those that take turns."""


class Turns:
    """The work of one link."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._next: deque[_Tenant] = deque()
        """Tenants whose next work may begin, in the order of their turns."""
        self._room = Shares(TOGETHER)
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, tenant: str, line: Hashable, work: Work, *, always: bool = False) -> bool:
        """Begin `work` when its turn comes; return False when too much waits already, unless `always`.

        `line` is whose work it is: a user, or what else waits behind itself.
        """
        of = self._tenants.get(tenant)
        if of is None:
            of = self._tenants[tenant] = _Tenant(tenant)
        waiting = of.lines.get(line)
        if not always and self._is_full(of, line, waiting):
            return False
        if waiting is None:
            waiting = of.lines[line] = deque()
            of.ready.append(line)
        waiting.append(work)
        self._room.take(tenant)
        self._line_up(of)
        self._begin()
        return True

    def is_idle(self, tenant: str, line: Hashable) -> bool:
        """Return whether nothing of a line runs or waits, and it doesn't rest."""
        of = self._tenants.get(tenant)
        return of is None or line not in of.lines

    def cancel(self) -> None:
        """Forget what waits, and cancel what runs."""
        self._tenants.clear()
        self._next.clear()
        for task in list(self._tasks):
            task.cancel()

    def _is_full(self, of: _Tenant, line: Hashable, waiting: deque[Work] | None) -> bool:
        if waiting is not None and len(waiting) >= (
            WHILE_RESTING if line in of.resting else PER_LINE
        ):
            return True
        return self._room.is_full(of.name)

    def _line_up(self, of: _Tenant) -> None:
        if of.ready and of.running < PER_TENANT and not of.is_next:
            of.is_next = True
            self._next.append(of)

    def _begin(self) -> None:
        while self._next and self._running < AT_ONCE:
            of = self._next.popleft()
            of.is_next = False
            line = of.ready.popleft()
            work = of.lines[line].popleft()
            self._room.give_back(of.name)
            of.running += 1
            self._running += 1
            self._line_up(of)
            task = asyncio.create_task(self._run(of, line, work))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, of: _Tenant, line: Hashable, work: Work) -> None:
        rest = 0.0
        try:
            rest = await work()
        except Exception as error:  # noqa: BLE001 - only this work fails
            get_logger().error("work_failed", exc_info=error)
        finally:
            of.running -= 1
            self._running -= 1
            if rest:
                of.resting.add(line)
                asyncio.get_running_loop().call_later(rest, self._go_on, of, line)
                self._line_up(of)
                self._begin()
            else:
                self._go_on(of, line)

    def _go_on(self, of: _Tenant, line: Hashable) -> None:
        """Let a line's next work begin: the one before is done, and its rest is over."""
        if self._tenants.get(of.name) is not of:
            return  # all was cancelled
        of.resting.discard(line)
        if of.lines[line]:
            of.ready.append(line)
        else:
            del of.lines[line]
        if of.lines:
            self._line_up(of)
        else:
            del self._tenants[of.name]
        self._begin()
