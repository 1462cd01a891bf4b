"""Work on owned slots: it begins when this process gains a slot, and ends before the slot is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Protocol

from deskwire_common.clock import Clock
from deskwire_common.db import UnitOfWork
from deskwire_common.logging import get_logger
from deskwire_common.loops import Backoff
from deskwire_common.ownership.slots import Slot, SlotRows, TermOver

FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 5.0
"""Seconds between tries of failing work."""
_CANCEL_SECONDS: Final = 3.0
"""Seconds for cancelled work to end. A database that doesn't answer may delay it; the slot is given up anyway."""


class Employer(Protocol):
    """The part of its process that work needs (owner.Owner)."""

    clock: Clock
    wake: asyncio.Event

    def lease_holds(self) -> bool: ...

    def crashed(self, error: Exception) -> None: ...


class Held:
    """A slot that this process owns, until `ended` is set. Later work writes under a term that is over."""

    def __init__(self, employer: Employer, kind: str, rows: SlotRows[Slot], slot: Slot) -> None:
        self.kind = kind
        self.id = slot.id
        self.term = slot.term
        self.ended = asyncio.Event()
        """The slot is lost or about to be given up: finish the work, and return."""
        self._employer = employer
        self._rows = rows
        self._slot = slot

    @property
    def is_held(self) -> bool:
        """Whether work may go on. Also False when the process stood still for longer than its lease."""
        return not self.ended.is_set() and self._employer.lease_holds()

    def ensure(self) -> None:
        """Raise TermOver unless `is_held`. Call this before an effect that can't carry the term."""
        if not self.is_held:
            raise TermOver(self.kind, self.id, self.term)

    async def fence(self, uow: UnitOfWork) -> None:
        """Prove the term in a transaction: until its end nobody can claim the slot. Raises TermOver."""
        await self._rows.fence(uow, self._slot)

    async def wait(self, seconds: float, wake: asyncio.Event | None = None) -> None:
        """Sleep, until `wake` or the end of the work."""
        waiting = [asyncio.ensure_future(self.ended.wait())]
        if wake is not None:
            waiting.append(asyncio.ensure_future(wake.wait()))
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()


Work = Callable[[Held], Awaitable[None]]


class Workers:
    """The work on one kind of slots (shares.Duties)."""

    def __init__(
        self,
        employer: Employer,
        kind: str,
        rows: SlotRows[Slot],
        work: Work,
        *,
        outlast: tuple[type[Exception], ...],
        patience: float,
    ) -> None:
        self._employer = employer
        self._kind = kind
        self._rows = rows
        self._work = work
        self._outlast = outlast
        self._patience = patience
        self._tasks: dict[str, tuple[Held, asyncio.Task[None]]] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}

    def gained(self, slots: Sequence[Slot]) -> None:
        """Begin the work."""
        for slot in slots:
            held = Held(self._employer, self._kind, self._rows, slot)
            task = asyncio.create_task(self._run(held), name=f"{self._kind}-{slot.id}")
            self._tasks[slot.id] = held, task

    def lost(self, slots: Sequence[Slot]) -> None:
        """End the work at once."""
        for slot in slots:
            held, task = self._tasks.pop(slot.id)
            held.ended.set()
            if not task.done():
                self._ending[slot.id] = task
                task.add_done_callback(partial(self._ended, slot.id))
                task.cancel()

    def _ended(self, slot: str, task: asyncio.Task[None]) -> None:
        if self._ending.get(slot) is task:
            del self._ending[slot]

    async def finish(self, slots: Sequence[Slot]) -> None:
        """Let the work end by itself, or cancel it."""
        working = [self._tasks[slot.id] for slot in slots]
        for held, _ in working:
            held.ended.set()
        tasks = {task for _, task in working}
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=self._patience)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=_CANCEL_SECONDS)

    async def close(self) -> None:
        """Wait a while for cancelled work."""
        if self._ending:
            await asyncio.wait(set(self._ending.values()), timeout=_CANCEL_SECONDS)

    async def _run(self, held: Held) -> None:
        before = self._ending.get(held.id)
        if before is not None:
            # Wait no longer for work that is blocked by a dead connection: its term is over.
            await asyncio.wait({before}, timeout=_CANCEL_SECONDS)
        pauses = Backoff(FIRST_PAUSE, LONGEST_PAUSE, sleep=held.wait)
        while not held.ended.is_set():
            began = self._employer.clock.monotonic()
            try:
                await self._work(held)
            except TermOver as error:
                get_logger().warning("term_over", kind=self._kind, slot=held.id, error=str(error))
                self._employer.wake.set()
            except self._outlast as error:
                get_logger().warning(
                    "work_failed", kind=self._kind, slot=held.id,
                    error=str(error) or type(error).__name__,
                )  # fmt: skip
            except Exception as error:  # noqa: BLE001 - it ends the process
                self._employer.crashed(error)
                return
            if self._employer.clock.monotonic() - began > LONGEST_PAUSE:
                pauses.reset()
            if not held.ended.is_set():
                await pauses.pause()
