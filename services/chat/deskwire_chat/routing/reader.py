"""Reads the tables for routing: agents, and what waits in partitions that this process gained."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final, Protocol

from sqlalchemy.exc import SQLAlchemyError

from deskwire_chat.domain.conversations import partition_of
from deskwire_chat.routing.router import Proposer, Router
from deskwire_chat.store import agents, conversations
from deskwire_common.db import AWAY, Database
from deskwire_common.errors import DeskwireError
from deskwire_common.logging import get_logger
from deskwire_common.loops import every
from deskwire_common.metrics import METRICS

_RETRY_SECONDS: Final = 0.2
_AGENTS_SECONDS: Final = 1.5


class Owned(Protocol):
    """Tells which partitions this process owns, and whether it is the only process."""

    def term_of(self, number: int) -> int:
        """Return the term under which this process owns a partition; 0: it doesn't own it."""
        ...

    def others_live(self) -> bool:
        """Whether there are other processes."""
        ...


class AgentReader:
    """Keeps routing's index in step with the tables."""

    def __init__(self, db: Database, router: Router, owned: Owned) -> None:
        self._db = db
        self._router = router
        self._owned = owned
        self._gained: set[int] = set()
        self._wake = asyncio.Event()

    def gained(self, numbers: Collection[int]) -> None:
        """Have what waits in these partitions read and given to routing."""
        self._gained.update(numbers)
        self._wake.set()

    async def load(self, propose: Proposer) -> None:
        """Give routing all agents, and start it; what waits is read with its partitions."""
        async with self._db.read() as c:
            found = await agents.every(c)
        self._router.start(found, propose)

    async def run_partitions(self) -> None:
        """Read what waits in gained partitions, until cancelled; outlasts a database that is away."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            numbers, self._gained = self._gained, set()
            try:
                # The last owner may have made agents known whom this process has never read.
                await self._read_all()
                async with self._db.read() as c:
                    waiting = await conversations.queued(c)
            except (DeskwireError, SQLAlchemyError) as error:
                get_logger().warning("queue_not_read", error=type(error).__name__)
                await asyncio.sleep(_RETRY_SECONDS)
                self.gained(numbers)
                continue
            numbers = {number for number in numbers if self._owned.term_of(number)}
            self._router.enqueue(*(each for each in waiting if partition_of(each.id) in numbers))

    async def run_agents(self) -> None:
        """Read all agents again and again until cancelled, while other processes live, which give agents work too."""
        await every(
            _AGENTS_SECONDS,
            self._read_shared,
            failed="agents_not_read",
            outlast=AWAY,
            at_once=False,
        )

    async def _read_shared(self) -> None:
        if self._owned.others_live():
            await self._read_all()

    async def _read_all(self) -> None:
        known = self._router.agents
        before = known.quiet()
        async with self._db.read() as c:
            found = await agents.every(c)
        rows = [((each.tenant, each.agent_id), each) for each in found]
        self._router.agents_read(
            (key, agent)
            for key, agent in rows
            if known.get(key) != agent and before.get(key, 0) == known.changes_of(key)
        )

    async def run(self) -> None:
        """Read the agents whom routing doubts, until cancelled; outlasts a database that is away."""
        while True:
            key = await self._router.doubted.get()
            METRICS.conversations_queued.set(self._router.waiting_count())
            before = self._router.agents.changes_of(key)
            try:
                async with self._db.read() as c:
                    agent = await agents.get(c, *key)
            except DeskwireError as error:
                get_logger().warning("agent_not_read", error=str(error))
                before = None
            if before is not None and before == self._router.agents.changes_of(key):
                self._router.agents_read([(key, agent)])
            else:
                await asyncio.sleep(_RETRY_SECONDS)
                self._router.doubted.put_nowait(key)
