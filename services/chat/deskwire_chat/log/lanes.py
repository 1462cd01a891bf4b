"""Lanes: commands of some partitions in their order, and which of them are written next.

Two lanes write at once, so that the commit of one doesn't wait for that of the other. When little waits in both, it is
written in one transaction, which costs less than two.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from deskwire_chat.log.commands import (
    Command,
    Committing,
    Grouped,
    Import,
    Mark,
    Propose,
    Put,
)
from deskwire_common.db import Database, Statements
from deskwire_common.pacing import Pace

GROUP: Final = 500
"""Most commands in one transaction, and most messages of imports."""
_SPACING: Final = 0.025
_MANY: Final = 4
"""A transaction of this many commands is followed by the next after `_SPACING` seconds: fewer, with more in each."""
_FEW: Final = 100
"""Up to this many commands of two lanes are written in one transaction; more in two transactions at once."""


class Writing(Committing, Protocol):
    """Writes commands (commit.Committer)."""

    async def write(self, commands: list[Grouped], statements: Statements | None) -> None: ...


class Importing(Protocol):
    """Writes imports (imports.Importer)."""

    async def bring_in(self, commands: Sequence[Import]) -> None: ...


class Lane:
    """Commands of some partitions in order, and the connection on which their plain messages are written."""

    __slots__ = ("free", "pace", "queue", "statements", "wake")

    def __init__(self, statements: Statements | None) -> None:
        self.queue: deque[Command | Mark] = deque()
        self.wake = asyncio.Event()
        self.pace = Pace(linger=0.0, spacing=_SPACING, many=_MANY)
        self.statements = statements
        self.free = asyncio.Event()
        """Set while none of its commands is being written."""
        self.free.set()

    def put(self, command: Command | Mark) -> None:
        """Queue a command."""
        self.queue.append(command)
        self.wake.set()

    def imports(self, first: Import) -> list[Import]:
        """Return the imports that are written in one transaction: the first one, and those that stand next to it."""
        found, room = [first], GROUP - first.size
        while self.queue and isinstance(each := self.queue[0], Import) and each.size <= room:
            self.queue.popleft()
            room -= each.size
            found.append(each)
        return found

    def may_join(self) -> bool:
        """Whether its next commands may be written together with another lane's."""
        return self.free.is_set() and bool(self.queue) and not self.queue[0].is_alone

    def begin(self, now: float) -> list[Grouped]:
        """Begin a round: return the next commands for one transaction; none when the next command has to be alone."""
        queue = self.queue
        self.free.clear()
        self.pace.began(now, len(queue))
        group: list[Grouped] = []
        while queue and len(group) < GROUP:
            command = queue[0]
            if isinstance(command, (Put, Propose)):
                queue.popleft()
                group.append(command)
            else:
                break
        return group


class Lanes:
    """All lanes: two, but one on SQLite, which has one writer anyway."""

    def __init__(self, db: Database, writing: Writing, importing: Importing) -> None:
        self._writing = writing
        self._importing = importing
        count = 1 if db.dialect == "sqlite" else 2
        own = db.dialect == "postgresql"
        self._lanes = [Lane(db.statements() if own else None) for _ in range(count)]

    def of(self, partition: int) -> Lane:
        """Return the lane of a partition."""
        return self._lanes[partition % len(self._lanes)]

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(self._run_lane(lane))

    async def finish(self) -> None:
        """Return when everything that was queued before is stored or refused."""
        marks = [Mark(asyncio.get_running_loop().create_future()) for _ in self._lanes]
        for lane, mark in zip(self._lanes, marks, strict=True):
            lane.put(mark)
        await asyncio.gather(*(mark.future for mark in marks))

    async def drain(self) -> None:
        """Return when nothing waits."""
        while any(lane.queue for lane in self._lanes):
            await asyncio.sleep(0.01)

    async def _run_lane(self, lane: Lane) -> None:
        try:
            await self._serve(lane)
        finally:
            if lane.statements is not None:
                await lane.statements.close()

    async def _serve(self, lane: Lane) -> None:
        loop = asyncio.get_running_loop()
        queue = lane.queue
        while True:
            await lane.wake.wait()
            lane.wake.clear()
            while queue:
                if len(queue) < GROUP and (pause := lane.pace.pause(loop.time())) > 0:
                    await asyncio.sleep(pause)
                if not lane.free.is_set():
                    await lane.free.wait()
                elif queue:
                    await self._next(lane)

    async def _next(self, lane: Lane) -> None:
        """Write a lane's next group, or its next command if that has to be alone."""
        now = asyncio.get_running_loop().time()
        others = self._joining(lane)
        group = lane.begin(now)
        if not group:
            others = []
        for other in others:
            group += other.begin(now)
        try:
            if group:
                # A group of both lanes always goes over the same connection: its server process has warm caches.
                await self._writing.write(group, (self._lanes[0] if others else lane).statements)
            else:
                await self._alone(lane)
        finally:
            for each in (lane, *others):
                each.free.set()

    def _joining(self, lane: Lane) -> list[Lane]:
        """Return the lanes whose commands are written with this one's: the others if little waits in all, else none."""
        if sum(len(each.queue) for each in self._lanes) > _FEW:
            return []
        return [each for each in self._lanes if each is not lane and each.may_join()]

    async def _alone(self, lane: Lane) -> None:
        command = lane.queue.popleft()
        if isinstance(command, Import):
            await self._importing.bring_in(lane.imports(command))
        elif not isinstance(command, (Put, Propose)):
            await command.commit(self._writing)
