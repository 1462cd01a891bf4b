"""What runs beside the calls: routing's index follows the agents' rows when it was wrong about one."""

from __future__ import annotations

import asyncio
from typing import Final

from deskwire_chat.routing import AgentKey, Router
from deskwire_chat.store import agents, conversations
from deskwire_common.db import Database
from deskwire_common.errors import DeskwireError
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS

_RETRY_SECONDS: Final = 0.2


class AgentReader:
    """Reads agents again that routing was wrong about."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._asked: asyncio.Queue[AgentKey] = asyncio.Queue()

    def ask(self, key: AgentKey) -> None:
        """Queue an agent (routing's `refresh`)."""
        self._asked.put_nowait(key)

    async def load(self, router: Router, assign: object) -> None:
        """Give routing what the tables say, and let it begin."""
        async with self._db.read() as c:
            every = await agents.every(c)
            waiting = await conversations.queued(c)
        router.start(every, waiting, assign)  # type: ignore[arg-type] # routing.Assign, a protocol of keywords

    async def run(self, router: Router) -> None:
        """Read what was asked for, until cancelled; outlasts a database that is away."""
        while True:
            key = await self._asked.get()
            METRICS.conversations_queued.set(router.waiting_count())
            before = router.changes_of(key)
            try:
                async with self._db.read() as c:
                    agent = await agents.get(c, *key)
            except DeskwireError as error:
                get_logger().warning("agent_not_read", error=str(error))
                before = None
            if before is not None and before == router.changes_of(key):
                router.read_again(key, agent)
            else:
                await asyncio.sleep(_RETRY_SECONDS)
                self.ask(key)
