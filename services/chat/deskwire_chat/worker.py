"""What runs beside the calls.

Routing's index follows the agents' rows when it was wrong about one, the gate follows who was disabled, and what a bot
has that is gone goes back to the queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from deskwire_chat.actions.conversations import ConversationActions
from deskwire_chat.domain.conversations import partition_of
from deskwire_chat.gate import Gate
from deskwire_chat.routing import AgentKey, Assign, Router
from deskwire_chat.shard.connections import Connections
from deskwire_chat.shard.ownership import Ownership
from deskwire_chat.store import agents, conversations, tenants
from deskwire_common.db import Database
from deskwire_common.errors import DeskwireError
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS

_RETRY_SECONDS: Final = 0.2
_BOTS_SECONDS: Final = 1.0
_BOTS_CHUNK: Final = 500
_AGENTS_SECONDS: Final = 1.5
_LOOK_SECONDS: Final = 3.0
"""So long may pass until this process sees what another one has disabled; the contract says five."""


class AgentReader:
    """Reads agents again that routing was wrong about."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._asked: asyncio.Queue[AgentKey] = asyncio.Queue()
        self._gained: set[int] = set()
        self._wake = asyncio.Event()

    def ask(self, key: AgentKey) -> None:
        """Queue an agent (routing's `refresh`)."""
        self._asked.put_nowait(key)

    def gained(self, partitions: Collection[int]) -> None:
        """Have routing take over who waits in these."""
        self._gained.update(partitions)
        self._wake.set()

    async def load(self, router: Router, assign: Assign) -> None:
        """Give routing what the table says, and let it begin; conversations come with their partitions."""
        async with self._db.read() as c:
            every = await agents.every(c)
        router.start(every, assign)

    async def run_partitions(self, router: Router, ownership: Ownership) -> None:
        """Read who waits in partitions that were gained, until cancelled; outlasts a database that is away."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            numbers, self._gained = self._gained, set()
            try:
                async with self._db.read() as c:
                    waiting = await conversations.queued(c)
            except (DeskwireError, SQLAlchemyError) as error:
                get_logger().warning("queue_not_read", error=type(error).__name__)
                await asyncio.sleep(_RETRY_SECONDS)
                self.gained(numbers)
                continue
            numbers = {number for number in numbers if ownership.term_of(number)}
            router.wait_for(
                each for each in waiting if partition_of(each.conversation_id) in numbers
            )

    async def run_agents(self, router: Router, ownership: Ownership) -> None:
        """While there are other processes, which give agents work too: read the agents again, until cancelled."""
        while True:
            await asyncio.sleep(_AGENTS_SECONDS)
            if not ownership.others_live():
                continue
            before = router.quiet()
            try:
                async with self._db.read() as c:
                    every = await agents.every(c)
            except (DeskwireError, SQLAlchemyError) as error:
                get_logger().warning("agents_not_read", error=type(error).__name__)
                continue
            for agent in every:
                key = (agent.tenant, agent.agent_id)
                if router.agent_of(key) != agent and before.get(key, 0) == router.changes_of(key):
                    router.read_again(key, agent)

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


class GateKeeper:
    """Shows the gate who is disabled, ends their connections, and puts disabled agents' conversations back."""

    def __init__(
        self,
        db: Database,
        gate: Gate,
        connections: Connections,
        conversation_actions: ConversationActions,
        ownership: Ownership,
    ) -> None:
        self._db = db
        self._ownership = ownership
        self._gate = gate
        self._connections = connections
        self._conversations = conversation_actions
        # One look at a time: a later one must not be overwritten by an earlier.
        self._looking = asyncio.Lock()
        self._asked = asyncio.Event()

    async def load(self) -> None:
        """Read who is disabled. Raises Unavailable."""
        async with self._looking:
            async with self._db.read() as c:
                shut = await tenants.disabled(c), await agents.disabled(c)
            if self._gate.adopt(*shut):
                self._connections.expel()

    async def look(self) -> None:
        """Read at once, as somebody was disabled or enabled. What fails is done again by `run`."""
        await self._try_load()
        self._asked.set()

    async def run(self) -> None:
        """Look every few seconds until cancelled; outlasts a database that is away."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._asked.wait()
            self._asked.clear()
            await self._try_load()
            await self._put_back()

    async def _try_load(self) -> None:
        try:
            await self.load()
        except (DeskwireError, SQLAlchemyError) as error:
            get_logger().warning("gate_not_read", error=type(error).__name__)

    async def _put_back(self) -> None:
        """Also after a restart between the disabling and this, and for what routing gave away at the same moment."""
        try:
            async with self._db.read() as c:
                found = await conversations.of_disabled_agents(c)
            for conversation_id, agent_id in found:
                # The others are their owners' to put back.
                if not self._ownership.term_of(partition_of(conversation_id)):
                    continue
                await self._conversations.put_back(conversation_id, agent_id)
        except (DeskwireError, SQLAlchemyError) as error:
            get_logger().warning("conversations_not_put_back", error=type(error).__name__)


class BotKeeper:
    """Puts the conversations of bots that are gone back into the queue, for people: none is left alone."""

    def __init__(
        self,
        db: Database,
        router: Router,
        conversation_actions: ConversationActions,
        ownership: Ownership,
        *,
        away_seconds: float,
    ) -> None:
        """`away_seconds`: so long a bot may be without a connection that is open and not only parked."""
        self._db = db
        self._router = router
        self._conversations = conversation_actions
        self._ownership = ownership
        self._seconds = away_seconds

    async def run(self) -> None:
        """Look every second until cancelled; outlasts a database that is away."""
        while True:
            await asyncio.sleep(min(_BOTS_SECONDS, self._seconds / 2))
            gone = self._router.bots_gone(self._seconds)
            for start in range(0, len(gone), _BOTS_CHUNK):
                try:
                    await self._put_back(gone[start : start + _BOTS_CHUNK])
                except (DeskwireError, SQLAlchemyError) as error:
                    get_logger().warning("conversations_not_put_back", error=type(error).__name__)

    async def _put_back(self, gone: Sequence[AgentKey]) -> None:
        async with self._db.read() as c:
            found = await conversations.of_bots(c, gone)
        for conversation_id, tenant, bot in found:
            # The others are their owners' to put back, and some bot may have come meanwhile.
            is_ours = self._ownership.term_of(partition_of(conversation_id)) > 0
            if is_ours and not self._router.is_connected(tenant, bot):
                await self._conversations.put_back(conversation_id, bot)
